"""What goes wrong in these tests is what goes wrong in those of Pool; and no test finds the workers of another."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))

from faults import wait_until

from scaleout.joblib_backend import close_idle


@pytest.fixture(autouse=True)
def no_warm_workers(leak_guard: None) -> Iterator[None]:
    yield
    close_idle()
    wait_until(lambda: not any(thread.name == "scaleout-reactor" for thread in threading.enumerate()))
