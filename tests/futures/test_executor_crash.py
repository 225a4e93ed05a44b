"""The crash matrix for the executor: every way to fail in every phase, for futures and for `map`.

In each cell: nothing hangs, the other calls' results arrive, the executor works afterwards.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, EXIT_CODE, Fault, Item, Work, killer_of_stopped, notes, wait_until

from scaleout import errors
from scaleout.futures import ScaleoutExecutor

COUNT = 7
POISON = 3
CHUNK = 2

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
ALSO_BROKEN = (errors.TaskUnpicklingError, errors.ResultUnpicklingError, errors.WorkerDiedError)
CELLS = [
    (phase, kind)
    for phase in ("argument", "callable", "run", "pickle", "unpickle")
    for kind in KINDS
    if phase != "unpickle" or kind not in DEATHS  # that would be the driver's own death
]


@pytest.fixture
def stops(tmp_path: Path) -> Iterator[None]:
    with killer_of_stopped(tmp_path):
        yield


def outcomes_of(executor: Any, call: str, function: Callable[[Item], Any], items: list[Item]) -> list[Any]:
    """A value or an exception for each item; for `map`, up to the first exception."""
    if call == "submit":
        futures = [executor.submit(function, item) for item in items]
        assert wait(futures, DEADLINE_S).not_done == set()
        return [future.exception() or future.result() for future in futures]
    results = executor.map(function, items, chunksize=1 if call == "map" else CHUNK, timeout=DEADLINE_S)
    found: list[Any] = []
    try:
        for result in results:
            found.append(result)
    except BaseException as error:  # noqa: BLE001 - it is what is looked at
        found.append(error)
    return found


def check_usable(executor: Any) -> None:
    assert list(executor.map(abs, range(-5, 5))) == [abs(number) for number in range(-5, 5)]
    assert not executor._broken
    wait_until(lambda: [process.is_alive() for process in executor._processes.values()] == [True, True])


def make_items(phase: str, fault: Fault) -> list[Item]:
    return [Item(i, phase, fault) if i == POISON else Item(i) for i in range(COUNT)]


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("call", ["submit", "map", "chunked map"])
@pytest.mark.parametrize(("phase", "kind"), CELLS)
def test_a_fault_that_stays(phase: str, kind: str, call: str, tmp_path: Path) -> None:
    fault = Fault(kind, tmp_path)
    log = tmp_path / "runs"
    function = Work(log, fault if phase == "callable" else None)
    with ScaleoutExecutor(2, max_retries=1) as executor:
        found = outcomes_of(executor, call, function, make_items(phase, fault))
        expected = RAISED.get((phase, kind), errors.WorkerDiedError)
        if phase == "callable":
            failed = found if call == "submit" else found[:1]
        elif call == "submit":
            assert found[:POISON] + found[POISON + 1 :] == [i for i in range(COUNT) if i != POISON]
            failed = [found[POISON]]
        else:
            assert found[:-1] == list(range(POISON if call == "map" else POISON - POISON % CHUNK))
            failed = found[-1:]
        for error in failed:
            assert isinstance(error, expected), error
            assert isinstance(error, BrokenProcessPool) == issubclass(expected, ALSO_BROKEN)
            if isinstance(error, errors.WorkerDiedError):
                assert error.attempts == 2 and error.exitcode == DEATHS[kind]
                if call == "chunked map":
                    # Which item of a chunk it was is known where items are taken one by one.
                    assert error.item_index in ([POISON] if phase == "run" else [0, POISON - POISON % CHUNK])
        if phase in ("run", "unpickle") and call != "chunked map":  # once, but for the poisoned one: no more than twice
            runs = Counter(notes(log))
            assert all(count == 1 or (item == str(POISON) and count == 2) for item, count in runs.items()), runs
        check_usable(executor)


@pytest.mark.usefixtures("stops")
@pytest.mark.parametrize("phase", ["argument", "callable", "run", "pickle"])
@pytest.mark.parametrize("kind", DEATHS)
def test_a_death_that_happens_once_is_not_seen(phase: str, kind: str, tmp_path: Path) -> None:
    fault = Fault(kind, tmp_path, times=1)
    function = Work(tmp_path / "runs", fault if phase == "callable" else None)
    with ScaleoutExecutor(2) as executor:
        assert outcomes_of(executor, "submit", function, make_items(phase, fault)) == list(range(COUNT))
        check_usable(executor)


def test_idle_workers_that_die_are_replaced() -> None:
    with ScaleoutExecutor(2) as executor:
        for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
            wait([executor.submit(abs, -i) for i in range(50)], DEADLINE_S)
            before = executor._processes
            for process in before.values():
                process.kill() if signum == signal.SIGKILL else process.terminate()
            for process in before.values():
                process.join(DEADLINE_S)
                assert not process.is_alive() and process.exitcode is not None
            check_usable(executor)


def test_errors_pickle() -> None:
    import pickle

    from scaleout.futures.errors import WorkerDiedError

    error = pickle.loads(pickle.dumps(WorkerDiedError("died", attempts=2, exitcode=-9, item_index=None)))
    assert (str(error), error.attempts, error.exitcode) == ("died", 2, -9)


def test_at_most_once(tmp_path: Path) -> None:
    with ScaleoutExecutor(2, max_retries=0) as executor:
        log = tmp_path / "runs"
        items = make_items("run", Fault("kill", tmp_path))
        found = outcomes_of(executor, "submit", Work(log), items)
        assert isinstance(found[POISON], errors.WorkerDiedError) and found[POISON].attempts == 1
        assert Counter(notes(log)) == Counter(str(i) for i in range(COUNT))
        retried = executor.options(max_retries=2).submit(Work(log), Item(9, "run", Fault("kill", tmp_path)))
        assert isinstance(error := retried.exception(DEADLINE_S), errors.WorkerDiedError) and error.attempts == 3
