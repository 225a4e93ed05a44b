"""As runner.py, for suites that are written for pytest: same arguments, same events.

The suite's ``module`` is one of ours, with

    paths()                 what pytest is to collect
    enrol()                 called before collection
    keeps(item)             whether a collected test belongs to the suite
    around(item)            optional: a context manager, in which each test runs

A test's id is ``module.test[parameters]``, so all tests of one upstream file make up one "class", which has a process.
Evidence counts from any process: a nested call may use our backend in a worker of another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from compat_tests import evidence
from compat_tests.runner import TIMEOUT_VARIABLE, EventLog
from compat_tests.suite import Suite, load_suite

_WHITE_SPACE = re.compile(r"(?:\s|\\[nt])+")


class Recorder:
    """A pytest plugin that selects tests, and turns their reports into events."""

    def __init__(self, upstream: Any, suite: Suite, log: EventLog, wanted: set[str] | None, timeout_s: float) -> None:
        self._upstream = upstream
        self._may_be_unused = suite.at_least is not None
        self._log = log
        self._wanted = wanted  # None: only collect
        self._timeout_s = timeout_s
        self._notes = evidence.Reader(Path(os.environ[evidence.FILE_VARIABLE]))
        self._reports: list[pytest.TestReport] = []
        self.is_loaded = False

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._upstream.keeps(item)]
        ids = [test_id(item) for item in items]
        if len(ids) != len(set(ids)):
            raise ValueError("two tests have one id")
        self.is_loaded = True
        if self._wanted is None:
            self._log.write(event="collected", tests=ids)
            items.clear()
        else:
            items[:] = [item for item in items if test_id(item) in self._wanted]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(self._timeout_s, exit=False)
        self._notes.new_notes()
        self._reports.clear()
        self._log.write(event="start", test=test_id(item))
        try:
            return (yield)
        finally:
            status, detail = self._verdict()
            self._log.write(event="done", test=test_id(item), status=status, detail=detail)
            faulthandler.dump_traceback_later(self._timeout_s, exit=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        around = getattr(self._upstream, "around", None)
        with around(item) if around is not None else contextlib.nullcontext():
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def _verdict(self) -> tuple[str, str]:
        for report in self._reports:
            if report.failed:
                return "failed", report.longreprtext
        for report in self._reports:
            if report.skipped:  # or failed as expected, which is no pass either
                return ("unused", "") if self._may_be_unused else ("skipped", str(report.longrepr))
        if any(note.event == "made" for note in self._notes.new_notes()):
            return "passed", ""
        return ("unused", "") if self._may_be_unused else ("failed", "false pass: scaleout's backend was never used")


def test_id(item: pytest.Item) -> str:
    """Without white space, which parameters may contain, as such or as an escape."""
    name = _WHITE_SPACE.sub("_", item.nodeid.partition("::")[2])
    return f"{item.path.stem}.{name}"


def files_of(*modules: str) -> list[str]:
    """The files of installed modules."""
    return list(_files_of(modules))


def _files_of(modules: tuple[str, ...]) -> Iterator[str]:
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{module} is not installed", name=module)
        yield spec.origin


def main(arguments: list[str]) -> int:
    """Collect or run; the exit status says only whether this process came to its end."""
    suite_module, events_path, *tests = arguments
    log = EventLog(Path(events_path))
    faulthandler.enable()
    timeout_s = float(os.environ[TIMEOUT_VARIABLE])
    faulthandler.dump_traceback_later(timeout_s, exit=False)
    suite = load_suite(suite_module)
    upstream = importlib.import_module(suite.module)
    upstream.enrol()
    wanted = None if tests == ["--collect"] else set(tests)
    recorder = Recorder(upstream, suite, log, wanted, timeout_s)
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", os.getcwd(), "--basetemp", "basetemp"]
    pytest.main([*options, *upstream.paths()], plugins=[recorder])
    if not recorder.is_loaded:
        return 1
    if wanted is not None:
        evidence.Reader(Path(os.environ[evidence.FILE_VARIABLE])).check_nodes(log.write)
    log.write(event="end", altered=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
