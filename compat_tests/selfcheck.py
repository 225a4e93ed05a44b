"""Checks of the harness itself: ``pytest compat_tests/selfcheck.py``.

Each runs the real command on a made-up suite against a made-up ``scaleout`` in a temporary directory, so neither the
library nor CPython's tests need to be there. Above all: what must not pass, does not pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from compat_tests import redirect, report
from compat_tests.suite import Exclusion, ExclusionError, parse_exclusions
from compat_tests.supervise import SuiteResult

ROOT = Path(__file__).resolve().parent.parent

OUR_POOL = """
class Pool:
    def __init__(self, processes=None):
        if processes is not None and processes < 1:
            raise ValueError("processes")
    def apply(self, function, arguments=()):
        return function(*arguments)
    def join(self):
        pass
"""

SUITE = """
from pathlib import Path
from compat_tests.suite import CHILD, SCRIPT, Counted, Suite
SUITE = Suite(
    name="made-up", upstream={upstream!r}, module="redirected",
    counted=(Counted("Child.*", CHILD), Counted("Script.*", SCRIPT), Counted("Counts.*"))[{first}:],
    exclusions_file=Path(__file__).with_name("exclude.txt"), where_to_get="ask its author", script_probe={probe!r},
)
"""

REDIRECTED = """
from compat_tests.evidence import POOL
from compat_tests.redirect import run_upstream
run_upstream(globals(), "made_up_upstream", watches=(POOL,))
"""


@dataclass
class Outcome:
    status: int
    output: str
    result: SuiteResult | None


class MadeUp:
    """A directory with a made-up scaleout, an upstream suite for it, and the harness's description of the suite."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.write("scaleout/__init__.py", "")
        self.write("scaleout/multiprocessing/__init__.py", "from .pool import Pool\n")
        self.write("scaleout/multiprocessing/pool.py", OUR_POOL)
        self.write("suite.py", SUITE.format(upstream="made_up_upstream", first=2, probe=None))
        self.write("redirected.py", REDIRECTED)
        self.write("exclude.txt", "")

    def write(self, name: str, content: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content), encoding="utf-8")

    def upstream(self, body: str) -> None:
        """The made-up upstream module: its imports, then ``body``."""
        self.write("made_up_upstream.py", "import multiprocessing, os, sys, time, unittest\n" + textwrap.dedent(body))

    def run(self, *options: str) -> Outcome:
        results = self.directory / "results.json"
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "compat_tests", "--suite-module", "suite", "--json", str(results), *options]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.directory), str(ROOT)])}
        done = subprocess.run(command, cwd=self.directory, env=environ, capture_output=True, text=True, timeout=60)
        result = report.read_json(results).suites[0] if results.exists() else None
        return Outcome(done.returncode, done.stdout + done.stderr, result)


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


PASSING = """
class Counts(unittest.TestCase):
    def test_pool(self):
        self.assertEqual(multiprocessing.Pool(2).apply(abs, (-1,)), 1)
"""


def test_passing_counted_tests_exit_zero(made_up: MadeUp) -> None:
    made_up.upstream(PASSING + "class Other(unittest.TestCase):\n    def test_x(self): self.fail('never run')\n")
    outcome = made_up.run()
    assert outcome.status == 0, outcome.output
    assert outcome.result is not None
    assert outcome.result.passed == ["Counts.test_pool"]
    assert outcome.result.not_provided == ["Other.test_x"]


def test_failing_counted_test_exits_nonzero(made_up: MadeUp) -> None:
    made_up.upstream(
        PASSING + "    def test_wrong(self):\n        multiprocessing.Pool(1)\n        self.fail('wrong')\n"
    )
    outcome = made_up.run()
    assert outcome.status == 1
    assert outcome.result is not None
    assert list(outcome.result.failed) == ["Counts.test_wrong"]
    assert outcome.result.passed == ["Counts.test_pool"]


def test_failing_subtest_is_a_failure(made_up: MadeUp) -> None:
    made_up.upstream(
        PASSING
        + "    def test_sub(self):\n        multiprocessing.Pool(1)\n        with self.subTest(1): self.fail('x')\n"
    )
    assert made_up.run().status == 1


def test_stdlib_pool_behind_our_name_is_detected(made_up: MadeUp) -> None:
    made_up.write("scaleout/multiprocessing/__init__.py", "from multiprocessing import Pool\nfrom . import pool\n")
    made_up.upstream(
        "class Counts(unittest.TestCase):\n"
        "    def test_pool(self):\n"
        "        pool = multiprocessing.Pool(1)\n        pool.terminate()\n        pool.join()\n"
    )
    outcome = made_up.run()
    assert outcome.status == 1
    assert "constructed the standard library's class" in outcome.output


def test_our_class_being_the_stdlib_class_is_detected(made_up: MadeUp) -> None:
    made_up.write("scaleout/multiprocessing/pool.py", "from multiprocessing.pool import Pool\n")
    made_up.upstream(
        "class Counts(unittest.TestCase):\n"
        "    def test_pool(self):\n"
        "        pool = multiprocessing.Pool(1)\n        pool.terminate()\n        pool.join()\n"
    )
    assert "constructed the standard library's class" in made_up.run().output


def test_counted_test_that_makes_no_pool_is_detected(made_up: MadeUp) -> None:
    made_up.upstream("class Counts(unittest.TestCase):\n    def test_nothing(self): pass\n")
    outcome = made_up.run()
    assert outcome.status == 1
    assert "scaleout's class was never constructed" in outcome.output


def test_pool_made_in_set_up_class_is_evidence_for_each_test(made_up: MadeUp) -> None:
    made_up.upstream("""
        class Counts(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.pool = multiprocessing.Pool(1)
            def test_a(self): self.pool.apply(int)
            def test_b(self): self.pool.apply(int)
    """)
    assert made_up.run().status == 0


def test_child_that_fails_unseen_by_upstream_is_detected(made_up: MadeUp) -> None:
    made_up.write("suite.py", SUITE.format(upstream="made_up_upstream", first=0, probe=None))
    # Upstream's test does not look at the exit status of the child, so only the evidence can tell.
    body = """
        import subprocess
        class Child(unittest.TestCase):
            def test_child(self):
                command = [sys.executable, "-c", "import redirected; redirected.work()"]
                subprocess.run(command, stderr=subprocess.DEVNULL)
        class Script(unittest.TestCase):
            def test_x(self): multiprocessing.Pool(1)
        class Counts(Script): pass
        def work():
            pool = multiprocessing.Pool({processes})
            pool.join()
    """
    made_up.upstream(textwrap.dedent(body).format(processes=1))
    assert made_up.run().status == 0
    made_up.upstream(textwrap.dedent(body).format(processes=0))
    outcome = made_up.run()
    assert outcome.result is not None
    assert list(outcome.result.failed) == ["Child.test_child"]


def test_skipped_counted_test_does_not_pass(made_up: MadeUp) -> None:
    made_up.upstream(PASSING + "    def test_skip(self): self.skipTest('no reason that counts')\n")
    outcome = made_up.run()
    assert outcome.status == 1
    assert "no reason that counts" in outcome.output


def test_failing_fixture_fails_every_test_of_its_class(made_up: MadeUp) -> None:
    made_up.upstream(PASSING + "    @classmethod\n    def setUpClass(cls): raise OSError('no luck')\n")
    outcome = made_up.run()
    assert outcome.status == 1
    assert outcome.result is not None
    assert "no luck" in outcome.result.failed["Counts.test_pool"]


@pytest.mark.parametrize("end", ["while True: time.sleep(1)", "os._exit(7)", "os.kill(os.getpid(), 9)"])
def test_hang_or_crash_costs_one_test_not_the_run(made_up: MadeUp, end: str) -> None:
    made_up.upstream(
        PASSING + f"    def test_ends(self):\n        {end}\n    def test_z(self): multiprocessing.Pool(1)\n"
    )
    started = time.monotonic()
    outcome = made_up.run("--timeout", "2")
    assert time.monotonic() - started < 30
    assert outcome.status == 1
    assert outcome.result is not None
    assert list(outcome.result.failed) == ["Counts.test_ends"]
    assert outcome.result.passed == ["Counts.test_pool", "Counts.test_z"]
    if "sleep" in end:
        assert "hung in Counts.test_ends" in outcome.output
        assert "in test_ends" in outcome.output  # the stack


def test_process_left_behind_is_a_failure(made_up: MadeUp) -> None:
    made_up.upstream(
        PASSING + "    def test_leaves(self):\n        multiprocessing.Pool(1)\n"
        "        import subprocess\n        self.__class__.left = subprocess.Popen(['sleep', '1000'])\n"
    )
    outcome = made_up.run()
    assert outcome.status == 1
    assert outcome.result is not None
    assert list(outcome.result.failed) == ["Counts.<leftovers>"]


def test_altered_environment_is_a_failure(made_up: MadeUp) -> None:
    pytest.importorskip("test.support", reason="CPython's test package is not installed")
    made_up.upstream(
        PASSING + "    def test_alters(self):\n        multiprocessing.Pool(1)\n"
        "        from test import support\n        support.environment_altered = True\n"
    )
    outcome = made_up.run()
    assert outcome.result is not None
    assert list(outcome.result.failed) == ["Counts.<environment>"]


def test_exclusion_without_reason_is_refused(made_up: MadeUp) -> None:
    made_up.upstream(PASSING)
    for line in ("Counts.test_pool\n", "Counts.test_pool --\n", "Counts.test_pool -- fails:\n"):
        made_up.write("exclude.txt", line)
        outcome = made_up.run()
        assert outcome.status == 2
        assert "the reason is required" in outcome.output


def test_exclusion_of_a_test_that_is_gone_is_a_regression(made_up: MadeUp) -> None:
    made_up.upstream(PASSING)
    made_up.write("exclude.txt", "Counts.test_gone -- was there once\n")
    assert made_up.run().status == 1
    made_up.write("exclude.txt", "Counts.test_gone [>=9.9] -- not there yet\n")
    assert made_up.run().status == 0


def test_exclusion_as_failing_must_fail(made_up: MadeUp) -> None:
    made_up.upstream(PASSING + "    def test_other(self): multiprocessing.Pool(0)\n")
    made_up.write("exclude.txt", "Counts.test_other -- fails: refuses 0\n")
    assert made_up.run().status == 0
    made_up.write("exclude.txt", "Counts.test_other -- fails: refuses 0\nCounts.test_pool -- fails: so they say\n")
    outcome = made_up.run()
    assert outcome.status == 1
    assert "Counts.test_pool is excluded as failing, but passes" in outcome.output


def test_counted_pattern_that_matches_nothing_is_a_regression(made_up: MadeUp) -> None:
    made_up.upstream("class Renamed(unittest.TestCase):\n    def test_x(self): pass\n")
    outcome = made_up.run()
    assert outcome.status == 1
    assert "Counts.* counts but no such test is installed" in outcome.output


def test_suite_that_is_not_installed_is_skipped_with_directions(made_up: MadeUp) -> None:
    made_up.write("suite.py", SUITE.format(upstream="test.not_installed_here", first=2, probe=None))
    outcome = made_up.run()
    assert outcome.status == 0
    assert "SKIPPED" in outcome.output and "ask its author" in outcome.output


def test_name_that_scaleout_lacks_stops_the_suite(made_up: MadeUp) -> None:
    made_up.upstream("Base = multiprocessing.Process\n" + textwrap.dedent(PASSING))
    outcome = made_up.run()
    assert outcome.status == 2
    assert "has no attribute 'Process'" in outcome.output


def test_sabotage_finds_a_script_that_does_not_use_scaleout(made_up: MadeUp) -> None:
    made_up.write("suite.py", SUITE.format(upstream="made_up_upstream", first=1, probe=None))
    made_up.upstream("""
        import subprocess
        class Script(unittest.TestCase):
            def test_uses(self):
                subprocess.run([sys.executable, "-c", "from multiprocessing import Pool"], check=True)
            def test_does_not(self):
                subprocess.run([sys.executable, "-c", "pass"], check=True)
        class Counts(unittest.TestCase):
            def test_x(self): multiprocessing.Pool(1)
    """)
    assert made_up.run().status == 0
    outcome = made_up.run("--sabotage")
    assert outcome.status == 1
    assert "FALSE PASS made-up: Script.test_does_not" in outcome.output
    assert "test_uses passes" not in outcome.output
    assert "test_x passes" not in outcome.output


@pytest.mark.parametrize(
    ("probe", "complaint"),
    [
        ("print('multiprocessing.pool.Pool x')", "gets another: multiprocessing.pool.Pool x"),
        ("import sys; print('scaleout.Pool', sys.flags.isolated)", "Install the project"),
        ("import scaleout.no_such", "does not work here"),
    ],
)
def test_scripts_must_get_our_class_in_isolated_mode(made_up: MadeUp, probe: str, complaint: str) -> None:
    made_up.upstream(PASSING)
    made_up.write("suite.py", SUITE.format(upstream="made_up_upstream", first=2, probe=probe))
    outcome = made_up.run()
    assert outcome.status == 2
    assert complaint in outcome.output
    made_up.write("suite.py", SUITE.format(upstream="made_up_upstream", first=2, probe="print('scaleout.Pool x')"))
    assert made_up.run().status == 0


def test_k_selects_and_says_when_nothing_matches(made_up: MadeUp) -> None:
    made_up.upstream(PASSING + "    def test_wrong(self): self.fail()\n")
    outcome = made_up.run("-k", "test_pool")
    assert outcome.status == 0
    assert outcome.result is not None
    assert outcome.result.not_run == 1
    assert made_up.run("-k", "no_such").status == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from multiprocessing import Pool, Lock", "from scaleout.multiprocessing import Pool, Lock"),
        ("    from multiprocessing.pool import Pool", "    from scaleout.multiprocessing.pool import Pool"),
        ("import multiprocessing", "from scaleout import multiprocessing"),
        ("import multiprocessing  # why", "from scaleout import multiprocessing  # why"),
        ("import multiprocessing as mp", "import scaleout.multiprocessing as mp"),
        ("import multiprocessing.pool", "import scaleout.multiprocessing.pool; from scaleout import multiprocessing"),
        ("import multiprocessing.heap", "import multiprocessing.heap"),  # scaleout has none: the stdlib's
        ("import multiprocessing_other", "import multiprocessing_other"),
        ("# multiprocessing includes shenanigans", "# multiprocessing includes shenanigans"),
        ("say import multiprocessing", "say import multiprocessing"),
    ],
)
def test_script_lines(line: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirect, "our_module", {"": "yes", ".pool": "yes"}.get)
    assert redirect.rewrite_script(f"x = 1\n{line}\ny = 2") == f"x = 1\n{expected}\ny = 2"


def test_scripts_are_found_in_nested_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirect, "our_module", {"": "yes"}.get)
    source = "def f():\n  def g():\n    return '''if 1:\n  import multiprocessing\n'''\n  return g()"
    namespace: dict[str, object] = {}
    code = compile(source, "x", "exec")
    assert list(redirect.imports_left(code)) == ["import multiprocessing"]
    rewritten = redirect.rewrite_scripts(code)
    assert list(redirect.imports_left(rewritten)) == []
    exec(rewritten, namespace)
    assert namespace["f"]() == "if 1:\n  from scaleout import multiprocessing\n"  # type: ignore[operator]


def test_exclusions_are_parsed_with_versions(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text(
        "# comment\n\nA.test_x  -- because -- so\nA.test_y [>=3.13] -- fails: new\n"
        "A.test_z [nodes] -- files\nA.test_v [>=3.12] [nodes] -- both\n",
        encoding="utf-8",
    )
    assert parse_exclusions(path) == [
        Exclusion("A.test_x", "because -- so"),
        Exclusion("A.test_y", "fails: new", (3, 13)),
        Exclusion("A.test_z", "files", on_nodes_only=True),
        Exclusion("A.test_v", "both", (3, 12), on_nodes_only=True),
    ]
    path.write_text("A.test_x -- once\nA.test_x -- twice\n", encoding="utf-8")
    with pytest.raises(ExclusionError, match="excluded twice"):
        parse_exclusions(path)


def test_runs_of_several_pythons_merge_into_one_table(tmp_path: Path) -> None:
    good = SuiteResult("made-up", passed=["A.x", "A.y"], excluded={"B.x": "why"}, not_provided=["C.x"])
    bad = SuiteResult("made-up", failed={"A.x": "Traceback\nValueError: 1"}, passed=["A.y"])
    for name, result in (("3.11", good), ("3.13", bad)):
        report.write_json(report.Run(f"CPython {name}", [result]), tmp_path / f"{name}.json")
    report.write_json(report.Run("CPython 3.13", [good], nodes=2), tmp_path / "nodes.json")
    command = [sys.executable, "-m", "compat_tests", "report", "3.11.json", "3.13.json", "nodes.json", "-o", "table.md"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| made-up | CPython 3.11 | 4 | 2 | 0 | 1 | 1 |  |  |  |" in table
    assert "| made-up | CPython 3.13 | 2 | 1 | 1 | 0 | 0 | 2 | 0 | 1 |" in table
    assert "## CPython 3.13, workers on 2 nodes" in table
    assert "`A.x`: ValueError: 1" in table
    assert json.loads((tmp_path / "3.13.json").read_text())["python"] == "CPython 3.13"
