"""What holds for every test of tasks, objects and actors: at its end nobody needs an object, and nothing is kept."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))

from leftovers import check_that_nothing_is_left

import scaleout


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, leak_guard: None) -> Iterator[None]:
    scaleout.shutdown()
    failed_before = request.session.testsfailed
    yield
    try:
        if request.session.testsfailed == failed_before:
            gc.collect()
            check_that_nothing_is_left(5)
    finally:
        scaleout.shutdown()


@pytest.fixture
def two_slots() -> None:
    scaleout.init(num_cpus=2)


@pytest.fixture
def one_slot() -> None:
    scaleout.init(num_cpus=1)
