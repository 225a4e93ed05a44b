"""os.fork() of a driver that has pools: the child starts afresh, the parent notices nothing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from faults import DEADLINE_S, is_gone, wait_until

from scaleout.errors import ForeignSessionError
from scaleout.multiprocessing import Pool

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # 3.12 warns of threads


def in_child(check: Callable[[], None]) -> None:
    """Run `check` in a fork of this process; fails with the child's traceback. The child leaves by os._exit."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read_end)
            signal.alarm(int(2 * DEADLINE_S))  # the hang guard's thread is not here
            check()
            code = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(write_end, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        error = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert (status, error) == (0, ""), error


def use_a_pool() -> None:
    with Pool(2) as pool:
        assert pool.map(abs, range(-5, 5), chunksize=1) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        assert pool.apply(os.getppid) != os.getppid()
    close_all()


def close_all() -> None:
    from scaleout._runtime import session

    session.close_idle()


def make_array(value: int) -> numpy.ndarray[Any, Any]:
    return numpy.full(300_000, value, dtype=numpy.int64)


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_the_child_uses_a_pool_of_its_own() -> None:
    with Pool(2) as pool:
        pool.map(abs, range(4), chunksize=1)
        in_child(use_a_pool)
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]


def test_the_child_of_a_process_whose_pools_are_closed() -> None:
    """Its zygote is kept warm, and stays the parent's."""
    with Pool(1) as pool:
        pool.apply(abs, (1,))
    in_child(use_a_pool)
    with Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1


def test_the_parent_s_pool_is_refused() -> None:
    with Pool(2) as pool:
        pool.map(abs, range(4))
        calls: list[Callable[[], Any]] = [
            lambda: pool.apply(abs, (1,)),
            lambda: pool.apply_async(abs, (1,)),
            lambda: pool.map(abs, [1]),
            lambda: pool.imap(abs, [1]),
        ]

        def check() -> None:
            for call in calls:
                with pytest.raises(ForeignSessionError):
                    call()
            pool.close()
            with pytest.raises(ForeignSessionError):
                pool.join()
            pool.terminate()

        in_child(check)
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]


def test_results_of_the_parent_s_tasks_raise() -> None:
    with Pool(2) as pool:
        single = pool.apply_async(sleep, (0.3,))
        whole = pool.map_async(sleep, [0.2, 0.1], chunksize=1)
        lazy = pool.imap(sleep, [0.2, 0.1])

        def check() -> None:
            for wait in (single.get, single.wait, lambda: single.get(5), whole.get, lazy.next, lambda: next(lazy)):
                with pytest.raises(ForeignSessionError):
                    wait()
            assert not single.ready()

        in_child(check)
        assert (single.get(), whole.get(), list(lazy)) == (0.3, [0.2, 0.1], [0.2, 0.1])


def test_results_that_were_there_before_the_fork() -> None:
    with Pool(1) as pool:
        small = pool.apply_async(abs, (-1,))
        seen = pool.apply_async(make_array, (7,))
        unseen = pool.apply_async(make_array, (8,))
        assert seen.get()[0] == 7
        unseen.wait()
        small.wait()

        def check() -> None:
            assert small.get() == 1
            assert seen.get()[-1] == 7
            with pytest.raises(ForeignSessionError):
                unseen.get()

        in_child(check)
        assert unseen.get()[0] == 8


def test_arrays_of_the_parent_stay_valid_in_the_child() -> None:
    """Also when the parent drops them and their ranges would be used again."""
    go_read, go_write = os.pipe()
    with Pool(1) as pool:
        arrays = [pool.apply(make_array, (value,)) for value in range(5)]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(int(2 * DEADLINE_S))
                os.read(go_read, 1)
                code = 0 if all((array == value).all() for value, array in enumerate(arrays)) else 2
                arrays[0][:] = 99  # the child's own
                del arrays
                gc.collect()
            finally:
                os._exit(code)
        before = arrays[0].copy()
        arrays.clear()
        gc.collect()
        for value in range(100, 120):
            assert (pool.apply(make_array, (value,)) == value).all()
        os.write(go_write, b"x")
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert (before == 0).all()
    os.close(go_read)
    os.close(go_write)


def test_garbage_collection_in_the_child_leaves_the_parent_alone() -> None:
    pool = Pool(2)
    holder: list[Any] = [pool.apply_async(sleep, (0.1,)), pool.apply(make_array, (3,)), pool.imap(abs, iter(range(9)))]
    cycle: dict[str, Any] = {"pool": pool, "held": holder}
    cycle["self"] = cycle
    result = holder[0]
    values = holder[2]
    mine = holder[1]

    def check() -> None:
        nonlocal pool, holder, cycle, result, values, mine
        for name in ("self", "held", "pool"):
            cycle.pop(name, None)
        holder.clear()
        del pool, holder, cycle, result, values, mine
        gc.collect()

    in_child(check)
    assert result.get() == 0.1
    assert list(values) == list(range(9))
    assert (mine == 3).all()
    assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]
    pool.terminate()


@pytest.mark.parametrize("leaves", ["exit", "_exit", "kill", "exception"])
def test_the_child_s_end_leaves_the_parent_alone(leaves: str) -> None:
    with Pool(2) as pool:
        pending = pool.map_async(sleep, [0.02] * 20, chunksize=1)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=leave, args=(leaves,))
        child.start()
        child.join(DEADLINE_S)
        assert child.exitcode == {"exit": 3, "_exit": 4, "kill": -signal.SIGKILL, "exception": 1}[leaves]
        child.close()
        assert pending.get(DEADLINE_S) == [0.02] * 20
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]


def leave(how: str) -> None:
    if how == "exit":
        raise SystemExit(3)
    if how == "_exit":
        os._exit(4)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise ValueError("the traceback of this goes to /dev/null")


def test_a_multiprocessing_process_of_the_fork_context_with_its_own_pool() -> None:
    with Pool(2) as pool:
        pool.map(abs, range(4), chunksize=1)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=use_a_pool) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(DEADLINE_S)
            assert child.exitcode == 0
            child.close()
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]


def test_a_fork_inside_a_task() -> None:
    """A worker's child is no worker; it has a zygote of its own."""
    with Pool(1) as pool:
        assert pool.apply(fork_and_use_a_pool) == 0
        assert pool.apply(abs, (-1,)) == 1


def fork_and_use_a_pool() -> int:
    child = multiprocessing.get_context("fork").Process(target=use_a_pool)
    child.start()
    child.join(DEADLINE_S)
    assert child.exitcode is not None
    return child.exitcode


def test_forks_from_another_thread_in_the_middle_of_a_map() -> None:
    """At whatever point the reactor and the main thread are."""
    stop = threading.Event()
    errors: list[BaseException] = []
    count = 0

    def fork() -> None:
        nonlocal count
        try:
            while not stop.is_set() and count < 12:
                in_child(use_a_pool)
                count += 1
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            errors.append(error)

    with Pool(2) as pool:
        thread = threading.Thread(target=fork)
        thread.start()
        try:
            while thread.is_alive():
                assert pool.map(abs, range(3000), chunksize=1) == list(range(3000))
                results = [pool.apply_async(abs, (-i,)) for i in range(200)]
                assert [result.get(DEADLINE_S) for result in results] == list(range(200))
                assert (pool.apply(make_array, (5,)) == 5).all()
        finally:
            stop.set()
            thread.join()
    assert errors == []
    assert count == 12


def test_a_child_that_outlives_its_parent_s_pool_does_not_keep_workers() -> None:
    read_end, write_end = os.pipe()
    with Pool(2) as pool:
        pids = [worker.pid for worker in pool._pool]
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]
        pool.close()
        pool.join()
    for worker in pids:
        wait_until(lambda worker=worker: is_gone(worker))
    os.close(read_end)
    os.close(write_end)
    os.waitpid(pid, 0)
