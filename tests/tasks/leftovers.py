"""What tasks, objects and actors have left behind."""

from __future__ import annotations

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


def check_that_nothing_is_left(deadline_s: float) -> None:
    """AssertionError, with what there is, if it is still there after the deadline."""
    try:
        wait_until(lambda: not what_is_left(), deadline_s=deadline_s)
    except AssertionError:
        raise AssertionError("left:\n  " + "\n  ".join(what_is_left())) from None
