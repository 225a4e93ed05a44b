"""Limits of single calls: `executor.options(timeout_s=..., max_retries=...)`."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import TimeoutError, wait  # of its own before Python 3.11
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, killer_of_stopped, note, notes, wait_until

from scaleout._runtime.node.keeper import ZygoteKeeper
from scaleout.futures import ScaleoutExecutor


def note_and_sleep(log: Path, duration_s: float) -> float:
    note(log, os.getpid())
    time.sleep(duration_s)
    return duration_s


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(DEADLINE_S)


def test_a_call_that_takes_too_long(tmp_path: Path) -> None:
    with ScaleoutExecutor(2) as executor:
        # Each worker imports this module first; that is part of a call, and takes its time on a busy machine.
        wait([executor.submit(note_and_sleep, tmp_path / "warm", 0.05) for _ in range(10)], DEADLINE_S)
        limited = executor.options(timeout_s=0.5)
        quick = limited.submit(pow, 2, 3)
        slow = limited.submit(note_and_sleep, tmp_path / "log", 60.0)
        others = [executor.submit(time.sleep, 0.02) for _ in range(20)]
        error = slow.exception(DEADLINE_S)
        assert isinstance(error, TimeoutError) and "more than 0.5 s" in str(error)
        assert quick.result(DEADLINE_S) == 8
        assert all(future.exception() is None for future in wait(others, DEADLINE_S).done)
        assert len(notes(tmp_path / "log")) == 1  # it is not started again
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1
        assert not executor._broken


def test_the_time_runs_from_the_start_of_the_call(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor:
        executor.submit(note_and_sleep, tmp_path / "warm", 0.0).result(DEADLINE_S)  # its module is imported
        limited = executor.options(timeout_s=2.0)
        futures = [limited.submit(note_and_sleep, tmp_path / "log", 0.5) for _ in range(5)]
        assert [future.result(DEADLINE_S) for future in futures] == [0.5] * 5
        assert len(set(notes(tmp_path / "log"))) == 1  # on one worker: none was killed


def test_neighbours_of_a_killed_call_run_once(tmp_path: Path) -> None:
    with ScaleoutExecutor(1, max_retries=0) as executor:
        wait([executor.submit(note_and_sleep, tmp_path / "warm", 0.0) for _ in range(100)], DEADLINE_S)
        slow = executor.options(timeout_s=0.05).submit(note_and_sleep, tmp_path / "slow", 60.0)
        others = [executor.submit(note_and_sleep, tmp_path / "log", 0.0) for _ in range(30)]
        assert isinstance(slow.exception(DEADLINE_S), TimeoutError)
        assert [future.result(DEADLINE_S) for future in others] == [0.0] * 30
        assert len(notes(tmp_path / "log")) == 30


def test_who_ends_before_the_kill_arrives_does_not_leave_it_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zygote is a long time about it."""

    def kill_late(keeper: Any, peer: Any, signum: int) -> None:
        keeper._reactor.call_later(0.5, lambda: kill(keeper, peer, signum))

    kill = ZygoteKeeper.kill
    monkeypatch.setattr(ZygoteKeeper, "kill", kill_late)
    with ScaleoutExecutor(1, max_retries=0) as executor:
        pid = executor.submit(os.getpid).result(DEADLINE_S)
        slow = executor.options(timeout_s=0.3).submit(time.sleep, 0.5)
        assert isinstance(slow.exception(DEADLINE_S), TimeoutError)
        after = executor.submit(getpid_after, 1.0)
        assert after.result(DEADLINE_S) != pid


def getpid_after(duration_s: float) -> int:
    time.sleep(duration_s)
    return os.getpid()


def test_a_stopped_worker_is_killed(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor:
        assert isinstance(executor.options(timeout_s=0.1).submit(stop_myself).exception(DEADLINE_S), TimeoutError)
        assert executor.submit(abs, -1).result(DEADLINE_S) == 1


def test_map(tmp_path: Path) -> None:
    with ScaleoutExecutor(2) as executor:
        limited = executor.options(timeout_s=0.2)
        results = limited.map(time.sleep, [0, 0, 60, 0])
        assert [next(results), next(results)] == [None, None]
        with pytest.raises(TimeoutError):
            next(results)
        with pytest.raises(TimeoutError, match="item 2"):
            list(limited.map(time.sleep, [0, 0, 60, 0], chunksize=2))
        assert list(limited.map(abs, range(-3, 0), chunksize=2)) == [3, 2, 1]


def test_a_timed_call_can_be_cancelled_and_may_die(tmp_path: Path) -> None:
    with killer_of_stopped(tmp_path), ScaleoutExecutor(1) as executor:
        limited = executor.options(timeout_s=30, max_retries=0)
        first = limited.submit(note_and_sleep, tmp_path / "log", 0.2)
        second = limited.submit(note_and_sleep, tmp_path / "log", 0.2)
        wait_until(lambda: notes(tmp_path / "log"))
        assert second.cancel() and not first.cancel()
        assert first.result(DEADLINE_S) == 0.2
        assert limited.submit(os._exit, 3).exception(DEADLINE_S).attempts == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("keywords", [{"timeout_s": 0}, {"timeout_s": -1}, {"max_retries": -1}, {"max_retries": 1.5}])
def test_refuses(keywords: dict[str, Any]) -> None:
    with ScaleoutExecutor(1) as executor, pytest.raises(ValueError):
        executor.options(**keywords)


def test_no_limit_is_too_large() -> None:
    with ScaleoutExecutor(1) as executor:
        assert executor.options(timeout_s=float("inf")).submit(abs, -1).result(DEADLINE_S) == 1
        assert executor.options(timeout_s=1e12).submit(abs, -1).result(DEADLINE_S) == 1


def test_shutting_the_view_down_shuts_the_executor_down() -> None:
    executor = ScaleoutExecutor(1)
    with executor.options(timeout_s=10) as limited:
        assert limited.submit(abs, -1).result(DEADLINE_S) == 1
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
