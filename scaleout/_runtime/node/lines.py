"""Lines between workers, as their owner knows them: who has one to which actor, and the calls that became its own.

A call over a line is its caller's and the actor's worker's business (see `client.lines` and `process.lines`). The owner
hears of some of them by two frames that come in either order: CALLED from the caller, who has a reference to the
result, and ANSWERED from whichever of the two has the result.

    CALLED    awaited --ANSWERED--> there        ANSWERED  unclaimed --CALLED--> there
                      --the actor's worker dies--> failed              --the caller dies--> gone

The body of CALLED is (number of the actor's worker, method or "" if the history has the call, when it was made).

Everything here runs on the reactor thread.
"""

from __future__ import annotations

import marshal
import signal
import socket

from scaleout._runtime.base import limits
from scaleout._runtime.base.references import OF_WORKER_BITS
from scaleout._runtime.node.actors import ActorRecord
from scaleout._runtime.node.history import now_ns
from scaleout._runtime.node.ledger import Entry
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from scaleout._runtime.node.peer import Peer

    Owner = Any  # node.owner's, which is put together from this and others

TO_CALLER = 1


class Lines:
    """See the module's docstring."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._awaited: dict[int, tuple[Peer, Entry, str, int]] = {}  # with the actor's worker, the method, the time
        self._unclaimed: dict[int, Entry] = {}

    def open(self, caller: Peer, actor_id: int, host_id: int) -> bool:
        """Whether the caller's next calls may go over a line; if it has none to the actor's present worker (`host_id`
        is that to which it has one), one is on its way to it."""
        record = caller.holdings.find(actor_id)
        if not isinstance(record, ActorRecord) or record.group is None:
            return False
        core = record.group.core
        if not core.takes_lines or core.has_calls_of(caller.worker_id):
            return False
        host = core.lanes[0].worker
        if host is caller or host.seat.is_relayed or caller.seat.is_relayed:
            return False
        if host.worker_id == host_id:
            return True
        if sum(not other.has_exited.is_set() for other in caller.lines.values()) >= limits.LINES_PER_WORKER:
            return False
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # no descriptors left: then it goes on as it did
            return False
        caller.lines[host.worker_id] = host
        host.link.queue_and_give(frame(frames.LINE, number=actor_id), theirs.detach())
        self._owner.lender.send_soon(host)
        to_caller = frame(frames.LINE, flag=TO_CALLER, aux=host.worker_id, number=actor_id)
        caller.link.queue_and_give(to_caller, ours.detach())
        self._owner.reactor.flush_soon(caller.link)
        return True

    def called(self, caller: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        """The caller has a reference to the result of such a call."""
        entry = self._unclaimed.pop(number, None)
        if entry is None:
            entry = Entry(number)
            host_id, method, submitted_ns = marshal.loads(body)
            host = caller.lines[host_id]
            if host.has_exited.is_set():
                self._fail(host, entry)
            else:
                self._awaited[number] = host, entry, method, submitted_ns
                host.lane.talks = True  # it will tell, and so must be listened to
                self._owner.lender.reclaim(host.group, host.lane)
        caller.holdings.hand_over((entry,))

    def answered(self, number: int, status: int, duration_us: int) -> Entry:
        """Where the answer goes that came with this number."""
        awaited = self._awaited.pop(number, None)
        if awaited is not None:
            host, entry, method, submitted_ns = awaited
            if method:
                self._note((method, number, submitted_ns, now_ns(), duration_us), host, status)
            return entry
        entry = Entry(number)
        if number >> OF_WORKER_BITS in self._owner.keeper.peers:
            self._unclaimed[number] = entry
        return entry

    def cancel(self, number: int, force: bool) -> bool:
        """Nobody wants the result; False if it is no such call, or is over. The answer still comes."""
        awaited = self._awaited.get(number)
        if awaited is None:
            return False
        host, entry, _, _ = awaited
        entry.deliver(0, frames.CANCELLED, None)
        if host.words[control_page.RUNNING] == number:
            if force:
                self._owner.keeper.kill_for_task(host)
            else:
                host.words[control_page.INTERRUPTED] = number
                self._owner.keeper.kill(host, signal.SIGINT)
        return True

    def noted(self, caller: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        """What the history is to say of calls that are over."""
        for *facts, host_id, status in marshal.loads(body):
            self._note(facts, caller.lines[host_id], status & frames.STATUS_MASK)

    def _note(self, facts: Iterable[Any], host: Peer, status: int) -> None:
        self._owner.clerk.history.events.append((*facts, host.pid, status, True))

    def worker_gone(self, peer: Peer) -> None:
        """It is dead, and its group knows."""
        for number, (host, entry, _, _) in list(self._awaited.items()):
            if host is peer:
                del self._awaited[number]
                self._fail(host, entry)
        for number in [number for number in self._unclaimed if number >> OF_WORKER_BITS == peer.worker_id]:
            del self._unclaimed[number]
        peer.lines.clear()

    def _fail(self, host: Peer, entry: Entry) -> None:
        entry.deliver(0, frames.ACTOR_DIED, self._owner.actors.facts_of_lost_call(host.group))
