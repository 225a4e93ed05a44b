"""Tasks and methods that stream: references while they still yield, back-pressure, and what ends them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, note, notes, wait_until

import scaleout
from scaleout import errors
from scaleout._runtime.base.limits import STREAM_AHEAD

numpy = pytest.importorskip("numpy")


@scaleout.remote
def count(log: str, end: int, fault_at: int = -1, fault: Fault | None = None) -> Iterator[int]:
    for number in range(end):
        if number == fault_at and fault is not None:
            fault.strike()
        note(log, number)
        yield number


@scaleout.remote
class Source:
    def count(self, end: int) -> Iterator[int]:
        yield from range(end)

    def endless(self, log: str) -> Iterator[int]:
        number = 0
        while True:
            note(log, number)
            yield number
            number += 1

    def one(self) -> int:
        return 1


@scaleout.remote
class AsyncSource:
    async def count(self, end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    async def endless(self, log: str) -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                note(log, number)
                yield number
                number += 1
        finally:
            note(log, "closed")

    async def one(self) -> int:
        return 1


def values(stream: Any) -> list[Any]:
    return [scaleout.get(ref) for ref in stream]


@pytest.mark.parametrize("end", [0, 1, STREAM_AHEAD - 1, STREAM_AHEAD, STREAM_AHEAD + 1, 500])
def test_a_generator_streams(end: int, tmp_path: Path) -> None:
    assert values(count.remote(str(tmp_path / "log"), end)) == list(range(end))


def test_a_function_that_gives_an_iterable_may_stream() -> None:
    assert values(scaleout.remote(num_returns="streaming")(lambda: [1, 2, 3]).remote()) == [1, 2, 3]
    with pytest.raises(TypeError, match="iterable"):
        values(scaleout.remote(num_returns="streaming")(lambda: 5).remote())


def test_a_generator_is_ahead_by_a_bound(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stream = count.remote(str(log), 1000)
    first = next(stream)
    wait_until(lambda: len(notes(log)) >= STREAM_AHEAD)
    assert scaleout.get(first) == 0
    for expected in range(1, 100):
        assert scaleout.get(next(stream)) == expected
        assert len(notes(log)) <= expected + STREAM_AHEAD + 2
    del stream


def test_items_are_taken_while_the_task_still_yields(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")

    @scaleout.remote
    def gated(path: str) -> Iterator[str]:
        yield "before"
        with open(path):
            pass
        yield "after"

    stream = gated.remote(str(tmp_path / "gate"))
    assert scaleout.get(next(stream)) == "before"
    with open(tmp_path / "gate", "w"):
        pass
    assert values(stream) == ["after"]
    with pytest.raises(StopIteration):
        next(stream)


def test_large_items_and_items_with_references() -> None:
    @scaleout.remote
    def arrays(end: int) -> Iterator[Any]:
        for number in range(end):
            yield [numpy.full(50_000, number), scaleout.put(number)]

    for position, (array, ref) in enumerate(values(arrays.remote(50))):
        assert (array == position).all()
        assert scaleout.get(ref) == position


def test_an_error_comes_after_what_was_yielded(tmp_path: Path) -> None:
    stream = count.remote(str(tmp_path / "log"), 10, 5, Fault("raise", tmp_path))
    found = [scaleout.get(next(stream)) for _ in range(5)]
    with pytest.raises(ValueError, match="struck"):
        scaleout.get(next(stream))
    assert found == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(stream)


def test_an_item_that_does_not_pickle() -> None:
    @scaleout.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()
        yield 2

    stream = locks.remote()
    assert scaleout.get(next(stream)) == 1
    with pytest.raises(Exception, match="lock"):
        scaleout.get(next(stream))


@pytest.mark.parametrize("kind", ["_exit", "kill"])
def test_a_dead_workers_stream_goes_on(kind: str, tmp_path: Path) -> None:
    """Also: the next worker did not know how far the consumer was, and waited for ever."""
    stream = count.remote(str(tmp_path / "log"), 200, 60, Fault(kind, tmp_path, times=2))
    assert values(stream) == list(range(200))


def test_a_dead_workers_stream_without_retries(tmp_path: Path) -> None:
    stream = count.options(max_retries=0).remote(str(tmp_path / "log"), 10, 3, Fault("kill", tmp_path))
    assert [scaleout.get(next(stream)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(errors.WorkerDiedError):
        scaleout.get(next(stream))
    assert list(stream) == []


def test_a_stream_that_is_retried(tmp_path: Path) -> None:
    flaky = count.options(retry_exceptions=True)
    assert values(flaky.remote(str(tmp_path / "log"), 150, 60, Fault("raise", tmp_path, times=2))) == list(range(150))


def test_a_stream_that_is_dropped_half_consumed(one_slot: None, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for taken in (0, 1, 50):
        stream = count.remote(log, 1_000_000)
        assert [scaleout.get(next(stream)) for _ in range(taken)] == list(range(taken))
        del stream
        assert scaleout.get(scaleout.remote(lambda: "free").remote(), timeout=20) == "free"


def test_async_for(tmp_path: Path) -> None:
    async def main() -> list[int]:
        return [await ref async for ref in count.remote(str(tmp_path / "log"), 100)]

    assert asyncio.run(main()) == list(range(100))


def test_many_streams_that_wait_at_a_time() -> None:
    @scaleout.remote
    class Sources:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def one(self, number: int) -> Any:
            await self.event.wait()
            yield number

        async def open(self) -> None:
            self.event.set()

    async def main() -> list[int]:
        sources = Sources.remote()
        waiting = [asyncio.ensure_future(anext(sources.one.remote(number))) for number in range(100)]
        await asyncio.sleep(0)
        await sources.open.remote()
        return [await ref for ref in await asyncio.gather(*waiting)]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == list(range(100))


def test_a_stream_that_is_closed(one_slot: None, tmp_path: Path) -> None:
    stream = count.remote(str(tmp_path / "log"), 1_000_000)
    assert scaleout.get(next(stream)) == 0
    stream.close()
    stream.close()
    assert next(stream, None) is None
    assert scaleout.get(scaleout.remote(lambda: "free").remote(), timeout=20) == "free"


def test_a_stream_cannot_be_pickled(tmp_path: Path) -> None:
    stream = count.remote(str(tmp_path / "log"), 1)
    with pytest.raises(TypeError, match="pass the references"):
        scaleout.put(stream)
    assert values(stream) == [0]


def test_a_stream_inside_a_task(tmp_path: Path) -> None:
    @scaleout.remote
    def consume(log: str, end: int, enough: int) -> Any:
        found = []
        for ref in count.remote(log, end):
            found.append(scaleout.get(ref))
            if len(found) == enough:
                break
        return found

    assert scaleout.get(consume.remote(str(tmp_path / "a"), 200, 1000)) == list(range(200))
    assert scaleout.get(consume.remote(str(tmp_path / "b"), 100_000, 50)) == list(range(50))


def test_a_stream_for_which_there_are_no_resources(tmp_path: Path) -> None:
    with pytest.raises(errors.InfeasibleError, match="1000 CPU"):
        count.options(num_cpus=1000).remote("", 5)

    @scaleout.remote
    def consume() -> Any:
        return values(count.options(num_cpus=1000).remote("", 5))

    with pytest.raises(errors.InfeasibleError, match="1000 CPU"):
        scaleout.get(consume.remote(), timeout=20)


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 3}])
@pytest.mark.parametrize("source", [Source, AsyncSource])
def test_generator_methods(source: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """A stream that was dropped had killed its actor."""
    actor = source.options(**options).remote()
    assert values(actor.count.remote(200)) == list(range(200))
    log = tmp_path / "log"
    stream = actor.endless.remote(str(log))
    assert [scaleout.get(next(stream)) for _ in range(40)] == list(range(40))
    assert len(notes(log)) <= 40 + STREAM_AHEAD + 2
    del stream
    assert scaleout.get(actor.one.remote(), timeout=20) == 1
    assert values(actor.count.remote(50)) == list(range(50))
    if source is AsyncSource:
        wait_until(lambda: notes(log)[-1] == "closed")


def test_a_stream_of_an_actor_that_dies() -> None:
    @scaleout.remote
    class Dies:
        def count(self) -> Iterator[int]:
            yield 1
            os._exit(3)

    stream = Dies.remote().count.remote()
    assert scaleout.get(next(stream)) == 1
    with pytest.raises(errors.ActorDiedError, match="Dies"):
        scaleout.get(next(stream))


def test_an_endless_stream_at_shutdown(tmp_path: Path) -> None:
    stream = count.remote(str(tmp_path / "log"), 1_000_000)
    next(stream)
    scaleout.shutdown()
    with pytest.raises(errors.SessionClosedError):
        while True:
            scaleout.get(next(stream))


def test_a_producer_that_is_far_ahead_gives_its_slot_back(one_slot: None) -> None:
    """Its consumer may be a task that needs it."""

    @scaleout.remote(num_cpus=1)
    class Needy:
        def double(self, number: int) -> int:
            return number * 2

    @scaleout.remote(num_returns="streaming")
    def produce(end: int) -> Iterator[int]:
        yield from range(end)

    @scaleout.remote
    def consume(end: int) -> list[int]:
        stream = produce.remote(end)
        first = scaleout.get(next(stream))
        actor = Needy.remote()
        doubled = [scaleout.get(actor.double.remote(first))]
        return doubled + [scaleout.get(actor.double.remote(scaleout.get(ref))) for ref in stream]

    end = STREAM_AHEAD * 3
    assert scaleout.get(consume.remote(end), timeout=60) == [number * 2 for number in range(end)]
