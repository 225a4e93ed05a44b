"""`SCALEOUT_*` variables: what is accepted, what is refused and in which words, and that the README knows them all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from scaleout._runtime.base import settings as settings_module
from scaleout._runtime.base.settings import VARIABLES, Settings, cgroup_memory_bytes, usable_cpus, usable_memory_bytes
from scaleout.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent


def test_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings == Settings()
    assert settings.address == ""
    assert settings.num_cpus == usable_cpus() >= 1
    assert settings.max_retries == 3
    assert settings.store_bytes == usable_memory_bytes() * 3 // 10 > 0
    assert settings.spill_dir == ""
    assert settings.inline is False
    assert settings.idle_timeout_s == 10.0
    assert settings.max_processes == max(1024, 8 * settings.num_cpus)
    assert settings.prefetch == 64


def test_the_environment_of_the_process_is_not_read_behind_the_callers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEOUT_PREFETCH", "7")
    assert Settings.from_environ({}).prefetch == 64
    assert Settings.from_environ(os.environ).prefetch == 7


def test_max_processes_follows_the_number_of_cpus_that_was_set() -> None:
    assert Settings.from_environ({"SCALEOUT_NUM_CPUS": "1000"}).max_processes == 8000
    assert Settings.from_environ({"SCALEOUT_NUM_CPUS": "1000", "SCALEOUT_MAX_PROCESSES": "5"}).max_processes == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ADDRESS", "", ""),
        ("NUM_CPUS", "1", 1),
        ("NUM_CPUS", " 12 ", 12),
        ("NUM_CPUS", "1000000", 1_000_000),
        ("MAX_RETRIES", "0", 0),
        ("STORE_BYTES", "1", 1),
        ("STORE_BYTES", "300k", 300 * 1024),
        ("STORE_BYTES", "512M", 512 * 1024**2),
        ("STORE_BYTES", "2G", 2 * 1024**3),
        ("INLINE", "1", True),
        ("INLINE", "TRUE", True),
        ("INLINE", "off", False),
        ("INLINE", "0", False),
        ("IDLE_TIMEOUT_S", "0.25", 0.25),
        ("IDLE_TIMEOUT_S", "1e6", 1e6),
        ("MAX_PROCESSES", "1", 1),
        ("PREFETCH", "1", 1),
        ("PREFETCH", "1024", 1024),
    ],
)
def test_accepted(name: str, text: str, value: object) -> None:
    settings = Settings.from_environ({"SCALEOUT_" + name: text})
    found = getattr(settings, name.lower())
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_empty_and_blank_mean_the_default(variable: settings_module.Variable) -> None:
    assert Settings.from_environ({variable.name: ""}) == Settings.from_environ({variable.name: "  "}) == Settings()


COUNT_GARBAGE = ["-1", "+1", "1.0", "1e3", "1_0", "0x10", "two", "٣", "1 2", "9" * 5000, "1000001"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ADDRESS", "localhost"),
        ("ADDRESS", "embedded"),
        *[("NUM_CPUS", text) for text in ["0", *COUNT_GARBAGE]],
        *[("MAX_RETRIES", text) for text in COUNT_GARBAGE],
        *[
            ("STORE_BYTES", text)
            for text in ["0", "0G", "K", "1KB", "1.5G", "-1M", "30%", "1T", "9" * 40, "9" * 18 + "G"]
        ],
        *[("SPILL_DIR", text) for text in ["/nonexistent/scaleout", __file__]],
        *[("INLINE", text) for text in ["2", "y", "enable", "None"]],
        *[("IDLE_TIMEOUT_S", text) for text in ["0", "-1", "nan", "inf", "10s", "1000001"]],
        *[("MAX_PROCESSES", text) for text in ["0", *COUNT_GARBAGE]],
        *[("PREFETCH", text) for text in ["0", "1025", "many"]],
    ],
)
def test_refused_naming_variable_value_and_what_is_accepted(name: str, text: str) -> None:
    name = "SCALEOUT_" + name
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name: text})
    message = str(caught.value)
    accepts = next(variable.accepts for variable in VARIABLES if variable.name == name)
    assert message == f"{name}={text!r}: {accepts}"
    assert isinstance(caught.value, ValueError)


def test_an_address_is_a_host_and_a_port() -> None:
    assert Settings.from_environ({"SCALEOUT_ADDRESS": "head:7000"}).address == "head:7000"
    for text in ("head", "head:", ":7000", "head:0", "head:65536", "head:x"):
        with pytest.raises(SettingsError, match=r"SCALEOUT_ADDRESS=.*HOST:PORT"):
            Settings.from_environ({"SCALEOUT_ADDRESS": text})


def test_the_token_is_in_no_settings() -> None:
    assert "sesame" not in repr(Settings.from_environ({"SCALEOUT_TOKEN": "sesame"}))


def test_spill_dir_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spill").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environ({"SCALEOUT_SPILL_DIR": "spill"}).spill_dir == str(tmp_path / "spill")


def test_an_unknown_variable_warns_once_and_names_near_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_warned_names", set())
    environ = {"SCALEOUT_NUM_CPU": "3", "SCALEOUT_PREFETCH": "9"}
    with pytest.warns(UserWarning, match="SCALEOUT_NUM_CPU is not a setting.*did you mean SCALEOUT_NUM_CPUS") as caught:
        assert Settings.from_environ(environ).prefetch == 9
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings.from_environ(environ)


def test_an_unknown_variable_like_no_other_is_told_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_warned_names", set())
    with pytest.warns(UserWarning, match="known are SCALEOUT_ADDRESS, .*SCALEOUT_PREFETCH"):
        Settings.from_environ({"SCALEOUT_QQQQQQQQQQQQQQQQQQQQ": "1"})


def test_what_is_internal_or_not_ours_is_left_alone() -> None:
    assert Settings.from_environ({"SCALEOUT_INTERNAL_WORKER": "1", "scaleout_x": "1", "PATH": "x"}) == Settings()


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(AttributeError, match="prefetch"):
        settings.prefetch = 3
    with pytest.raises(AttributeError, match="prefetch"):
        del settings.prefetch
    with pytest.raises(AttributeError):
        settings.anything = 3
    assert settings == Settings()


def test_keywords_replace_single_values_and_unknown_ones_are_named() -> None:
    assert Settings(prefetch=2).prefetch == 2
    assert Settings(prefetch=2) != Settings()
    assert Settings() != 1
    with pytest.raises(TypeError, match="'prefetsch'"):
        Settings(prefetsch=2)


def test_settings_travel_and_show_themselves() -> None:
    settings = Settings(prefetch=2, max_retries=1)
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert hash(copy) == hash(settings)
    assert "prefetch=2" in repr(copy)


def test_the_class_annotates_exactly_the_table() -> None:
    assert list(Settings.__annotations__) == [variable.field for variable in VARIABLES]
    defaults = Settings()
    for field, annotation in Settings.__annotations__.items():
        assert type(getattr(defaults, field)).__name__ == annotation


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_the_readme_has_a_row_for_each_variable(variable: settings_module.Variable) -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{variable.name}` |")]
    assert len(rows) == 1
    assert variable.default_text in rows[0]


def test_reading_settings_imports_nothing_slow() -> None:
    code = (
        "import os, sys; before = set(sys.modules)\n"
        "from scaleout._runtime.base.settings import Settings; Settings.from_environ({'SCALEOUT_STORE_BYTES': '1G'})\n"
        "print([name for name in set(sys.modules) - before if not name.startswith('scaleout')])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.strip() in ("[]", "['__future__']")


class TestMemoryLimit:
    @staticmethod
    def tree(tmp_path: Path, lines: str, files: dict[str, str]) -> int | None:
        proc = tmp_path / "cgroup"
        proc.write_text(lines)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cgroup_memory_bytes(str(proc), str(tmp_path / "mount"))

    def test_version_2_takes_the_smallest_of_all_ancestors(self, tmp_path: Path) -> None:
        files = {"a/memory.max": "1000\n", "a/b/memory.max": "max\n", "memory.max": "5000\n"}
        assert self.tree(tmp_path, "0::/a/b\n", files) == 1000

    def test_version_2_with_a_path_of_the_host(self, tmp_path: Path) -> None:
        assert self.tree(tmp_path, "0::/docker/0123\n", {"memory.max": "7000\n"}) == 7000

    def test_version_2_without_a_limit(self, tmp_path: Path) -> None:
        assert self.tree(tmp_path, "0::/\n", {"memory.max": "max\n"}) is None

    def test_version_1(self, tmp_path: Path) -> None:
        lines = "12:cpu,cpuacct:/x\n4:memory:/docker/a\n0::/\n"
        files = {
            "memory/docker/a/memory.limit_in_bytes": "4096\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
        assert self.tree(tmp_path, lines, files) == 4096

    def test_no_control_groups(self, tmp_path: Path) -> None:
        assert cgroup_memory_bytes(str(tmp_path / "missing"), str(tmp_path)) is None
