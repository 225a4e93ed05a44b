"""Run the tests of a suite in processes of their own, one class each, and never hang.

A test that exceeds its time is a failure: the stacks of its process (faulthandler) and of all its children (py-spy,
where installed) are printed, everything it started is killed, and the rest of its class runs in a new process.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat_tests import evidence
from compat_tests.runner import TIMEOUT_VARIABLE
from compat_tests.suite import Exclusion, Plan, Suite, load_suite, plan

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.05
STACKS_GRACE_S = 2.0  # after the runner's own clock has printed its stacks
LEFTOVER_LIMIT_S = 5.0  # for processes that notice by themselves that their parent is gone
OUTPUT_TAIL_CHARS = 12_000


class RunnerError(Exception):
    """A runner ended without doing what it was started for."""


@dataclass
class SuiteResult:
    """What a run of one suite found. ``excluded`` maps test to reason, ``failed`` maps test to detail."""

    name: str
    skipped: str = ""
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    not_provided: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # did not use scaleout, where that is no failure
    not_run: int = 0  # counted tests that -k deselected

    @property
    def is_regression(self) -> bool:
        """True when the exit status must not be 0."""
        return bool(self.failed or self.problems)

    @property
    def total(self) -> int:
        """All installed tests; fixtures and leftovers, which also appear in ``failed``, are not tests."""
        tests = [test for test in self.failed if "<" not in test]
        others = len(self.excluded) + len(self.not_provided) + len(self.unused) + self.not_run
        return len(self.passed) + len(tests) + others


@dataclass
class _RunnerEnd:
    """How one runner process ended."""

    done: dict[str, tuple[str, str]] = field(default_factory=dict)
    fixtures: list[tuple[str, str, str]] = field(default_factory=list)
    collected: list[str] | None = None
    running: str = ""  # the test that was running when the process ended, if any
    finished: bool = False
    altered: bool = False
    hung: str = ""
    exit_code: int | None = None
    leftovers: list[str] = field(default_factory=list)
    output: str = ""

    def take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self.running = event["test"]
        elif kind == "done":
            self.running = ""
            self.done[event["test"]] = (event["status"], event["detail"])
        elif kind == "fixture":
            self.fixtures.append((event["name"], event["status"], event["detail"]))
        elif kind == "collected":
            self.collected = event["tests"]
            self.finished = True
        elif kind == "end":
            self.finished = True
            self.altered = event["altered"]

    def story(self) -> str:
        how = self.hung or f"the process ended with status {self.exit_code}"
        return f"{how}\n{self.output[-OUTPUT_TAIL_CHARS:]}"


class Supervisor:
    """Runs suites with one set of options. `settings` are added to the environment of all that runs; with any, workers
    are those of a cluster's nodes."""

    def __init__(self, timeout_s: float, sabotage: bool, say: Callable[[str], None], settings: dict[str, str]) -> None:
        self._timeout_s = timeout_s
        self._sabotage = sabotage
        self._say = say
        self._settings = settings

    @property
    def is_on_nodes(self) -> bool:
        """Whether workers are those of a cluster's nodes."""
        return bool(self._settings)

    def collect(self, suite_module: str) -> list[str]:
        """The ids of the installed tests. Raises RunnerError when the suite cannot be loaded."""
        end = self._run_process(suite_module, ["--collect"])
        if end.collected is None:
            raise RunnerError(f"{suite_module}: cannot load the suite: {end.story()}")
        return end.collected

    def run_suite(self, suite_module: str, suite: Suite, wanted: Callable[[str], bool]) -> SuiteResult:
        """Run the counted tests that are ``wanted``, and those whose exclusion says that they fail."""
        sorted_tests = plan(suite, self.collect(suite_module), on_nodes=self.is_on_nodes)
        result = SuiteResult(suite.name, problems=list(sorted_tests.problems))
        result.not_provided = list(sorted_tests.not_provided)
        result.excluded = {exclusion.test: exclusion.reason for exclusion in sorted_tests.excluded}
        to_run = [test for test in sorted_tests.counted if wanted(test)]
        result.not_run = len(sorted_tests.counted) - len(to_run)
        for name, tests in itertools.groupby(sorted(to_run), key=lambda test: test.partition(".")[0]):
            self._run_class(suite_module, name, list(tests), result)
        if not self._sabotage:
            self._check_excluded(suite_module, sorted_tests, wanted, result)
            if suite.at_least is not None and len(result.passed) + result.not_run < suite.at_least:
                result.problems.append(
                    f"{len(result.passed)} tests use scaleout and pass, of {suite.at_least} at least"
                )
        return result

    def _check_excluded(
        self, suite_module: str, sorted_tests: Plan, wanted: Callable[[str], bool], result: SuiteResult
    ) -> None:
        for exclusion in sorted_tests.excluded:
            if exclusion.must_fail and wanted(exclusion.test) and self._passes(suite_module, exclusion):
                result.problems.append(f"{exclusion.test} is excluded as failing, but passes: remove the line")

    def _passes(self, suite_module: str, exclusion: Exclusion) -> bool:
        status, _ = self._run_process(suite_module, [exclusion.test]).done.get(exclusion.test, ("failed", ""))
        return status == "passed"

    def _run_class(self, suite_module: str, name: str, tests: list[str], result: SuiteResult) -> None:
        """Run ``tests`` of one class; after a hang or a crash, the rest of them in a new process."""
        started = time.monotonic()
        failed_before = len(result.failed)
        remaining = tests
        while remaining:
            end = self._run_process(suite_module, remaining)
            remaining = self._take_class_end(name, remaining, end, result)
        failed = list(result.failed)[failed_before:]
        self._say(f"  {name}: {len(tests)} run, {len(failed)} failed, {time.monotonic() - started:.1f} s")
        for test in failed:
            self._say(f"    FAILED {test}\n" + _indented(result.failed[test], 8))

    def _take_class_end(self, name: str, tests: list[str], end: _RunnerEnd, result: SuiteResult) -> list[str]:
        """Enter one runner's outcomes in ``result`` and return the tests that still have to run."""
        for test, (status, detail) in end.done.items():
            if status == "passed":
                result.passed.append(test)
            elif status == "unused":
                result.unused.append(test)
            else:
                result.failed[test] = f"{status}: {detail}" if status == "skipped" else detail
        if end.running:
            result.failed[end.running] = end.story()
            return [test for test in tests if test not in end.done and test != end.running]
        missing = [test for test in tests if test not in end.done]
        why = "; ".join(f"{fixture} {status}: {detail}" for fixture, status, detail in end.fixtures)
        for test in missing:
            result.failed[test] = f"not run: {why or end.story()}"
        if not missing:
            self._take_aftermath(name, end, why, result)
        return []

    def _take_aftermath(self, name: str, end: _RunnerEnd, fixtures: str, result: SuiteResult) -> None:
        """What went wrong around tests that all ran: fixtures, leaks, the end of the process."""
        if fixtures:
            result.failed[f"{name}.<fixtures>"] = fixtures
        if not end.finished or end.hung or end.exit_code != 0:
            result.failed[f"{name}.<exit>"] = end.story()
        if end.altered:
            result.failed[f"{name}.<environment>"] = f"test.support.environment_altered is set\n{end.output}"
        if end.leftovers:
            result.failed[f"{name}.<leftovers>"] = "processes left behind:\n" + "\n".join(end.leftovers)

    def _run_process(self, suite_module: str, arguments: list[str]) -> _RunnerEnd:
        with tempfile.TemporaryDirectory(prefix="compat-", ignore_cleanup_errors=True) as directory:
            return self._run_process_in(Path(directory), suite_module, arguments)

    def _run_process_in(self, directory: Path, suite_module: str, arguments: list[str]) -> _RunnerEnd:
        events = directory / "events"
        work = directory / "work"  # upstream writes files into the current directory
        work.mkdir()
        marker = str(directory / "evidence")  # also marks every process that the runner starts
        suite = load_suite(suite_module)
        environ = {**runner_environ(suite.first_on_path), **suite.environ, **self._settings}
        environ[evidence.FILE_VARIABLE] = marker
        environ[TIMEOUT_VARIABLE] = str(self._timeout_s)
        environ.pop(evidence.SABOTAGE_VARIABLE, None)
        if self._sabotage:
            environ[evidence.SABOTAGE_VARIABLE] = "1"
        end = _RunnerEnd()
        with (directory / "output").open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", suite.runner, suite_module, str(events), *arguments],
                cwd=work,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._watch(process, events, marker, end)
                if not end.hung:
                    end.leftovers = _wait_for_leftovers(process.pid, marker)
            finally:
                _kill_everything(process, marker)
            end.exit_code = process.returncode
            output.seek(0)
            end.output = output.read().decode("utf-8", "replace") + end.output
        return end

    def _watch(self, process: subprocess.Popen[bytes], events: Path, marker: str, end: _RunnerEnd) -> None:
        """Follow the events until the process ends or the current step exceeds its time."""
        tail = _Tail(events)
        deadline = time.monotonic() + self._timeout_s + STACKS_GRACE_S
        while True:
            is_over = process.poll() is not None  # before reading: what it wrote last must still be read
            for event in tail.new_events():
                end.take(event)
                deadline = time.monotonic() + self._timeout_s + STACKS_GRACE_S
            if is_over:
                return
            if time.monotonic() > deadline:
                step = end.running or ("interpreter exit" if end.finished else "a fixture or an import")
                end.hung = f"hung in {step}: no progress in {self._timeout_s:.0f} s"
                end.output = _stacks_of(pid for pid in _pids_of(process.pid, marker) if pid != process.pid)
                return
            time.sleep(POLL_S)


def runner_environ(first: Path | None = None) -> dict[str, str]:
    """The environment of runners: the harness importable, after whatever PYTHONPATH puts under test."""
    path = filter(None, [first and str(first), os.environ.get("PYTHONPATH"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class _Tail:
    """Reads the complete lines that were appended to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def _pids_of(session: int, marker: str) -> list[int]:
    """The live processes of a runner: same kernel session, or our marker in the environment (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(entry.name)
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            is_ours = os.getsid(pid) == session or os.fsencode(marker) in (entry / "environ").read_bytes()
        except (OSError, IndexError):
            continue  # it ended meanwhile, or is not ours to look at
        if is_ours and state != "Z":
            found.append(pid)
    return found


def _wait_for_leftovers(session: int, marker: str) -> list[str]:
    """Descriptions of the processes that are still there after a grace period."""
    deadline = time.monotonic() + LEFTOVER_LIMIT_S
    while pids := _pids_of(session, marker):
        if time.monotonic() > deadline:
            return [f"{pid}: {_command_line(pid)}" for pid in pids]
        time.sleep(POLL_S)
    return []


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:300]
    except OSError:
        return "(ended)"


def _kill_everything(process: subprocess.Popen[bytes], marker: str) -> None:
    for pid in {*_pids_of(process.pid, marker), *([process.pid] if process.poll() is None else [])}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _stacks_of(pids: Iterable[int]) -> str:
    """The stacks of some children, if py-spy is installed beside this Python or on PATH."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    py_spy = shutil.which("py-spy", path=search)
    texts = []
    for pid in itertools.islice(pids, 8):
        text = f"--- child {pid}: {_command_line(pid)}\n"
        if py_spy:
            try:
                dump = subprocess.run([py_spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=10)
                text += dump.stdout or dump.stderr
            except subprocess.TimeoutExpired:
                text += "(py-spy did not answer)\n"
        texts.append(text)
    return "\n".join(texts)


def _indented(text: str, width: int) -> str:
    return "\n".join(" " * width + line for line in text.rstrip().splitlines())
