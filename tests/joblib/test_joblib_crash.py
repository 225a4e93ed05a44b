"""The crash matrix for the joblib backend: every way to fail in every phase, in every manner to ask for the results.

In each cell: nothing hangs, the error is the one that docs/joblib.md names, no call runs more often than it may, and
the next call finds two workers.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults import EXIT_CODE, Fault, Item, Work, is_gone, kill, killer_of_stopped, note, notes, state_of, wait_until
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from meetings import meet
from programs import running

from scaleout.joblib_backend import errors

COUNT = 7
POISON = 3

DEATHS = {"_exit": EXIT_CODE, "kill": -signal.SIGKILL, "stop": -signal.SIGKILL}
KINDS = ["raise", "exit", *DEATHS]
RAISED: dict[tuple[str, str], type[BaseException]] = {
    ("argument", "raise"): errors.TaskUnpicklingError,
    ("argument", "exit"): errors.TaskUnpicklingError,
    ("callable", "raise"): errors.TaskUnpicklingError,
    ("callable", "exit"): errors.TaskUnpicklingError,
    ("run", "raise"): ValueError,
    ("run", "exit"): SystemExit,
    ("pickle", "raise"): ValueError,
    ("pickle", "exit"): SystemExit,
    ("unpickle", "raise"): errors.ResultUnpicklingError,
    ("unpickle", "exit"): errors.ResultUnpicklingError,
}
CELLS = [
    (phase, kind)
    for phase in ("argument", "callable", "run", "pickle", "unpickle")
    for kind in KINDS
    if phase != "unpickle" or kind not in DEATHS  # the driver's own death: below
]

ONE_BY_ONE: dict[str, Any] = {"batch_size": 1}
MANNERS: dict[str, dict[str, Any]] = {
    "list": ONE_BY_ONE,
    "managed": ONE_BY_ONE,
    "generator": {**ONE_BY_ONE, "return_as": "generator"},
    "unordered": {**ONE_BY_ONE, "return_as": "generator_unordered"},
    "batches": {"batch_size": 2, "pre_dispatch": "all"},
}
BATCH_OF_POISON = {2, 3}


@pytest.fixture
def stops(tmp_path: Path) -> Iterator[None]:
    with killer_of_stopped(tmp_path):
        yield


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def outcome_of(
    manner: str, function: Callable[[Item], Any], items: list[Item], **arguments: Any
) -> tuple[list[Any], BaseException | None]:
    """The values, and the error that ended the call. The same Parallel object works afterwards."""
    values: list[Any] = []
    raised = None
    with ExitStack() as stack:
        parallel = Parallel(n_jobs=2, backend="scaleout", **MANNERS[manner], **arguments)
        if manner == "managed":
            stack.enter_context(parallel)
        try:
            for value in parallel(delayed(function)(item) for item in items):
                values.append(value)
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            raised = error
        assert sorted(parallel(delayed(abs)(-i) for i in range(20))) == list(range(20))
    return values, raised


def make_items(phase: str, fault: Fault) -> list[Item]:
    return [Item(i, phase, fault) if i == POISON else Item(i) for i in range(COUNT)]


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize(("phase", "kind"), CELLS)
def test_a_fault_that_stays(phase: str, kind: str, manner: str, met: Any, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path)
    function = Work(log, fault if phase == "callable" else None)
    values, error = outcome_of(manner, function, make_items(phase, fault), max_retries=1)
    assert len(met(max_retries=1)) == 2

    expected = RAISED.get((phase, kind), errors.WorkerDiedError)
    assert type(error) is expected, error
    assert isinstance(error, BrokenProcessPool) == (expected.__module__ == errors.__name__)
    check_facts(error, phase, kind)

    if manner in ("list", "managed", "batches"):
        assert values == []
    elif manner == "generator":
        assert values == list(range(len(values))) and len(values) <= POISON
    else:
        assert len(set(values)) == len(values) and POISON not in values

    runs = Counter(notes(log))
    poisoned = BATCH_OF_POISON if manner == "batches" else {POISON}
    for index in range(COUNT):
        count = runs[str(index)]
        if phase == "callable":
            assert count == 0
        elif index in poisoned:
            assert count == (0 if phase == "argument" else 2 if kind in DEATHS else 1)
        else:
            assert count <= 1, f"neighbour {index} ran {count} times"


def check_facts(error: Any, phase: str, kind: str) -> None:
    if kind in DEATHS:
        assert isinstance(error, TerminatedWorkerError)
        assert (error.attempts, error.exitcode) == (2, DEATHS[kind])
    elif phase in ("argument", "callable", "unpickle"):
        assert type(error.__cause__) is (ValueError if kind == "raise" else SystemExit)
    elif kind == "raise":
        assert str(error) == "the fault struck"
        assert type(error.__cause__).__name__ == "_RemoteTraceback" and "in strike" in str(error.__cause__)
    else:
        assert error.code == EXIT_CODE


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("kind", DEATHS)
@pytest.mark.parametrize("phase", ["argument", "callable", "run", "pickle"])
def test_a_death_that_happens_once_is_not_seen(phase: str, kind: str, manner: str, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path, times=1)
    function = Work(log, fault if phase == "callable" else None)
    values, error = outcome_of(manner, function, make_items(phase, fault))
    assert error is None
    assert sorted(values) == list(range(COUNT))
    assert manner == "unordered" or values == sorted(values)
    again = BATCH_OF_POISON if manner == "batches" else {POISON}
    runs = Counter(notes(log))
    for index in range(COUNT):
        assert runs[str(index)] == (2 if phase in ("run", "pickle") and index in again else 1)


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("kind", DEATHS)
@pytest.mark.parametrize("manner", MANNERS)
def test_without_retries_a_call_runs_at_most_once(manner: str, kind: str, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path, times=1)  # a second run would succeed, and show
    _, error = outcome_of(manner, Work(log), make_items("run", fault), max_retries=0)
    assert isinstance(error, errors.WorkerDiedError) and error.attempts == 1
    assert set(Counter(notes(log)).values()) == {1}


def test_by_default_a_call_is_started_four_times(tmp_path: Path, log: Path) -> None:
    _, error = outcome_of("list", Work(log), make_items("run", Fault("kill", tmp_path)))
    assert isinstance(error, errors.WorkerDiedError) and error.attempts == 4
    assert Counter(notes(log))[str(POISON)] == 4


# -- initializers -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("manner", ["list", "generator", "unordered"])
def test_an_initializer_that_fails(manner: str, kind: str, met: Any, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path)
    parallel = Parallel(n_jobs=2, backend="scaleout", initializer=fault.strike, **MANNERS[manner])
    with pytest.raises(errors.InitializerError, match="its initializer failed") as caught:
        list(parallel(delayed(Work(log))(Item(i)) for i in range(COUNT)))
    assert isinstance(caught.value, BrokenProcessPool)
    if kind == "raise":
        assert "the fault struck" in str(caught.value)
    assert notes(log) == []
    assert len(met()) == 2


# -- idle workers -----------------------------------------------------------------------------------


def strike_later(directory: Path, fault: Fault) -> int:
    """A thread of the worker's strikes when the call is over; the pid."""

    def strike() -> None:
        wait_until((directory / "strike").exists)
        try:
            fault.strike()
        finally:
            note(directory / "outlived", os.getpid())

    threading.Thread(target=strike, daemon=True).start()
    return meet(directory / "workers", 2)


def strike_idle(kind: str, directory: Path) -> tuple[set[int], Any]:
    """Two workers that a fault struck while nothing ran, and the results of twenty calls made right then."""
    (directory / "workers").mkdir()
    arguments: dict[str, Any] = {"n_jobs": 2, "backend": "scaleout", "max_retries": 0, "batch_size": 1}
    pids = set(Parallel(**arguments)(delayed(strike_later)(directory, Fault(kind, directory)) for _ in range(2)))
    assert len(pids) == 2
    calls = [delayed(abs)(-i) for i in range(20)]
    if kind == "kill":
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids, Parallel(**arguments)(calls)
    if kind == "stop":
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda pid=pid: state_of(pid) == "T")
        results = Parallel(return_as="generator", **arguments)(calls)  # they are sent to workers that stand still
        for pid in pids:
            kill(pid)
        return pids, list(results)
    (directory / "strike").touch()
    if kind == "_exit":
        wait_until(lambda: all(is_gone(pid) for pid in pids))
    else:
        wait_until(lambda: len(notes(directory / "outlived")) == 2)
    return pids, Parallel(**arguments)(calls)


@pytest.mark.parametrize("kind", KINDS)
def test_idle_workers(kind: str, met: Any, tmp_path: Path) -> None:
    """Nothing of the next call is lost or charged, though its calls may be started only once."""
    pids, results = strike_idle(kind, tmp_path)
    assert results == list(range(20))
    if kind in DEATHS:
        wait_until(lambda: all(is_gone(pid) for pid in pids))
        assert met(max_retries=0).isdisjoint(pids)
    else:
        assert met(max_retries=0) == pids


# -- the driver -------------------------------------------------------------------------------------

DRIVER = """
    import sys
    from pathlib import Path
    import scaleout.joblib_backend
    from faults import Fault, Item, Work
    from joblib import Parallel, delayed

    kind, directory = sys.argv[1], Path(sys.argv[2])
    items = [Item(i, "unpickle", Fault(kind, directory)) if i == 3 else Item(i) for i in range(7)]
    Parallel(n_jobs=2, backend="scaleout")(delayed(Work(directory / "runs"))(item) for item in items)
"""


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("kind", DEATHS)
def test_a_driver_that_dies_while_it_unpickles_a_result(kind: str, tmp_path: Path) -> None:
    with running(DRIVER, tmp_path, kind, str(tmp_path)) as program:
        assert program.finish() == DEATHS[kind]
        assert program.stderr == ""
        program.check_nothing_left()
