"""What becomes of a call when something goes wrong in one of its phases: every way to fail, in every phase, for every
kind of call, with the outcome that the table of `docs/architecture.md` names.

In each cell: nothing hangs, the other items' results arrive, the error names the item, the pool works afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from typing import Any

import pytest
from faults import EXIT_CODE, Fault, Item, Work, killer_of_stopped, notes, state_of, wait_until

from scaleout.errors import InitializerError, ResultUnpicklingError, TaskUnpicklingError, WorkerDiedError
from scaleout.multiprocessing import Pool

COUNT = 7
POISON = 3
CHUNK = 2
CHUNK_OF_POISON = {2, 3}

DEATHS = {"_exit": EXIT_CODE, "kill": -signal.SIGKILL, "stop": -signal.SIGKILL}
KINDS = ["raise", "exit", *DEATHS]
CALLS = ["apply", "apply_in_turn", "map", "imap", "imap_unordered", "starmap_async"]
APPLIES = {"apply", "apply_in_turn"}  # errors of single calls name no item
IS_CHUNKED = {"map", "starmap_async"}

RAISED: dict[tuple[str, str], type[BaseException]] = {
    ("argument", "raise"): TaskUnpicklingError,
    ("argument", "exit"): TaskUnpicklingError,
    ("callable", "raise"): TaskUnpicklingError,
    ("callable", "exit"): TaskUnpicklingError,
    ("run", "raise"): ValueError,
    ("run", "exit"): WorkerDiedError,
    ("pickle", "raise"): MaybeEncodingError,
    ("pickle", "exit"): MaybeEncodingError,
    ("unpickle", "raise"): ResultUnpicklingError,
    ("unpickle", "exit"): ResultUnpicklingError,
}
CELLS = [
    (phase, kind)
    for phase in ("argument", "callable", "run", "pickle", "unpickle")
    for kind in KINDS
    if phase != "unpickle" or kind not in DEATHS  # that would be the driver's own death
]


class Outcome:
    """What a call gave: the values and the errors, of each item or of all together."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.errors: list[BaseException] = []


def run_call(pool: Any, call: str, function: Callable[[Item], Any], items: list[Item]) -> Outcome:
    outcome = Outcome()
    if call == "apply":
        results = [pool.apply_async(function, (item,)) for item in items]
        for result in results:
            take(outcome, result.get)
    elif call == "apply_in_turn":  # a thread that calls in turn talks to idle workers itself
        for item in items:
            take(outcome, lambda item=item: pool.apply(function, (item,)))
    elif call == "map":
        take(outcome, lambda: pool.map(function, items, chunksize=CHUNK))
    elif call == "starmap_async":
        called: list[Any] = []
        result = pool.starmap_async(
            function,
            [(item,) for item in items],
            chunksize=CHUNK,
            callback=lambda values: called.append(("callback", values)),
            error_callback=lambda error: called.append(("error_callback", error)),
        )
        take(outcome, result.get)
        assert called == (
            [("callback", outcome.values[0])] if outcome.values else [("error_callback", outcome.errors[0])]
        )
    else:
        results = iter(getattr(pool, call)(function, items))
        for _ in items:
            take(outcome, lambda: next(results))
        with pytest.raises(StopIteration):
            next(results)
    return outcome


def take(outcome: Outcome, get: Callable[[], Any]) -> None:
    try:
        outcome.values.append(get())
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is compared
        outcome.errors.append(error)


def check_others(call: str, outcome: Outcome) -> None:
    """All items but the poisoned one have their results, where a call gives results item by item."""
    others = [index for index in range(COUNT) if index != POISON]
    assert len(outcome.errors) == 1, outcome.errors
    if call in IS_CHUNKED:
        assert outcome.values == []
    elif call == "imap_unordered":
        assert sorted(outcome.values) == others
    else:
        assert outcome.values == others


def check_pool(pool: Any) -> None:
    """It works, with all its workers."""
    assert pool.map(abs, range(-5, 5), chunksize=1) == [abs(number) for number in range(-5, 5)]
    wait_until(lambda: [worker.is_alive() for worker in pool._pool] == [True, True], "two live workers")


def make_items(phase: str, fault: Fault) -> list[Item]:
    return [Item(i, phase, fault) if i == POISON else Item(i) for i in range(COUNT)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("phase", "kind"), CELLS)
def test_a_fault_that_stays(phase: str, kind: str, call: str, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path)
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        pool = stack.enter_context(Pool(2, max_retries=1))
        if phase == "callable":
            outcome = run_call(pool, call, Work(log, fault), [Item(i) for i in range(COUNT)])
        else:
            outcome = run_call(pool, call, Work(log), make_items(phase, fault))
        check_pool(pool)

    runs = Counter(notes(log))
    if phase == "callable":  # all of the call needs it
        assert outcome.values == []
        assert len(outcome.errors) == (1 if call in IS_CHUNKED else COUNT)
        assert runs == {}
    else:
        check_others(call, outcome)
        attempts = 2 if kind in DEATHS else 1
        for index in range(COUNT):
            if index == POISON:
                assert runs[str(index)] == (0 if phase == "argument" else attempts)
            elif call in IS_CHUNKED and index in CHUNK_OF_POISON:
                assert runs[str(index)] == (0 if phase == "argument" else attempts)
            else:
                assert runs[str(index)] == 1, f"neighbour {index} ran {runs[str(index)]} times"
    for error in outcome.errors:
        check_error(error, phase, kind, call)


def check_error(error: BaseException, phase: str, kind: str, call: str) -> None:
    if kind in DEATHS:
        assert type(error) is WorkerDiedError
        assert error.exitcode == DEATHS[kind]
        assert error.attempts == 2
        if call in APPLIES:
            assert error.item_index is None
        elif phase != "callable":
            if call not in IS_CHUNKED or phase == "run":
                assert error.item_index == POISON
            else:  # it died before or after the items ran: what is known is the chunk
                assert error.item_index in CHUNK_OF_POISON
            assert f"item {error.item_index} " in str(error)
        return
    assert type(error) is RAISED[phase, kind]
    if (phase, kind) == ("run", "raise"):
        assert str(error) == "the fault struck"
        assert type(error.__cause__).__name__ == "RemoteTraceback"
        assert "in strike" in str(error.__cause__)
    elif (phase, kind) == ("run", "exit"):
        assert isinstance(error, WorkerDiedError)
        assert error.exitcode == EXIT_CODE
        if call in IS_CHUNKED:
            assert error.item_index in CHUNK_OF_POISON
        else:
            assert error.item_index == (None if call in APPLIES else POISON)
    elif phase in ("argument", "callable", "unpickle"):
        assert type(error.__cause__) is (ValueError if kind == "raise" else SystemExit)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", DEATHS)
@pytest.mark.parametrize("phase", ["argument", "callable", "run", "pickle"])
def test_a_death_that_happens_once_costs_a_retry(phase: str, kind: str, call: str, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path, times=1)
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        pool = stack.enter_context(Pool(2, max_retries=1))
        if phase == "callable":
            outcome = run_call(pool, call, Work(log, fault), [Item(i) for i in range(COUNT)])
        else:
            outcome = run_call(pool, call, Work(log), make_items(phase, fault))
        check_pool(pool)
    assert outcome.errors == []
    values = outcome.values[0] if call in IS_CHUNKED else outcome.values
    assert sorted(values) == list(range(COUNT))
    assert call == "imap_unordered" or values == sorted(values)
    runs = Counter(notes(log))
    again = {POISON} if call not in IS_CHUNKED else CHUNK_OF_POISON
    for index in range(COUNT):
        ran_before_the_death = phase in ("run", "pickle") and index in again
        assert runs[str(index)] == (2 if ran_before_the_death else 1)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", DEATHS)
def test_without_retries_an_item_runs_at_most_once(kind: str, call: str, tmp_path: Path, log: Path) -> None:
    fault = Fault(kind, tmp_path, times=1)  # a second run would succeed, and show
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        pool = stack.enter_context(Pool(2, max_retries=0))
        outcome = run_call(pool, call, Work(log), make_items("run", fault))
        check_pool(pool)
    check_others(call, outcome)
    (error,) = outcome.errors
    assert type(error) is WorkerDiedError
    assert error.attempts == 1
    assert set(Counter(notes(log)).values()) == {1}


@pytest.mark.parametrize("call", CALLS)
def test_by_default_an_item_is_started_four_times(call: str, tmp_path: Path, log: Path) -> None:
    with Pool(2) as pool:
        outcome = run_call(pool, call, Work(log), make_items("run", Fault("kill", tmp_path)))
        check_pool(pool)
    check_others(call, outcome)
    (error,) = outcome.errors
    assert type(error) is WorkerDiedError
    assert error.attempts == 4
    assert error.item_index == (None if call in APPLIES else POISON)
    assert Counter(notes(log))[str(POISON)] == 4


@pytest.mark.parametrize("call", ["apply", "imap"])
def test_three_deaths_are_survived_by_default(call: str, tmp_path: Path, log: Path) -> None:
    with Pool(2) as pool:
        outcome = run_call(pool, call, Work(log), make_items("run", Fault("_exit", tmp_path, times=3)))
    assert outcome.errors == []
    assert outcome.values == list(range(COUNT))


def test_a_poison_among_thousands_of_short_ones_costs_the_others_nothing(tmp_path: Path, log: Path) -> None:
    """They are prefetched behind it, and go to other workers uncharged, even with no retry to lose."""
    count = 3000
    items = [Item(i, "run", Fault("kill", tmp_path)) if i % 500 == 250 else Item(i) for i in range(count)]
    values, errors = [], []
    with Pool(2, max_retries=0) as pool:
        results = pool.imap(Work(log), items)
        for index in range(count):
            try:
                values.append(next(results))
            except WorkerDiedError as error:
                errors.append((index, error.item_index, error.attempts))
    assert errors == [(index, index, 1) for index in range(250, count, 500)]
    assert values == [index for index in range(count) if index % 500 != 250]
    assert set(Counter(notes(log)).values()) == {1}


def test_a_suspect_does_not_wait_for_a_long_task_elsewhere(tmp_path: Path, log: Path) -> None:
    """Its second attempt runs alone on its worker, not alone in the pool."""
    with Pool(2) as pool:
        release = tmp_path / "release"
        os.mkfifo(release)
        long = pool.apply_async(read_all, (release,))
        once = pool.apply_async(Work(log), (Item(0, "run", Fault("kill", tmp_path, times=1)),))
        assert once.get(30) == 0
        assert not long.ready()
        release.write_text("released")
        assert long.get(30) == "released"


def read_all(path: Path) -> str:
    return path.read_text()


def test_a_suspect_does_not_starve_behind_work_that_keeps_coming(tmp_path: Path, log: Path) -> None:
    with Pool(2) as pool:
        once = pool.apply_async(Work(log), (Item(0, "run", Fault("kill", tmp_path, times=1)),))
        pending = [pool.apply_async(abs, (-i,)) for i in range(200)]
        for i in range(20_000):  # there is always something ready
            pending.append(pool.apply_async(abs, (-i,)))
            pending.pop(0).get(30)
            if once.ready():
                break
        assert once.ready()
        assert once.get(30) == 0


# -- initializers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_initializer_that_keeps_failing(kind: str, call: str, tmp_path: Path, log: Path) -> None:
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        pool = stack.enter_context(Pool(2, Fault(kind, tmp_path).strike))
        outcome = run_call(pool, call, Work(log), [Item(i) for i in range(COUNT)])
        assert outcome.values == []
        assert {type(error) for error in outcome.errors} == {InitializerError}
        if kind in ("raise", "exit"):
            error = outcome.errors[0]
            assert "the fault struck" in str(error) if kind == "raise" else "SystemExit" in str(error)
            assert "in strike" in str(error.__cause__.__cause__)
        with pytest.raises(InitializerError):  # and so do later calls
            pool.apply(abs, (-1,))
    assert notes(log) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_initializer_that_fails_twice(kind: str, call: str, tmp_path: Path, log: Path) -> None:
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        pool = stack.enter_context(Pool(2, Fault(kind, tmp_path, times=2).strike))
        outcome = run_call(pool, call, Work(log), [Item(i) for i in range(COUNT)])
        check_pool(pool)
    assert outcome.errors == []


# -- idle workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["_exit", "kill", "stop"])
def test_idle_workers_that_die_are_replaced(kind: str, call: str, tmp_path: Path, log: Path) -> None:
    with Pool(2, max_retries=0) as pool:
        check_pool(pool)
        before = pool._pool
        for worker in before:
            pid = worker.pid
            if kind == "stop":
                os.kill(pid, signal.SIGSTOP)
                wait_until(lambda pid=pid: state_of(pid) == "T")
            os.kill(pid, signal.SIGTERM if kind == "_exit" else signal.SIGKILL)
        outcome = run_call(pool, call, Work(log), [Item(i) for i in range(COUNT)]) if kind != "_exit" else None
        if outcome is not None:
            assert outcome.errors == []
        for worker in before:
            worker.join(30)
            assert worker.exitcode == (-signal.SIGTERM if kind == "_exit" else -signal.SIGKILL)
        check_pool(pool)
        assert not set(before) & set(pool._pool)


def test_a_stopped_worker_is_as_if_dead_once_killed(tmp_path: Path, log: Path) -> None:
    """What was sent to it while it stood still, and what it had claimed before."""
    with Pool(1, max_retries=1) as pool:
        (worker,) = pool._pool
        pool.apply(abs, (1,))
        os.kill(worker.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(worker.pid) == "T")
        results = [pool.apply_async(Work(log), (Item(i),)) for i in range(5)]
        os.kill(worker.pid, signal.SIGKILL)
        assert [result.get(30) for result in results] == [0, 1, 2, 3, 4]
    assert Counter(notes(log)) == Counter("01234")


# -- what cannot be pickled, rebuilt or shown -------------------------------------------------------


class NeedsTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class CannotBeReduced(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle of me")


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words for me")


class ReprRaises(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no picture of me")


class BothRaise(StrRaises, ReprRaises):
    pass


class RaisesWhenRebuilt:
    """Rebuilding it raises an exception that cannot be shown."""

    def __reduce__(self) -> Any:
        return raise_instance_of, (BothRaise,)


class Unshowable:
    """Cannot be pickled, and showing that raises too."""

    def __reduce__(self) -> Any:
        raise BothRaise

    def __repr__(self) -> str:
        raise SystemExit(3)


def raise_instance_of(kind: type[BaseException], *arguments: Any) -> None:
    raise kind(*arguments)


def make(kind: Callable[..., Any], *arguments: Any) -> Any:
    return kind(*arguments)


def outcome_of(function: Callable[..., Any], *arguments: Any, callbacks: bool) -> BaseException:
    """The error of one call; also that the pool works afterwards and, with callbacks, what they were given."""
    with Pool(2) as pool:
        called: list[Any] = []
        if callbacks:
            result = pool.apply_async(
                function, arguments, callback=lambda value: called.append(None), error_callback=called.append
            )
        else:
            result = pool.apply_async(function, arguments)
        with pytest.raises(BaseException) as caught:
            result.get(30)
        assert called == ([caught.value] if callbacks else [])
        check_pool(pool)
        return caught.value


@pytest.mark.parametrize("callbacks", [False, True])
class TestOdd:
    def test_result_that_cannot_be_pickled(self, callbacks: bool) -> None:
        error = outcome_of(make, threading.Lock, callbacks=callbacks)
        assert type(error) is MaybeEncodingError
        assert "cannot pickle '_thread.lock' object" in str(error)
        assert "<unlocked _thread.lock object" in str(error)

    def test_result_that_can_neither_be_pickled_nor_shown(self, callbacks: bool) -> None:
        error = outcome_of(make, Unshowable, callbacks=callbacks)
        assert type(error) is MaybeEncodingError
        assert "Unshowable whose repr raised SystemExit" in str(error)

    def test_exception_whose_init_needs_arguments(self, callbacks: bool) -> None:
        error = outcome_of(raise_instance_of, NeedsTwo, 1, 2, callbacks=callbacks)
        assert type(error) is ResultUnpicklingError
        assert "second" in str(error)
        assert type(error.__cause__) is TypeError

    def test_exception_that_cannot_be_pickled(self, callbacks: bool) -> None:
        error = outcome_of(raise_instance_of, CannotBeReduced, callbacks=callbacks)
        assert type(error) is MaybeEncodingError
        assert "no pickle of me" in str(error)
        assert "CannotBeReduced" in str(error)

    @pytest.mark.parametrize("kind", [StrRaises, ReprRaises, BothRaise])
    def test_exception_that_cannot_be_shown(self, kind: type[BaseException], callbacks: bool) -> None:
        error = outcome_of(raise_instance_of, kind, 5, callbacks=callbacks)
        assert type(error) is kind
        assert error.args == (5,)

    def test_result_whose_rebuilding_raises_what_cannot_be_shown(self, callbacks: bool) -> None:
        error = outcome_of(make, RaisesWhenRebuilt, callbacks=callbacks)
        assert type(error) is ResultUnpicklingError
        assert type(error.__cause__) is BothRaise
        assert "BothRaise" in str(error)

    def test_argument_whose_rebuilding_raises_what_cannot_be_shown(self, callbacks: bool) -> None:
        error = outcome_of(abs, RaisesWhenRebuilt(), callbacks=callbacks)
        assert type(error) is TaskUnpicklingError
        assert type(error.__cause__) is BothRaise

    def test_exception_with_a_huge_message(self, callbacks: bool) -> None:
        error = outcome_of(raise_instance_of, ValueError, "x" * 20_000_000, callbacks=callbacks)
        assert type(error) is ValueError
        assert len(str(error)) == 20_000_000

    def test_exception_with_a_long_message_of_wide_characters(self, callbacks: bool) -> None:
        message = "\N{GRINNING FACE}" * 300_000
        error = outcome_of(raise_instance_of, ValueError, message, callbacks=callbacks)
        assert error.args == (message,)

    def test_keyboard_interrupt_raised_by_the_task(self, callbacks: bool) -> None:
        error = outcome_of(raise_instance_of, KeyboardInterrupt, callbacks=callbacks)
        assert type(error) is KeyboardInterrupt
        assert type(error.__cause__).__name__ == "RemoteTraceback"

    def test_generator_exit_raised_by_the_task(self, callbacks: bool) -> None:
        assert type(outcome_of(raise_instance_of, GeneratorExit, callbacks=callbacks)) is GeneratorExit

    def test_callable_that_cannot_be_pickled(self, callbacks: bool) -> None:
        lock = threading.Lock()
        error = outcome_of(lambda: lock.locked(), callbacks=callbacks)
        assert "lock" in str(error)


def test_an_exception_that_is_returned_is_a_value() -> None:
    with Pool(1) as pool:
        value = pool.apply(make, (ValueError, "as a value"))
        assert type(value) is ValueError


def test_exit_codes_of_system_exit(tmp_path: Path) -> None:
    """As `sys.exit` would end the process."""
    with Pool(1) as pool:
        for argument, exitcode in ((None, 0), (0, 0), (5, 5), ("message", 1)):
            with pytest.raises(WorkerDiedError) as caught:
                pool.apply(raise_instance_of, (SystemExit, argument))
            assert caught.value.exitcode == exitcode


def close_all_fds() -> None:
    os.closerange(3, 4096)


def write_garbage() -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(fd, b"\xff" * 64)
        except OSError:
            continue


@pytest.mark.parametrize("vandal", [close_all_fds, write_garbage])
def test_a_task_that_wrecks_its_workers_fds(vandal: Callable[[], None], tmp_path: Path) -> None:
    with Pool(2, max_retries=1) as pool:
        with pytest.raises(WorkerDiedError):
            pool.apply(vandal)
        check_pool(pool)


def test_work_left_at_close_is_retried(tmp_path: Path, log: Path) -> None:
    """Between close and join workers are still replaced, as long as there is work for them."""
    for workers in (1, 2):
        fault = Fault("kill", tmp_path, times=workers)
        with Pool(workers) as pool:
            result = pool.map_async(Work(log), make_items("run", fault), chunksize=1)
            pool.close()
            pool.join()
            assert result.get(30) == list(range(COUNT))
