"""What goes wrong in these tests is what goes wrong in those of Pool."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))

from faults import wait_until


@pytest.fixture(autouse=True)
def runtime_has_ended(leak_guard: None) -> Iterator[None]:
    """The workers of a dropped executor end when they are done: the leak guard looks after that."""
    yield
    wait_until(lambda: not any(thread.name == "scaleout-reactor" for thread in threading.enumerate()))
