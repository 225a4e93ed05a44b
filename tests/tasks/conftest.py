"""What holds for every test of tasks, objects and actors: at its end nobody needs an object, and nothing is kept."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))

from faults import wait_until

import scaleout
from scaleout._runtime.base import references


def what_is_left() -> list[str]:
    """The objects that somebody needs, the ranges that are in use, what workers were handed."""
    client = references.client
    if client is None or client.is_closed or not hasattr(client, "_owner"):
        return []
    owner = client._owner
    left = [f"object {found}" for found in scaleout.list_objects()]
    left += [f"range {extent}" for extent in list(owner.objects.ranges._uses)]
    for peer in list(owner.keeper.peers.values()):
        if len(peer.holdings):
            left.append(f"worker {peer.pid} holds {list(peer.holdings._entries)}")
        if peer.wants or peer.backlog:
            left.append(f"worker {peer.pid} waits for {list(peer.wants)} {list(peer.backlog)}")
    return left


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, leak_guard: None) -> Iterator[None]:
    scaleout.shutdown()
    failed_before = request.session.testsfailed
    yield
    try:
        if request.session.testsfailed == failed_before:
            gc.collect()
            try:
                wait_until(lambda: not what_is_left(), "nothing is left", deadline_s=5)
            except AssertionError:
                pytest.fail("left:\n  " + "\n  ".join(what_is_left()), pytrace=False)
    finally:
        scaleout.shutdown()


@pytest.fixture
def two_slots() -> None:
    scaleout.init(num_cpus=2)


@pytest.fixture
def one_slot() -> None:
    scaleout.init(num_cpus=1)
