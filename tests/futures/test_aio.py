"""`scaleout.futures.aio`: executors in asyncio programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, wait_until

from scaleout.futures import ScaleoutExecutor, aio


def run(program: Callable[[ScaleoutExecutor], Coroutine[Any, Any, Any]], workers: int = 2) -> Any:
    with ScaleoutExecutor(workers) as executor:
        return asyncio.run(asyncio.wait_for(program(executor), DEADLINE_S))


def fail(error: BaseException) -> None:
    raise error


def note_start(started: Path, release: Path) -> None:
    started.touch()
    wait_until(release.exists)


def test_await_a_future() -> None:
    async def program(executor: ScaleoutExecutor) -> Any:
        first = await executor.submit(abs, -1)
        many = await asyncio.gather(*(aio.wrap(executor.submit(abs, -i)) for i in range(100)))
        theirs = await asyncio.wrap_future(executor.submit(abs, -7))
        return first, many, theirs

    assert run(program) == (1, list(range(100)), 7)


def test_exceptions() -> None:
    async def program(executor: ScaleoutExecutor) -> None:
        with pytest.raises(KeyError):
            await executor.submit(fail, KeyError())
        with pytest.raises(RuntimeError, match="StopIteration"):
            await executor.submit(fail, StopIteration())

    run(program)


def test_a_cancelled_await_cancels_the_call(tmp_path: Path) -> None:
    async def program(executor: ScaleoutExecutor) -> bool:
        first = executor.submit(note_start, tmp_path / "started", tmp_path / "go")
        second = executor.submit(abs, 1)
        task = asyncio.ensure_future(aio.wrap(second))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (tmp_path / "go").touch()
        await first
        return second.cancelled()

    assert run(program, 1)


def test_a_cancelled_call_cancels_the_await(tmp_path: Path) -> None:
    async def program(executor: ScaleoutExecutor) -> None:
        first = executor.submit(note_start, tmp_path / "started", tmp_path / "go")
        second = executor.submit(abs, 1)
        awaited = aio.wrap(second)
        assert second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited
        (tmp_path / "go").touch()
        await first

    run(program, 1)


def test_results_that_come_together_wake_the_loop_once(tmp_path: Path) -> None:
    async def program(executor: ScaleoutExecutor) -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            return call_soon_threadsafe(*arguments, **keywords)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        futures = [executor.submit(abs, -i) for i in range(500)]
        awaited = [aio.wrap(future) for future in futures]
        while not all(future.done() for future in futures):
            time.sleep(0.001)  # the loop is busy
        assert await asyncio.gather(*awaited) == list(range(500))
        return calls

    assert run(program) <= 5


def test_a_closed_loop_hurts_nobody(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor:
        future = executor.submit(note_start, tmp_path / "started", tmp_path / "go")

        async def program() -> None:
            aio.wrap(future)

        asyncio.run(program())
        (tmp_path / "go").touch()
        assert future.result(DEADLINE_S) is None
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1


def test_map() -> None:
    async def program(executor: ScaleoutExecutor) -> list[int]:
        return [value async for value in aio.map(executor, pow, range(300), [2] * 300)]

    assert run(program) == [i * i for i in range(300)]


def test_map_is_bounded() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    async def program(executor: ScaleoutExecutor) -> None:
        results = aio.map(executor, abs, items(), buffersize=5)
        for i in range(20):
            assert await anext(results) == i
            assert taken == i + 5
        await results.aclose()  # type: ignore[attr-defined]

    run(program)
    assert taken == 24


def test_map_over_an_async_iterator() -> None:
    async def items() -> AsyncIterator[int]:
        for i in range(10):
            await asyncio.sleep(0)
            yield i

    async def program(executor: ScaleoutExecutor) -> list[int]:
        return [value async for value in aio.map(executor.options(timeout_s=10), pow, items(), iter(range(1, 100)))]

    assert run(program) == [i ** (i + 1) for i in range(10)]


def test_map_with_an_exception() -> None:
    async def program(executor: ScaleoutExecutor) -> list[int]:
        found = []
        with pytest.raises(ZeroDivisionError):
            async for value in aio.map(executor, divmod, [1, 2, 3, 4], [1, 1, 0, 1]):
                found.append(value[0])
        return found

    assert run(program) == [1, 2]


@pytest.mark.parametrize(("buffersize", "error"), [(0, ValueError), (1.5, TypeError)])
def test_map_refuses(buffersize: Any, error: type[Exception]) -> None:
    async def program(executor: ScaleoutExecutor) -> None:
        with pytest.raises(error):
            await anext(aio.map(executor, abs, [1], buffersize=buffersize))

    run(program)
