"""Memory that runs short: the newest retriable task gives way before the system kills at random."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from scaleout._runtime.base import memory
from scaleout.errors import OutOfMemoryError
from scaleout.multiprocessing import Pool


def run_until(marker: str, started: str) -> str:
    """Ends when the marker is there; notes each start."""
    with open(started, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(marker):
        time.sleep(0.01)
    return "done"


def test_the_newest_task_is_run_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, marker = tmp_path / "started", tmp_path / "marker"
    with Pool(1) as pool:
        pool.apply(abs, (1,))
        monkeypatch.setattr(memory, "is_short", lambda share: started.exists() and started.read_text().count("\n") < 2)
        result = pool.apply_async(run_until, (str(marker), str(started)))
        deadline = time.monotonic() + 30
        while not started.exists() or started.read_text().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        marker.touch()
        assert result.get(30) == "done"
        assert len(set(started.read_text().split())) == 2


def test_if_it_keeps_happening_the_error_names_who_held_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_short", lambda share: True)
    with Pool(1, max_retries=1) as pool:
        result = pool.apply_async(run_until, (str(tmp_path / "never"), str(tmp_path / "started")))
        with pytest.raises(OutOfMemoryError, match="memory had run short") as caught:
            result.get(60)
        assert caught.value.attempts == 2
        assert sum(caught.value.usage.values()) > 1 << 20
        monkeypatch.undo()
        assert pool.map(abs, [-1]) == [1]


def test_what_must_not_run_twice_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_short", lambda share: True)
    with Pool(1, max_retries=0) as pool:
        assert pool.apply_async(time.sleep, (0.6,)).get(30) is None


def test_the_machine_has_memory_left() -> None:
    assert not memory.is_short(0.0001)
    assert memory.is_short(1.1) or not os.path.exists("/proc/meminfo")
    assert memory.oom_kills() >= 0
    assert memory.resident_bytes(os.getpid()) > 1 << 20
