"""Proof that a test used what it is meant to test: false passes are the worst defect of this harness.

In every process that loads redirected upstream code (the test process, and children that unpickle test functions),
the constructors of scaleout's class and of the stdlib class it replaces note each call in one file. A test counts as
passed only if the file shows ours constructed for it and the stdlib's never. In a sabotaged run our constructor
raises instead: what still passes then, proves nothing.

This watches classes; it does not replace or wrap objects that tests see.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not SCALEOUT_...: the library warns about settings that it does not know, on the stderr that tests compare.
FILE_VARIABLE = "COMPAT_TESTS_EVIDENCE"
SABOTAGE_VARIABLE = "COMPAT_TESTS_SABOTAGE"
NODES_VARIABLE = "COMPAT_TESTS_NODES"


class Sabotaged(Exception):
    """Raised by the watched class in a sabotaged run."""


@dataclass(frozen=True)
class Watch:
    """Which class must be constructed, and which must not."""

    ours: tuple[str, str]
    theirs: tuple[str, str] | None
    finished: str  # the method of ours whose return says that the object did its work
    made: str = "__init__"  # the method of ours whose call says that the test uses it


POOL = Watch(ours=("scaleout.multiprocessing.pool", "Pool"), theirs=("multiprocessing.pool", "Pool"), finished="join")
EXECUTOR = Watch(
    ours=("scaleout.futures.executor", "ScaleoutExecutor"),
    theirs=("concurrent.futures.process", "ProcessPoolExecutor"),
    finished="shutdown",
)
FUTURE = Watch(
    ours=("scaleout.futures.future", "ScaleoutFuture"), theirs=("concurrent.futures._base", "Future"), finished="result"
)
# joblib's own backends have their part in its tests. Asked for every Parallel call, also those with one job:
JOBLIB = Watch(
    ours=("scaleout.joblib_backend.backend", "ScaleoutBackend"),
    theirs=None,
    finished="terminate",
    made="effective_n_jobs",
)
# Asked only when there is work for workers:
JOBLIB_WORK = Watch(
    ours=("scaleout.joblib_backend.backend", "ScaleoutBackend"), theirs=None, finished="terminate", made="submit"
)


@dataclass(frozen=True)
class Note:
    """One line of the evidence file."""

    event: str  # "made", "finished" or "theirs"; "relayed": a node was asked for a worker
    pid: int
    where: str


def install(watch: Watch) -> None:
    """Start noting in this process; does nothing outside a run of the harness, or when done before."""
    if FILE_VARIABLE not in os.environ:
        return
    ours = _class(watch.ours)
    theirs = _class(watch.theirs) if watch.theirs is not None else None
    if ours is not theirs:
        _wrap(ours, watch.made, "made", only=None)
        _wrap_finish(ours, watch.finished)
    if theirs is not None:
        _wrap(theirs, "__init__", "theirs", only=theirs)
    if NODES_VARIABLE in os.environ:
        _wrap(_class(("scaleout._runtime.cluster.fleet", "Fleet")), "fork", "relayed", only=None)


def _class(where: tuple[str, str]) -> type[Any]:
    found: type[Any] = getattr(importlib.import_module(where[0]), where[1])
    return found


def _wrap(cls: type[Any], name: str, event: str, only: type[Any] | None) -> None:
    original = cls.__dict__.get(name) or getattr(cls, name)
    if hasattr(original, "_noted_by_compat_tests"):
        return

    @functools.wraps(original)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if only is None or type(self) is only:
            _note(event)
            if event == "made" and os.environ.get(SABOTAGE_VARIABLE):
                raise Sabotaged(f"{cls.__module__}.{cls.__qualname__} is sabotaged in this run")
        return original(self, *args, **kwargs)

    noted._noted_by_compat_tests = True  # type: ignore[attr-defined]
    setattr(cls, name, noted)


def _wrap_finish(cls: type[Any], name: str) -> None:
    original = getattr(cls, name)
    if hasattr(original, "_noted_by_compat_tests"):
        return

    @functools.wraps(original)
    def finish(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _note("finished")
        return result

    finish._noted_by_compat_tests = True  # type: ignore[attr-defined]
    setattr(cls, name, finish)


def _note(event: str) -> None:
    frames = [frame for frame in traceback.extract_stack(limit=8) if frame.filename != __file__]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    line = json.dumps({"event": event, "pid": os.getpid(), "where": where}) + "\n"
    fd = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


class Reader:
    """Reads the notes that were added since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._was_made = self._was_relayed = False

    def new_notes(self) -> list[Note]:
        """The notes of all processes since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        notes = [Note(**json.loads(line)) for line in complete.splitlines()]
        self._was_made |= any(note.event == "made" for note in notes)
        self._was_relayed |= any(note.event == "relayed" for note in notes)
        return notes

    def check_nodes(self, fail: Callable[..., None]) -> None:
        """At the end: where workers should be those of a cluster's nodes, some node must have been asked for one."""
        self.new_notes()
        if NODES_VARIABLE in os.environ and self._was_made and not self._was_relayed:
            fail(event="fixture", name="nodes", status="failed", detail="false passes: no node was asked for a worker")
