"""The process that runs tests: one class of one suite, started and watched by supervise.py.

``python -m compat_tests.runner SUITE_MODULE EVENTS --collect`` writes the ids of the installed tests;
``python -m compat_tests.runner SUITE_MODULE EVENTS TEST...`` runs the named tests of one class. EVENTS is a file to
which one JSON object per line is appended, so that the supervisor knows at any time which test is running.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compat_tests import evidence
from compat_tests.suite import CHILD, HERE, SCRIPT, Suite, load_suite

TIMEOUT_VARIABLE = "COMPAT_TESTS_TIMEOUT_S"


class EventLog:
    """Appends events, each in one write, so that a killed process leaves whole lines behind."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, **event: Any) -> None:
        """Append one event."""
        os.write(self._fd, (json.dumps(event) + "\n").encode())


class Recorder(unittest.TestResult):
    """Turns unittest's calls into events, and passes without evidence into failures."""

    def __init__(self, suite: Suite, log: EventLog, notes: evidence.Reader, timeout_s: float) -> None:
        super().__init__()
        self._suite = suite
        self._log = log
        self._notes = notes
        self._timeout_s = timeout_s
        self._class_made_ours = False
        self._outcome: tuple[str, str] | None = None
        self._in_test = False

    def arm(self) -> None:
        """(Re)start the clock after which the stacks of this process are printed."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=False)

    def startTest(self, test: unittest.TestCase) -> None:
        self.arm()
        # What was made before a class's first test was made in its setUpClass.
        self._class_made_ours |= any(note.event == "made" for note in self._notes.new_notes())
        self._outcome = None
        self._in_test = True
        self._log.write(event="start", test=test_id(test))

    def stopTest(self, test: unittest.TestCase) -> None:
        notes = self._notes.new_notes()
        status, detail = self._outcome or ("passed", "")
        if status == "passed":
            detail = self._missing_evidence(test_id(test), notes)
            status = "failed" if detail else "passed"
        self._log.write(event="done", test=test_id(test), status=status, detail=detail)
        self._in_test = False
        self.arm()

    def _missing_evidence(self, test: str, notes: list[evidence.Note]) -> str:
        theirs = [note.where for note in notes if note.event == "theirs"]
        if theirs:
            return f"false pass: constructed the standard library's class ({theirs[0]})"
        counted = self._suite.counted_as(test)
        kind = counted.evidence if counted else SCRIPT
        if kind == HERE and not self._class_made_ours and not any(note.event == "made" for note in notes):
            return "false pass: scaleout's class was never constructed"
        if kind == CHILD and not any(note.event == "finished" and note.pid != os.getpid() for note in notes):
            return "false pass: no child process finished its work with scaleout's class (see its traceback on stderr)"
        return ""

    def _record(self, test: Any, status: str, detail: str) -> None:
        if isinstance(test, unittest.TestCase) and self._in_test:
            if self._outcome is None or (status == "failed" and self._outcome[0] != "failed"):
                self._outcome = (status, detail)  # of several failures, the first
        else:  # setUpClass, tearDownClass, setUpModule, tearDownModule
            self._log.write(event="fixture", name=str(test), status=status, detail=detail)

    def addError(self, test: Any, err: Any) -> None:
        self._record(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        self._record(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        pass

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._record(test, "failed", "unexpected success")


def test_id(test: unittest.TestCase) -> str:
    """``Class.test``, without the module: stable over Python versions and over where the module is loaded."""
    return ".".join(test.id().split(".")[-2:])


def leaves(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The test cases in a tree of suites, in order."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from leaves(test)
        else:
            yield test


def load_tests_of(suite: Suite) -> list[unittest.TestCase]:
    """All tests of a suite's redirected module."""
    module = importlib.import_module(suite.module)
    return list(leaves(unittest.defaultTestLoader.loadTestsFromModule(module)))


def environment_altered() -> bool:
    """Whether a test left processes or threads behind, by CPython's own gate."""
    try:
        from test import support  # type: ignore[import-not-found]
    except ModuleNotFoundError:  # a suite that brings no CPython tests
        return False
    return bool(support.environment_altered)


def main(arguments: list[str]) -> int:
    """Collect or run; the exit status says only whether this process came to its end."""
    suite_module, events_path, *tests = arguments
    log = EventLog(Path(events_path))
    faulthandler.enable()
    timeout_s = float(os.environ[TIMEOUT_VARIABLE])
    faulthandler.dump_traceback_later(timeout_s, exit=False)
    suite = load_suite(suite_module)
    cases = load_tests_of(suite)
    if tests == ["--collect"]:
        log.write(event="collected", tests=[test_id(case) for case in cases])
        return 0
    notes = evidence.Reader(Path(os.environ[evidence.FILE_VARIABLE]))
    recorder = Recorder(suite, log, notes, timeout_s)
    wanted = set(tests)
    selected = unittest.TestSuite(case for case in cases if test_id(case) in wanted)
    del cases  # TestSuite.run drops each case when it is done; nothing else may keep it
    selected.run(recorder)
    recorder.arm()
    if any(counted is None or counted.evidence != SCRIPT for counted in map(suite.counted_as, tests)):
        notes.check_nodes(log.write)
    log.write(event="end", altered=environment_altered())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
