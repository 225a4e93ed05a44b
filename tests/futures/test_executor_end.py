"""How executors end: shut down, terminated, dropped, left open at the interpreter's exit, in a child, in a worker."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, is_gone, wait_until
from programs import running

from scaleout.errors import CallInterruptedError, ForeignSessionError
from scaleout.futures import ScaleoutExecutor


def note_start(started: Path, release: Path) -> int:
    started.touch()
    wait_until(release.exists)
    return os.getpid()


def no_threads() -> bool:
    return not any(thread.name.startswith("scaleout") for thread in threading.enumerate())


# -- shutdown --------------------------------------------------------------------------------------


def test_shutdown_finishes_what_was_submitted() -> None:
    with ScaleoutExecutor(2) as executor:
        futures = [executor.submit(time.sleep, 0.01) for _ in range(20)]
        processes = executor._processes
    assert all(future.done() for future in futures)
    assert not any(process.is_alive() for process in processes.values())
    assert executor._shutdown and executor._processes == {} and no_threads()
    for call in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
            call()
    executor.shutdown()


def test_shutdown_of_an_executor_that_did_nothing() -> None:
    executor = ScaleoutExecutor(2)
    executor.shutdown(cancel_futures=True)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)


def test_shutdown_without_waiting(tmp_path: Path) -> None:
    executor = ScaleoutExecutor(2)
    futures = [executor.submit(note_start, tmp_path / "started", tmp_path / "go") for _ in range(3)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    (tmp_path / "go").touch()
    assert wait(futures, DEADLINE_S).not_done == set()
    executor.shutdown()


def test_shutdown_that_cancels(tmp_path: Path) -> None:
    executor = ScaleoutExecutor(1)
    wait([executor.submit(abs, i) for i in range(100)], DEADLINE_S)  # short: the next ones are prefetched
    executor.submit(abs, 1).result(DEADLINE_S)
    first = executor.submit(note_start, tmp_path / "started", tmp_path / "go")
    rest = [executor.submit(abs, i) for i in range(100)]
    mapped = executor.map(abs, range(10))
    wait_until((tmp_path / "started").exists)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in rest)
    with pytest.raises(CancelledError):
        next(mapped)
    assert not first.done()
    (tmp_path / "go").touch()
    assert first.result(DEADLINE_S)
    executor.shutdown()


def test_shutdown_that_cancels_lets_workers_have_what_they_are_about_to_take() -> None:
    executor = ScaleoutExecutor(2)
    futures = [executor.submit(abs, i) for i in range(50)]
    executor.shutdown(cancel_futures=True)
    finished = [future for future in futures if not future.cancelled()]
    assert finished and all(future.done() and future.exception() is None for future in finished)


def test_shutdown_of_a_failed_pickling() -> None:
    executor = ScaleoutExecutor(1)
    future = executor.submit(id, threading.Lock())
    executor.shutdown(wait=False)
    with pytest.raises(TypeError):
        future.result(DEADLINE_S)
    executor.shutdown()


def test_shutdown_in_a_callback() -> None:
    executor = ScaleoutExecutor(1)
    done = threading.Event()
    executor.submit(abs, 1).add_done_callback(lambda future: (executor.shutdown(), done.set()))
    assert done.wait(DEADLINE_S)
    executor.shutdown()


@pytest.mark.parametrize("name", ["terminate_workers", "kill_workers"])
def test_ending_the_workers(name: str, tmp_path: Path) -> None:
    executor = ScaleoutExecutor(1)
    first = executor.submit(note_start, tmp_path / "started", tmp_path / "never")
    rest = [executor.submit(abs, i) for i in range(10)]
    wait_until((tmp_path / "started").exists)
    processes = executor._processes
    getattr(executor, name)()
    assert isinstance(first.exception(DEADLINE_S), BrokenProcessPool)
    assert all(future.cancelled() for future in rest)
    for process in processes.values():
        process.join(DEADLINE_S)
        assert process.exitcode == -(signal.SIGTERM if name == "terminate_workers" else signal.SIGKILL)
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    getattr(executor, name)()
    executor.shutdown()


def test_ending_workers_that_were_never_started() -> None:
    executor = ScaleoutExecutor(1)
    executor.terminate_workers()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)


# -- dropped ---------------------------------------------------------------------------------------


def test_dropped_executors_finish_their_calls() -> None:
    futures = [ScaleoutExecutor(1).submit(time.sleep, 0.05) for _ in range(5)]
    results = ScaleoutExecutor(2).map(abs, range(-5, 0))
    assert list(results) == [5, 4, 3, 2, 1]
    assert wait(futures, DEADLINE_S).not_done == set()
    wait_until(no_threads)


def test_an_executor_is_dropped_without_the_collector() -> None:
    gc.disable()
    try:
        executor = ScaleoutExecutor(1)
        future = executor.submit(abs, -1)
        assert future.result(DEADLINE_S) == 1
        processes = executor._processes
        reference = weakref.ref(executor)
        del executor
        assert reference() is None
        for process in processes.values():
            process.join(DEADLINE_S)
    finally:
        gc.enable()


def make_and_close(count: int) -> None:
    for i in range(count):
        with ScaleoutExecutor(1) as executor:
            assert executor.submit(abs, -i).result(DEADLINE_S) == i


def test_many_in_a_row() -> None:
    make_and_close(50)


@pytest.mark.slow
def test_a_thousand_in_a_row() -> None:
    make_and_close(1000)


def test_several_at_once() -> None:
    executors = [ScaleoutExecutor(1) for _ in range(8)]
    assert [e.submit(abs, -i).result(DEADLINE_S) for i, e in enumerate(executors)] == list(range(8))
    for executor in executors:
        executor.shutdown()


# -- nested, forked --------------------------------------------------------------------------------


def sum_of_squares(n: int) -> int:
    with ScaleoutExecutor(2) as executor:
        return sum(executor.map(pow, range(n), [2] * n))


def test_executors_in_tasks() -> None:
    with ScaleoutExecutor(2) as executor:
        assert list(executor.map(sum_of_squares, range(5))) == [0, 0, 1, 5, 14]


_kept: Any = None


def keep_one_open() -> list[int]:
    global _kept
    _kept = ScaleoutExecutor(1)
    _kept.submit(abs, -1).result(DEADLINE_S)
    return list(_kept._processes)


def test_an_executor_left_open_in_a_worker_ends_with_it() -> None:
    with ScaleoutExecutor(1) as executor:
        pids = executor.submit(keep_one_open).result(DEADLINE_S)
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_a_forked_child_cannot_use_it() -> None:
    with ScaleoutExecutor(1) as executor:
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                executor.submit(abs, 1)
            except ForeignSessionError:
                try:
                    executor.shutdown()
                    with ScaleoutExecutor(1) as own:
                        code = own.submit(abs, 0).result(DEADLINE_S)
                except BaseException:  # noqa: BLE001 - nothing must leave the child
                    code = 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert executor.submit(abs, -2).result(DEADLINE_S) == 2


# -- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["result", "map", "with"])
def test_ctrl_c(way: str, tmp_path: Path) -> None:
    """What the interrupted wait waits for is given up, within a second; the executor stays usable."""

    def interrupt() -> None:
        wait_until((tmp_path / "started").exists)
        os.kill(os.getpid(), signal.SIGINT)

    executor = ScaleoutExecutor(2)
    thread = threading.Thread(target=interrupt)
    future = None
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            if way == "result":
                future = executor.submit(note_start, tmp_path / "started", tmp_path / "never")
                future.result(DEADLINE_S)
            elif way == "map":
                list(executor.map(note_start, [tmp_path / "started"] * 3, [tmp_path / "never"] * 3))
            else:
                with ScaleoutExecutor(1) as other:
                    future = other.submit(note_start, tmp_path / "started", tmp_path / "never")
                    time.sleep(DEADLINE_S)
        struck = time.monotonic()
        thread.join()
        if future is not None:
            assert isinstance(future.exception(DEADLINE_S), CallInterruptedError)
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1
        assert time.monotonic() - struck < 5
    finally:
        executor.shutdown()


# -- the interpreter's exit ------------------------------------------------------------------------

PROLOGUE = """
import time, atexit
from scaleout.futures import ScaleoutExecutor

def say(text, delay_s=0.3):
    time.sleep(delay_s)
    print(text, flush=True)

"""


@pytest.mark.parametrize(
    "body",
    [
        "executor = ScaleoutExecutor(2); executor.submit(say, 'apple')",
        "executor = ScaleoutExecutor(2); executor.submit(say, 'apple'); executor.shutdown(wait=False)",
        "ScaleoutExecutor(2).submit(say, 'apple')",
        "executor = ScaleoutExecutor(1); executor.submit(say, 'apple'); executor.submit(abs, 1); raise SystemExit(0)",
        "executor = ScaleoutExecutor(2); executor.submit(abs, 1).add_done_callback(lambda future: say('apple'))",
    ],
)
def test_exit_finishes_what_was_submitted(body: str, tmp_path: Path) -> None:
    with running(PROLOGUE + body, tmp_path) as program:
        assert program.finish() == 0
        assert (program.stdout, program.stderr) == ("apple\n", "")
        program.check_nothing_left()


def test_exit_cancels_when_told_to(tmp_path: Path) -> None:
    body = """
executor = ScaleoutExecutor(1)
futures = [executor.submit(say, i) for i in range(100)]
executor.shutdown(wait=False, cancel_futures=True)
"""
    with running(PROLOGUE + body, tmp_path) as program:
        assert program.finish() == 0
        assert len(program.stdout.split()) <= 2 and program.stderr == ""
        program.check_nothing_left()


def test_no_calls_after_the_exit_has_begun(tmp_path: Path) -> None:
    body = """
def late():
    for executor in (used, unused):
        try:
            executor.submit(abs, 1)
        except RuntimeError as error:
            print(error)

atexit.register(late)
used = ScaleoutExecutor(1)
unused = ScaleoutExecutor(1)
used.submit(abs, 1).result()
"""
    with running(PROLOGUE + body, tmp_path) as program:
        assert program.finish() == 0
        assert program.stdout.splitlines() == ["cannot schedule new futures after interpreter shutdown"] * 2
        assert program.stderr == ""


def test_an_exception_ends_the_program_after_the_calls(tmp_path: Path) -> None:
    body = "executor = ScaleoutExecutor(1); executor.submit(say, 'apple'); raise KeyError('end')"
    with running(PROLOGUE + body, tmp_path) as program:
        assert program.finish() == 1
        assert program.stdout == "apple\n" and program.stderr.rstrip().endswith("KeyError: 'end'")
        program.check_nothing_left()
