"""Executors under an asyncio program's event loop: gather, timeouts, cancellation, many calls, failures."""

from __future__ import annotations

from pathlib import Path

from outputs import EXAMPLES, output_of

HEAD = """
    import asyncio, time
    from concurrent.futures import BrokenExecutor, TimeoutError
    from scaleout.futures import ScaleoutExecutor, aio

    COUNT = 10_000

    def square(n):
        return n * n

    def inverse(n):
        return 1 / n

    def run(program):
        with ScaleoutExecutor(2) as executor:
            asyncio.run(program(asyncio, executor))
"""


def test_the_example_prints_the_same_on_both_executors(tmp_path: Path) -> None:
    example = EXAMPLES / "asyncio_tasks.py"
    stdout, stderr = output_of(example, tmp_path)
    common, _, added = stdout.partition("what scaleout adds:\n")
    assert common == output_of(example, tmp_path, "stdlib")[0]
    assert added.splitlines() == [
        "  a future can be awaited: 303",
        "  an async iterator of results: 4203",
        "  a call that ran for too long was ended",
    ]
    assert stderr == ""


def test_ten_thousand_calls(tmp_path: Path) -> None:
    program = """
    async def program(asyncio, executor):
        loop = asyncio.get_running_loop()
        squares = [n * n for n in range(COUNT)]
        assert await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(COUNT))) == squares
        assert await asyncio.gather(*(aio.wrap(executor.submit(square, n)) for n in range(COUNT))) == squares
        assert [value async for value in aio.map(executor, square, (n for n in range(COUNT)))] == squares
        calls = [loop.run_in_executor(executor, square, n) for n in range(COUNT)]
        assert sum([await call for call in asyncio.as_completed(calls)]) == sum(squares)

    run(program)
    """
    assert output_of(HEAD + program, tmp_path) == ("", "")


def test_failures_are_exceptions_of_the_await(tmp_path: Path) -> None:
    program = """
    import os

    async def program(asyncio, executor):
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, inverse, n) for n in (1, 0, 2)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert ends[0] == 1 and ends[2] == 0.5
        assert isinstance(ends[1], ZeroDivisionError) and "in inverse" in str(ends[1].__cause__)
        try:
            await loop.run_in_executor(executor.options(max_retries=0), os._exit, 3)
        except BrokenExecutor:
            pass
        assert await loop.run_in_executor(executor, inverse, 4) == 0.25

    run(program)
    """
    assert output_of(HEAD + program, tmp_path) == ("", "")


def test_timeouts_and_cancellation(tmp_path: Path) -> None:
    """A queued call that is cancelled, also by a timeout or by the failure of its task group, never runs."""
    program = """
    import os, sys, pathlib
    from functools import partial

    go, started = pathlib.Path("go"), pathlib.Path("started")

    def wait_for_go():
        while not go.exists():
            time.sleep(0.001)

    async def program(asyncio, executor):
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(executor, wait_for_go) for _ in range(2)]
        try:
            await asyncio.wait_for(loop.run_in_executor(executor, started.touch), 0.01)
        except (asyncio.TimeoutError, TimeoutError):
            print("timeout")
        queued = asyncio.gather(*(loop.run_in_executor(executor, started.touch) for _ in range(100)))
        queued.cancel()
        try:
            await queued
        except asyncio.CancelledError:
            print("cancelled")
        go.touch()
        await asyncio.gather(*busy)
        assert await loop.run_in_executor(executor, square, 3) == 9
        assert not started.exists()

    run(program)
    """
    assert output_of(HEAD + program, tmp_path) == ("timeout\ncancelled\n", "")
