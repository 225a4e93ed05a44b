"""Direct calls: a thread that makes one call after another talks to an idle worker itself.

A call through the reactor wakes four threads one after the other (reactor, worker, reactor, caller); a direct call
wakes two, and needs the interpreter lock once instead of three times. So when nothing else is under way the reactor
*lends* its idle workers: it stops watching their links and makes them blocking. A caller claims one, sends its frame,
waits in `recvmsg`, and gives the claim back. As soon as the reactor wants the worker (other tasks are ready, the group
closes) it takes the claim itself, or finds it taken and is told when it is free.

The claim is one entry in a dict, made and looked at by `setdefault`: atomic, so that an exception can strike between
any two instructions of the caller's (a signal handler may raise anywhere) and both sides still agree who holds it. What
is stored is a weak reference to an object that lives as long as the caller's frame (and the message by which it hands
over): a claim whose reference is dead was left behind by an exception. Then nobody knows what of the stream was read,
and the worker is given up.

Whatever is not the usual answer (another frame, a large result, the end of the stream) is handed to the reactor, with
what was read; the call goes on there like any other. Rejected: letting callers run the reactor's own code while they
wait. That puts its state under the signal handlers of the main thread.
"""

from __future__ import annotations

import weakref

from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Peer = Any  # node.peer's, which has a DirectLine

HOLDER = "holder"


class DirectLine:
    """Who may talk to a worker: whoever holds the claim. That is the reactor, but while it has lent the worker."""

    __slots__ = ("claims",)

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {HOLDER: self}

    def lend(self) -> None:
        del self.claims[HOLDER]

    def take_for_reactor(self) -> bool:
        """True if the line is the reactor's now; False if a caller holds it."""
        return self.claims.setdefault(HOLDER, self) is self

    def hand_to_reactor(self) -> None:
        """The caller that held the claim is done with it, or dead."""
        self.claims[HOLDER] = self

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller that holds the claim is gone without giving it back."""
        holder = self.claims.get(HOLDER)
        return type(holder) is weakref.ref and holder() is None


class Presence:
    """Lives as long as the frame of the call that made it, or the message that hands the call over."""

    __slots__ = ("__weakref__",)


class Answer:
    """What a direct call answered."""

    __slots__ = ("payload", "status")

    def __init__(self) -> None:
        self.status = 0
        self.payload = b""


def call(
    peers: tuple[Peer, ...],
    how: int,
    record: Any,
    payload: bytes,
    answer: Answer,
    take_over: Callable[[Peer, bytes, int, bool, Presence], None],
    lane_wanted: Callable[[Peer], None],
) -> bool:
    """Make the call on one of the lent workers. True: `answer` has the result. False: nothing was sent, or `take_over`
    was called: the reactor goes on with the call."""
    presence = Presence()
    mark = weakref.ref(presence)
    for peer in peers:
        claims = peer.line.claims
        if record.id not in peer.known_callables or not peer.known_definitions.issuperset(record.needs):
            continue
        sequence = 0
        data = b""
        is_clean = False
        try:
            if claims.setdefault(HOLDER, mark) is not mark:
                continue
            lane = peer.lane
            sequence = lane.next_sequence
            lane.next_sequence = sequence + 1
            link = peer.link
            try:
                link.sock.sendall(HEADER.pack(len(payload), frames.TASK, how, record.id, sequence) + payload)
                data = link.receive()
            except OSError:
                data = b""  # it is dead
            if len(data) >= HEADER_BYTES:
                length, kind, status, duration, number = HEADER.unpack_from(data)
                if (
                    kind == frames.RESULT
                    and length == len(data) - HEADER_BYTES
                    and number == sequence
                    and not status & frames.STORED
                ):
                    record.profile.add(duration)
                    answer.status = status
                    answer.payload = data[HEADER_BYTES:]
                    is_clean = True
                    return True
            take_over(peer, data, sequence, False, presence)
            sequence = 0
            return False
        finally:
            if claims.get(HOLDER) is mark:
                if is_clean:
                    del claims[HOLDER]
                    if peer.lane.is_wanted:
                        lane_wanted(peer)
                elif sequence:
                    take_over(peer, b"", sequence, True, presence)
    return False
