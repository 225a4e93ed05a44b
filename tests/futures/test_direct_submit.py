"""`submit(...).result()` in turn: the caller talks to the worker itself, or hands over when it does anything else."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, wait_until
from test_interrupt import Alarm, walk

from scaleout import errors
from scaleout.futures import ScaleoutExecutor


def call_in_turn(executor: ScaleoutExecutor) -> None:
    """Until a call is direct; so the next will be, of a function that the worker knows."""
    is_direct = False
    deadline = time.monotonic() + DEADLINE_S
    while not is_direct:
        future = executor.submit(abs, -1)
        is_direct = future._call is not None
        assert future.result() == 1
        assert time.monotonic() < deadline


def submit_directly(executor: ScaleoutExecutor, function: Callable[..., Any], *args: Any) -> Any:
    """A future whose call went to the worker past the runtime's thread, and whose answer nobody has read. The call may
    have been made before: the worker must know the function, and the runtime may want it for a moment, as when memory
    of an earlier result goes back."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        executor.submit(function, *args).exception()
        call_in_turn(executor)
        future = executor.submit(function, *args)
        if future._call is not None:
            return future
        future.exception()
    raise AssertionError("no call was direct")


def submit_directly_once(executor: ScaleoutExecutor, function: Callable[..., Any], *args: Any) -> Any:
    call_in_turn(executor)
    future = executor.submit(function, *args)
    assert future._call is not None
    return future


def kill_once(marker: str) -> str:
    if os.path.exists(marker):
        os.unlink(marker)
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def test_calls_in_turn_are_right() -> None:
    with ScaleoutExecutor(2) as executor:
        assert submit_directly(executor, abs, -3).result() == 3
        for number in range(300):
            assert executor.submit(divmod, number, 7).result() == divmod(number, 7)
        assert len(executor._processes) == 1  # the one that is known to be idle is enough


def test_failures_are_those_of_other_calls() -> None:
    with ScaleoutExecutor(1) as executor:
        error = submit_directly(executor, divmod, 1, 0).exception()
        assert isinstance(error, ZeroDivisionError) and "Traceback" in str(error.__cause__)
        with pytest.raises(SystemExit):
            submit_directly(executor, sys.exit, 3).result()
        assert "cannot" in str(executor.submit(abs, threading.Lock()).exception())
        assert submit_directly(executor, bytes, 300_000).result() == bytes(300_000)
        assert executor.submit(len, b"x" * 300_000).result() == 300_000


@pytest.mark.parametrize(
    "touch",
    [
        lambda future: futures.wait([future]),
        lambda future: list(futures.as_completed([future])),
        lambda future: wait_until(future.done),
        lambda future: future.result(timeout=DEADLINE_S),
        lambda future: future.exception(timeout=DEADLINE_S),
        lambda future: asyncio.run(awaited(future)),
        lambda future: repr(future),
        lambda future: future.running(),
        lambda future: future.cancelled(),
        lambda future: future._condition,
        lambda future: None,
    ],
)
def test_whatever_is_done_with_it_the_answer_is_read(touch: Callable[[Any], Any]) -> None:
    with ScaleoutExecutor(1) as executor:
        future = submit_directly(executor, divmod, 7, 2)
        touch(future)
        assert future.result() == (3, 1)
        assert future._call is None and future._task is None


async def awaited(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def test_callbacks_are_called_once() -> None:
    called: list[Any] = []
    with ScaleoutExecutor(1) as executor:
        future = submit_directly(executor, abs, -5)
        future.add_done_callback(called.append)
        wait_until(lambda: called)
        assert future.result() == 5
    assert called == [future]


def test_cancelling_a_call_that_has_been_sent() -> None:
    with ScaleoutExecutor(1) as executor:
        future = submit_directly(executor, abs, -5)
        if not future.cancel():
            assert future.result() == 5
        assert executor.submit(abs, -6).result() == 6


def test_cancelling_a_call_whose_answer_another_thread_reads(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor:
        os.mkfifo(tmp_path / "gate")
        executor.submit(append, os.devnull, "").result()
        future = submit_directly_once(executor, append, str(tmp_path / "gate"), "")
        read: list[Any] = []
        reader = threading.Thread(target=lambda: read.append(future.exception()))
        reader.start()
        wait_until(lambda: future._call.readers)
        assert not future.cancel()
        with open(tmp_path / "gate"):
            pass
        reader.join(DEADLINE_S)
        assert read == [None]
        assert executor.submit(abs, -3).result(DEADLINE_S) == 3


def test_a_call_nobody_looks_at_is_made(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with ScaleoutExecutor(1) as executor:
        submit_directly(executor, append, os.devnull, "x").result()
        future = submit_directly_once(executor, append, str(path), "once")
        kept = weakref.ref(future)
        del future
        wait_until(path.exists)
        wait_until(lambda: gc.collect() >= 0 and kept() is None)
        assert executor.submit(abs, -6).result() == 6
    assert path.read_text() == "once"


def test_a_call_nobody_looks_at_is_made_again_when_its_worker_dies(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with ScaleoutExecutor(1) as executor:
        future = submit_directly(executor, kill_once, str(marker))
        assert future.result() == "survived"
        marker.touch()
        future = submit_directly_once(executor, kill_once, str(marker))
        wait_until(lambda: not marker.exists())
        wait_until(lambda: future._state == "FINISHED")  # without asking it
        assert future.result() == "survived"


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_death_while_its_caller_reads(max_retries: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with ScaleoutExecutor(1, max_retries=max_retries) as executor:
        submit_directly(executor, kill_once, str(marker)).result()
        marker.touch()
        future = submit_directly_once(executor, kill_once, str(marker))
        if max_retries:
            assert future.result() == "survived"
        else:
            with pytest.raises(errors.WorkerDiedError):
                future.result()
        assert executor.submit(abs, -1).result() == 1


def test_more_calls_than_lent_workers() -> None:
    with ScaleoutExecutor(2) as executor:
        for _ in range(20):
            first = submit_directly(executor, abs, -1)
            others = [executor.submit(abs, -number) for number in range(20)]
            assert [future.result() for future in reversed(others)] == list(range(19, -1, -1))
            assert first.result() == 1


def test_two_threads_ask_for_the_same_result() -> None:
    with ScaleoutExecutor(1) as executor:
        submit_directly(executor, time.sleep, 0.01).result()
        for _ in range(20):
            future = submit_directly(executor, time.sleep, 0.01)
            with futures.ThreadPoolExecutor(4) as threads:
                assert list(threads.map(lambda f: f.result(), [future] * 4)) == [None] * 4


def test_sixteen_threads_call_in_turn() -> None:
    wrong = []

    def call(start: int) -> None:
        for number in range(start, start + 50):
            if executor.submit(abs, -number).result() != number:
                wrong.append(number)

    with ScaleoutExecutor(2) as executor:
        submit_directly(executor, abs, -1).result()
        threads = [threading.Thread(target=call, args=(1000 * number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("end", ["exit", "shutdown", "drop", "terminate"])
def test_the_end_of_the_executor(end: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    executor = ScaleoutExecutor(1)
    submit_directly(executor, append, os.devnull, "").result()
    future = submit_directly_once(executor, append, str(path), "x")
    if end == "exit":
        with executor:
            pass
    elif end == "shutdown":
        executor.shutdown()
    elif end == "drop":
        del executor
    else:
        executor.kill_workers()
    error = future.exception(timeout=DEADLINE_S)
    if end != "terminate":
        assert error is None and path.read_text() == "x"


def test_a_forked_child_reads_nothing() -> None:
    with ScaleoutExecutor(1) as executor:
        future = submit_directly(executor, abs, -3)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                future.result()
            except errors.ForeignSessionError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert future.result() == 3


def test_ctrl_c_while_its_caller_reads() -> None:
    with ScaleoutExecutor(1) as executor:
        submit_directly(executor, time.sleep, 0).result()
        future = submit_directly_once(executor, time.sleep, 1000)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            future.result()
        timer.join()
        assert isinstance(future.exception(timeout=DEADLINE_S), errors.CallInterruptedError)
        assert executor.submit(abs, -3).result() == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Alarm])
def test_an_exception_at_every_opcode(kind: type[BaseException]) -> None:
    with ScaleoutExecutor(1) as executor:

        def prepare() -> Any:
            call_in_turn(executor)
            return executor

        def operate(executor: ScaleoutExecutor) -> Any:
            future = executor.submit(abs, -1)
            made.append(future)
            return future.result()

        def check(executor: ScaleoutExecutor, where: str) -> None:
            for future in made:  # it ends, one way or the other
                assert not futures.wait([future], DEADLINE_S).not_done, where
            made.clear()
            assert executor.submit(abs, -2).result(DEADLINE_S) == 2, where

        made: list[Any] = []
        assert walk(prepare, operate, check, 1, kind) > 20
