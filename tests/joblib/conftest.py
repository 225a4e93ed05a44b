"""What goes wrong in these tests is what goes wrong in those of Pool; no test waits for ever, and no test finds the
workers of another."""

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))

from faults import wait_until
from joblib import Parallel, delayed
from meetings import meet

from scaleout._runtime.node import host
from scaleout.joblib_backend import close_idle

ENDS_IN_S = 60
"""Below the hang guard's limit, so that a call that hangs fails its own test only, and says where it waits."""


@pytest.fixture(autouse=True)
def no_warm_workers(leak_guard: None) -> Iterator[None]:
    yield
    close_idle()
    wait_until(lambda: not any(thread.name == "scaleout-reactor" for thread in threading.enumerate()))


@pytest.fixture(autouse=True)
def ends_in_time(no_warm_workers: None) -> Iterator[None]:
    """`Parallel` waits without a limit of its own: an alarm ends the wait."""

    def fail(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still not done after {ENDS_IN_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(ENDS_IN_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def joblib_preloaded(preloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find joblib imported, which takes longer than most tests."""
    monkeypatch.setattr(host, "preloaded_modules", ["joblib", "pytest"])


@pytest.fixture
def met(tmp_path: Path) -> Any:
    """The pids of all workers of a call with so many jobs."""
    calls: list[Path] = []

    def meeting(n_jobs: int = 2, **arguments: Any) -> set[int]:
        calls.append(tmp_path / f"meeting-{len(calls)}")
        calls[-1].mkdir()
        return set(
            Parallel(n_jobs=n_jobs, backend="scaleout", batch_size=1, **arguments)(
                delayed(meet)(calls[-1], n_jobs) for _ in range(n_jobs)
            )
        )

    return meeting
