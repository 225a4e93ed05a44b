"""The main job of the README, run as a user runs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "quickstart.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=100)


def test_runs_piped_and_finds_the_results_equal() -> None:
    done = run("--limit", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # no progress line where nobody watches, no warning, no traceback
    assert done.stdout.startswith("40 files, ")
    assert "the results are equal" in done.stdout
    if importlib.util.find_spec("sklearn") is not None:
        assert "best of the grid: " in done.stdout
    for words in ("a lambda crosses", "a killed worker is survived", "a large array is edited in place"):
        assert f"{words}: yes" in done.stdout


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_a_bad_limit_is_named(value: str) -> None:
    done = run(f"--limit={value}")
    assert done.returncode == 2
    assert f"{value!r} is not a whole number above 0" in done.stderr


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("quickstart_under_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
    spec.loader.exec_module(module)
    yield module


def test_facts_and_ranks(quickstart: ModuleType, tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text("class C:\n    def f(self):\n        return self\n\nasync def g():\n    x = 1\n    return x\n")
    facts = quickstart.facts_of(str(good))
    assert (facts.lines, facts.classes, facts.problem) == (7, 1, "")
    assert sorted(facts.functions) == [(2, "f"), (3, "g")]
    assert facts.names == {"self": 1, "x": 2}
    report = quickstart.report_on([facts])
    assert report.largest == ((3, "g", str(good)), (2, "f", str(good)))
    assert report.top_names == (("x", 2), ("self", 1))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"def broken(:\n", "SyntaxError"),
        (b"# coding: utf-8\nname = '\xff'\n", "UnicodeDecodeError"),
        (b"# coding: no-such-codec\n", "SyntaxError"),
        (b"x = 1\0\n", "SyntaxError|ValueError"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_result(
    quickstart: ModuleType, tmp_path: Path, content: bytes, problem: str
) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(content)
    facts = quickstart.facts_of(str(path))
    assert facts.problem.partition(":")[0] in problem.split("|")
    assert quickstart.report_on([facts]).problems == ((str(path), facts.problem),)


def test_the_input_is_the_standard_library_without_its_tests(quickstart: ModuleType) -> None:
    paths = quickstart.standard_library(None)
    assert len(paths) > 300
    assert any(path.endswith("/multiprocessing/pool.py") for path in paths)
    assert not [path for path in paths if "/test/" in path or "/site-packages/" in path or "/idlelib/" in path]
    assert quickstart.standard_library(7) == paths[:7]
