"""`ActorPool` and `Queue`."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, wait_until

import scaleout
from scaleout import errors
from scaleout.util import ActorPool, Empty, Full, Queue


@scaleout.remote
class Doubler:
    def double(self, value: int) -> int:
        return 2 * value

    def fail(self, value: int) -> int:
        if value % 2:
            raise ValueError(value)
        return value

    def strike_at(self, value: int, at: int, fault: Fault) -> int:
        if value == at:
            fault.strike()
        return value

    def wait(self, path: str) -> str:
        with open(path):
            return path


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def test_map() -> None:
    pool = ActorPool([Doubler.remote(), Doubler.remote()])
    assert list(pool.map(double, range(50))) == [2 * value for value in range(50)]
    assert sorted(pool.map_unordered(double, range(50))) == [2 * value for value in range(50)]
    assert list(pool.map(double, [])) == []
    assert pool.has_free()


def test_one_by_one() -> None:
    pool = ActorPool([Doubler.remote()])
    assert not pool.has_next()
    for value in range(5):
        pool.submit(double, value)
    assert not pool.has_free()
    assert [pool.get_next() for _ in range(5)] == [0, 2, 4, 6, 8]
    for take in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(StopIteration):
            take()


def test_what_a_call_raises_comes_from_get_next() -> None:
    pool = ActorPool([Doubler.remote(), Doubler.remote()])
    for value in range(4):
        pool.submit(lambda actor, value: actor.fail.remote(value), value)
    assert pool.get_next() == 0
    with pytest.raises(ValueError, match="1"):
        pool.get_next()
    assert pool.get_next() == 2
    with pytest.raises(ValueError, match="3"):
        pool.get_next_unordered()


def test_timeouts_are_for_the_whole_wait(tmp_path: Path) -> None:
    """Each call that ended meanwhile had begun the time anew."""
    os.mkfifo(tmp_path / "gate")
    slow, quick = Doubler.remote(), Doubler.remote()
    pool = ActorPool([slow, quick])
    pool.submit(lambda actor, value: actor.wait.remote(value), str(tmp_path / "gate"))
    for value in range(3):
        pool.submit(double, value)
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        pool.get_next(timeout=0.2)
    assert sorted(pool.get_next_unordered(timeout=20) for _ in range(3)) == [0, 2, 4]
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05, ignore_if_timedout=True)
    assert not pool.has_next()
    with open(tmp_path / "gate", "w"):
        pass
    assert list(pool.map(double, range(4))) == [0, 2, 4, 6]


def test_push_and_pop() -> None:
    first, second = Doubler.remote(), Doubler.remote()
    pool = ActorPool([first])
    assert pool.pop_idle() == first
    assert pool.pop_idle() is None
    pool.submit(double, 1)
    pool.push(second)
    assert pool.get_next() == 2
    with pytest.raises(ValueError, match="already"):
        pool.push(second)


@pytest.mark.parametrize("unordered", [False, True])
def test_a_dead_actors_item_goes_to_another(unordered: bool, tmp_path: Path) -> None:
    pool = ActorPool([Doubler.remote() for _ in range(3)], refill=Doubler.remote)
    fault = Fault("_exit", tmp_path, times=3)
    run = pool.map_unordered if unordered else pool.map
    found = list(run(lambda actor, value: actor.strike_at.remote(value, 7, fault), range(20)))
    assert sorted(found) == list(range(20))
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]


def test_a_pool_without_refill_shrinks_and_then_says_so(tmp_path: Path) -> None:
    pool = ActorPool([Doubler.remote() for _ in range(3)])
    fault = Fault("kill", tmp_path, times=2)
    assert list(pool.map(lambda actor, value: actor.strike_at.remote(value, 3, fault), range(10))) == list(range(10))
    for_ever = Fault("kill", tmp_path)
    results = pool.map(lambda actor, value: actor.strike_at.remote(value, 0, for_ever), range(3))
    with pytest.raises(errors.ActorDiedError, match="Doubler"):
        next(results)
    with pytest.raises(errors.ActorDiedError, match="no actor is left"):
        next(pool.map(double, [1]))


# -- queues --------------------------------------------------------------------------------------


def test_a_queue_is_one() -> None:
    queue = Queue(maxsize=3)
    assert (queue.empty(), queue.full(), len(queue)) == (True, False, 0)
    for number in range(3):
        queue.put(number)
    assert (queue.empty(), queue.full(), queue.qsize()) == (False, True, 3)
    with pytest.raises(Full):
        queue.put_nowait(3)
    with pytest.raises(Full):
        queue.put(3, timeout=0.05)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.05)
    with pytest.raises(ValueError, match="non-negative"):
        queue.get(timeout=-1)


def test_batches_are_all_or_none() -> None:
    queue = Queue(maxsize=4)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full, match="2 items"):
        queue.put_nowait_batch([4, 5])
    assert queue.qsize() == 3
    with pytest.raises(Empty, match="4 items"):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get_nowait_batch(0) == []
    with pytest.raises(ValueError, match="num_items"):
        queue.get_nowait_batch(-1)


def test_a_queue_blocks_and_wakes() -> None:
    queue = Queue(maxsize=1)
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.extend(queue.get(timeout=30) for _ in range(10)))
    thread.start()
    for number in range(10):
        queue.put(number, timeout=30)
    thread.join()
    assert taken == list(range(10))


def test_a_queue_between_tasks() -> None:
    scaleout.init(num_cpus=2)
    queue, results = Queue(maxsize=5), Queue()

    @scaleout.remote
    def produce(queue: Queue, start: int) -> None:
        for number in range(start, start + 20):
            queue.put(number)

    @scaleout.remote
    def consume(queue: Queue, results: Queue, count: int) -> None:
        for _ in range(count):
            results.put(queue.get())

    refs = [consume.remote(queue, results, 20) for _ in range(2)]
    refs += [produce.remote(queue, start) for start in (0, 100)]
    scaleout.get(refs, timeout=60)
    assert sorted(results.get_nowait_batch(40)) == [*range(20), *range(100, 120)]


def test_the_async_twins() -> None:
    queue = Queue(maxsize=1)

    async def main() -> list[int]:
        async def produce() -> None:
            for number in range(5):
                await queue.put_async(number)

        producing = asyncio.create_task(produce())
        found = [await queue.get_async(timeout=30) for _ in range(5)]
        await producing
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.05)
        await queue.put_async(1)
        with pytest.raises(Full):
            await queue.put_async(2, timeout=0.05)
        return found

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_references_in_a_queue() -> None:
    queue = Queue()
    queue.put([scaleout.put("inside")])
    assert scaleout.get(queue.get()[0]) == "inside"


@pytest.mark.parametrize("force", [False, True])
def test_shutdown_of_a_queue(force: bool) -> None:
    queue = Queue(actor_options={"name": "line"})
    queue.put(1)
    queue.shutdown(force=force)
    with pytest.raises(errors.ActorDiedError, match="line"):
        queue.put(2)
    wait_until(lambda: scaleout.list_actors()[0]["state"] == "DEAD")
