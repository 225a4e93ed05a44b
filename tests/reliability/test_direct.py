"""Direct calls: `Pool.apply` in turn, where the caller talks to the worker itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S
from test_interrupt import Alarm, check_usable, walk

from scaleout.errors import ResultUnpicklingError, SessionClosedError, WorkerDiedError
from scaleout.multiprocessing import Pool


def lend(pool: Any) -> None:
    """Call in turn until a worker is lent."""
    deadline = time.monotonic() + DEADLINE_S
    while not pool._group._group.lent:
        assert pool.apply(abs, (-1,)) == 1
        assert time.monotonic() < deadline


def kill_once(marker: str) -> str:
    if not os.path.exists(marker):
        with open(marker, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def test_calls_in_turn_become_direct_and_stay_right() -> None:
    with Pool(2) as pool:
        lend(pool)
        for number in range(300):
            assert pool.apply(divmod, (number, 7)) == divmod(number, 7)
        assert pool._group._group.lent


def test_failures_are_those_of_other_calls() -> None:
    with Pool(1) as pool:
        lend(pool)
        with pytest.raises(ZeroDivisionError) as caught:
            pool.apply(divmod, (1, 0))
        assert "Traceback" in str(caught.value.__cause__)
        with pytest.raises(TypeError):
            pool.apply(abs, (object(), threading.Lock()))
        lend(pool)
        assert pool.apply(abs, (-3,)) == 3


def test_large_results_and_new_functions_go_on_in_the_reactor() -> None:
    with Pool(1) as pool:
        lend(pool)
        assert pool.apply(bytes, (300_000,)) == bytes(300_000)
        lend(pool)
        assert pool.apply(lambda: "new") == "new"
        lend(pool)
        assert pool.apply(len, (b"x" * 300_000,)) == 300_000


def test_other_work_gets_the_lent_workers_back() -> None:
    with Pool(2) as pool:
        for _ in range(20):
            lend(pool)
            assert pool.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
            assert list(pool.imap(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_a_direct_call_does_not_hold_up_others() -> None:
    """Another thread's work gets the second worker, and the first as soon as the call is over."""
    with Pool(2) as pool:
        lend(pool)
        caller = threading.Thread(target=pool.apply, args=(time.sleep, (0.3,)))
        caller.start()
        assert pool.map(abs, range(-100, 0), chunksize=1) == list(range(100, 0, -1))
        caller.join()


def test_who_calls_without_a_pause_does_not_keep_a_worker_that_is_wanted() -> None:
    """The only worker is lent; between two calls of its borrower there is no time to take it back."""
    with Pool(1) as pool:
        lend(pool)
        other = pool.apply_async(abs, (-2,))
        for _ in range(100):  # as soon as the reactor has run once, the next goes behind `other`
            assert pool.apply(abs, (-1,)) == 1
        assert other.ready()


def test_sixteen_threads_call_in_turn() -> None:
    wrong = []

    def call(start: int) -> None:
        for number in range(start, start + 50):
            if pool.apply(abs, (-number,)) != number:
                wrong.append(number)

    with Pool(2) as pool:
        lend(pool)
        threads = [threading.Thread(target=call, args=(1000 * number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_death_is_charged_and_retried(max_retries: int, tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    with Pool(1, max_retries=max_retries) as pool:
        pool.apply(os.path.exists, (marker,))
        pool.apply(kill_once, (__file__,))  # both sides know the function, so the next call of it is direct
        lend(pool)
        if max_retries:
            assert pool.apply(kill_once, (marker,)) == "survived"
        else:
            with pytest.raises(WorkerDiedError) as caught:
                pool.apply(kill_once, (marker,))
            assert (caught.value.attempts, caught.value.exitcode) == (1, -signal.SIGKILL)
        check_usable(pool, "after the death")


def test_an_idle_lent_worker_that_is_killed_is_replaced() -> None:
    with Pool(1) as pool:
        lend(pool)
        first = pool._pool[0]
        first.kill()
        first.join(DEADLINE_S)
        assert pool.apply(abs, (-1,)) == 1
        assert pool._pool[0].pid != first.pid


def test_terminate_ends_a_direct_call() -> None:
    with Pool(1) as pool:
        pool.apply(time.sleep, (0,))
        lend(pool)
        caught: list[BaseException] = []

        def call() -> None:
            try:
                pool.apply(time.sleep, (1000,))
            except SessionClosedError as error:
                caught.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        while not pool._group._group.lent or pool._pool[0]._peer.line.claims.get("holder") is None:
            time.sleep(0)
        pool.terminate()
        caller.join(DEADLINE_S)
        assert len(caught) == 1


def test_close_takes_lent_workers_back() -> None:
    pool = Pool(2)
    lend(pool)
    pool.close()
    pool.join()


def test_a_recycled_pool_is_never_lent() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
        assert len(set(pids)) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Alarm])
def test_an_exception_at_every_opcode(kind: type[BaseException]) -> None:
    with Pool(1) as pool:

        def prepare() -> Any:
            lend(pool)
            return pool

        def check(pool: Any, where: str) -> None:
            check_usable(pool, where)
            for worker in pool._pool[:-1]:  # given up for the one that came in its place
                worker.join(DEADLINE_S)
            assert len(pool._pool) == 1, where

        def operate(pool: Any) -> Any:
            try:
                return pool.apply(abs, (-1,))
            except ResultUnpicklingError as error:  # struck while unpickling, and looks like a failure of that
                raise error.__cause__ or error from None

        # Each that strikes in the middle costs a worker, and 0.3 s until it is killed.
        assert walk(prepare, operate, check, 1, kind) > 20
