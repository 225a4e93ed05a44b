"""Direct calls: a thread that makes one call after another talks to an idle worker itself.

A call through the reactor wakes four threads one after the other (reactor, worker, reactor, caller); a direct call
wakes two, and needs the interpreter lock once instead of three times. So when nothing else is under way the reactor
*lends* its idle workers: it stops watching their links and makes them blocking. A caller claims one, sends its frame,
waits in `recvmsg`, and gives the claim back. As soon as the reactor wants the worker (other tasks are ready, the group
closes) it takes the claim itself, or finds it taken and is told when it is free.

The claim is one entry in a dict, made and looked at by `setdefault`: atomic, so that an exception can strike between
any two instructions of the caller's (a signal handler may raise anywhere) and both sides still agree who holds it.

    absent                   the worker is lent, and free
    the line itself          it is the reactor's
    a weak reference         a caller is sending
    a DirectCall             the call is with the worker; who reads the answer is whoever enters `readers` first: the
                             caller, by a weak reference, or the reactor

A weak reference is to an object that lives as long as the caller's frame (and the message by which it hands over): one
that is dead was left behind by an exception. Then nobody knows what of the stream was written or read, and the worker
is given up. A call that nobody reads is *parked*: its caller holds a future, and may never look at it. The reactor
takes it over when it wants the worker, and in any case after PARKED_SECONDS.

Whatever is not the usual answer (another frame, a large result, the end of the stream) is handed to the reactor, with
what was read; the call goes on there like any other. Rejected: letting callers run the reactor's own code while they
wait. That puts its state under the signal handlers of the main thread.
"""

from __future__ import annotations

import marshal
import weakref

from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.core.tasks import Task

    Peer = Any  # node.peer's, which has a DirectLine

HOLDER = "holder"
READER = "reader"


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

    @property
    def call(self) -> DirectCall | None:
        """The call that the worker has from a caller, if any."""
        holder = self.claims.get(HOLDER)
        return holder if type(holder) is DirectCall else None

    def take_parked_for_reactor(self) -> DirectCall | None:
        """The call that nobody reads the answer of, which is the reactor's to read now; None if there is none."""
        call = self.call
        return call if call is not None and call.readers.setdefault(READER, self) is self else None

    def hold(self, call: DirectCall) -> None:
        """Whoever holds the claim has this call with the worker."""
        self.claims[HOLDER] = call

    def hand_to_reactor(self) -> None:
        """The caller that held the claim is done with it, or dead."""
        self.claims[HOLDER] = self

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller that holds the claim is gone without giving it back."""
        holder = self.claims.get(HOLDER)
        if type(holder) is DirectCall:
            holder = holder.readers.get(READER)
        return type(holder) is weakref.ref and holder() is None


class Presence:
    """Lives as long as the frame of the call that made it, or the message that hands the call over."""

    __slots__ = ("__weakref__",)


class DirectCall:
    """One call past the reactor: `send`, then `receive` or `hand_over`. What is left of it goes to `lender`."""

    __slots__ = ("_peers", "_lender", "duration_us", "peer", "readers", "task")

    def __init__(self, lender: Any, peers: tuple[Peer, ...], task: Task) -> None:
        self._lender = lender
        self._peers = peers
        self.task = task
        self.peer: Peer = None
        self.duration_us = 0
        self.readers: dict[str, Any] = {}

    def send(self, is_parked: bool) -> bool:
        """Send the call on one of the lent workers. False if none is free, or knows the function: nothing was sent.

        `is_parked`: nobody may ever call `receive`.
        """
        presence = Presence()
        mark = weakref.ref(presence)
        task = self.task
        record: Any = task.callable
        for peer in self._peers:
            claims = peer.line.claims
            if peer.lane.is_wanted:
                continue  # or whoever calls without a pause would keep it from the reactor for ever
            if record.id not in peer.known_callables or not peer.known_definitions.issuperset(record.needs):
                continue
            is_mine = False
            try:
                is_mine = claims.setdefault(HOLDER, mark) is mark
                if not is_mine:
                    continue
                lane = peer.lane
                self.peer = peer
                task.sequence = sequence = lane.next_sequence
                lane.next_sequence = sequence + 1
                payload = task.payload
                try:
                    peer.link.sock.sendall(
                        HEADER.pack(len(payload), frames.TASK, task.how, record.id, sequence) + payload
                    )
                except OSError:
                    pass  # it is dead, which shows to whoever reads
                peer.line.hold(self)
                if is_parked and not peer.group.is_watched:
                    self._lender.watch_parked(peer.group)
                return True
            finally:
                if is_mine and claims.get(HOLDER) is mark:
                    self._lender.take_over(self, b"", True, presence)
        return False

    def receive(self) -> tuple[int, bytes] | None:
        """Wait for the answer: (status, payload). None if the reactor goes on with the call, or another thread."""
        presence = Presence()
        mark = weakref.ref(presence)
        if self.readers.setdefault(READER, mark) is not mark:
            return None
        peer = self.peer
        answer = None
        is_handed_over = False
        try:
            try:
                data = peer.link.receive()
            except OSError:
                data = b""  # it is dead
            if len(data) >= HEADER_BYTES:
                length, kind, status, duration, number = HEADER.unpack_from(data)
                if (
                    kind == frames.RESULT
                    and length == len(data) - HEADER_BYTES
                    and number == self.task.sequence
                    and not status & (frames.STORED | frames.HAS_REFERENCES)
                ):
                    self.task.profile.add(duration)
                    self.duration_us = duration
                    payload = data[HEADER_BYTES:]
                    answer = status, marshal.loads(payload) if status else payload
                    return answer
            self._lender.take_over(self, data, False, presence)
            is_handed_over = True
            return None
        finally:
            if answer is not None:
                del peer.line.claims[HOLDER]
                if peer.lane.is_wanted:
                    self._lender.line_wanted(peer)
            elif not is_handed_over:
                self._lender.take_over(self, b"", True, presence)

    def hand_over(self) -> None:
        """Leave the answer to the reactor, if nobody reads it already."""
        presence = Presence()
        mark = weakref.ref(presence)
        if self.readers.setdefault(READER, mark) is mark:
            self._lender.take_over(self, b"", False, presence)
