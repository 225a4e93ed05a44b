"""Lends idle workers to threads that make one synchronous call after another, and takes them back. See `direct`.

Everything here runs on the reactor thread unless it says "any thread".
"""

from __future__ import annotations

import signal
import socket
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.core.tasks import FINISHED, PENDING
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.node.direct import DirectCall, Presence
    from scaleout._runtime.node.group import WorkerGroup
    from scaleout._runtime.node.keeper import ZygoteKeeper
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.node.receiver import Receiver
    from scaleout._runtime.node.supervisor import Supervisor


class Lender:
    """See the module's docstring."""

    def __init__(self, reactor: Reactor, keeper: ZygoteKeeper, receiver: Receiver, supervisor: Supervisor) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._receiver = receiver
        self._supervisor = supervisor

    def lend_idle(self, group: WorkerGroup) -> None:
        """Somebody makes one call after another and nothing else is going on."""
        group.wants_direct = False
        lent = []
        for lane in group.core.lend_idle():
            peer: Peer = lane.worker
            self._reactor.forget(peer.link.fileno())
            peer.link.sock.setblocking(True)
            peer.link.is_lent = True
            peer.line.lend()
            lent.append(peer)
        group.lent = tuple(lent)
        if lent and group.hello.get("collects"):  # its workers may have something to say
            self._look_later_at_lent(group, {})

    def _look_later_at_lent(self, group: WorkerGroup, seen: dict[Peer, int]) -> None:
        self._reactor.call_later(limits.CLAIM_CHECK_SECONDS, partial(self._look_at_lent, group, seen))

    def _look_at_lent(self, group: WorkerGroup, seen: dict[Peer, int]) -> None:
        """Nobody listens to a worker that is lent. A thread that a task has left running there may have something to
        say: so whoever was not called since the last look is taken back, until somebody calls in turn again."""
        for peer in group.lent:
            if seen.get(peer) == peer.lane.next_sequence and peer.line.take_for_reactor():
                self._take_back(peer)
        if group.lent:
            self._look_later_at_lent(group, {peer: peer.lane.next_sequence for peer in group.lent})

    def reclaim(self, group: WorkerGroup, lane: Any) -> None:
        peer: Peer = lane.worker
        if not peer.link.is_lent or not peer.link.is_open:
            return
        lane.is_wanted = True  # before the claim is looked at: a caller that is done just now says so
        line = peer.line
        if line.take_for_reactor():
            self._take_back(peer)
            return
        call = line.take_parked_for_reactor()
        if call is not None:
            self._take_over(call, b"", False)
        elif line.is_abandoned:
            self._give_up(peer)
        else:  # its holder says when it is done; unless an exception strikes it in the very act
            self._reactor.call_later(limits.CLAIM_CHECK_SECONDS, partial(self._reclaim_if_wanted, group, lane))

    def _reclaim_if_wanted(self, group: WorkerGroup, lane: Any) -> None:
        if lane.is_wanted:  # and not lent anew since
            self.reclaim(group, lane)

    def send_soon(self, peer: Peer) -> None:
        """What is queued for the worker is to be sent; if it is lent, have it back for that."""
        self._reactor.flush_soon(peer.link)
        if peer.link.is_lent:
            self.reclaim(peer.group, peer.lane)

    def worker_exited(self, peer: Peer) -> None:
        """The zygote says so. Whoever holds the claim has it until he sees the end of the stream."""
        if peer.link.is_lent:
            peer.lane.is_wanted = True  # before the claim is looked at: a caller that is done just now says so
            if peer.line.take_for_reactor():
                self._take_back(peer)
            else:
                call = peer.line.take_parked_for_reactor()
                if call is not None:
                    self._take_over(call, b"", False)  # which buries it
                    return
                if not peer.line.is_abandoned:
                    peer.link.sock.shutdown(socket.SHUT_RD)  # the caller sees the end of the stream, and hands over
                    return
                self._give_up(peer)
        self._supervisor.bury(peer)

    def _take_back(self, peer: Peer) -> None:
        peer.line.hand_to_reactor()
        peer.link.is_lent = False
        group = peer.group
        group.lent = tuple(other for other in group.lent if other is not peer)
        peer.link.sock.setblocking(False)
        self._supervisor.listen(peer)
        self._reactor.flush_soon(peer.link)
        group.core.lane_came_back(peer.lane)

    def _give_up(self, peer: Peer) -> None:
        """An exception has struck the caller in the midst of it: what of the stream was written or read is unknown. So
        the worker goes, and the call is not wanted any more."""
        group = peer.group
        call = peer.line.call
        self._take_back(peer)
        if call is not None and call.task.state == PENDING:
            call.task.state = FINISHED
            group.finish(call.task, frames.DROPPED, None)
        self._reactor.forget(peer.link.fileno())
        peer.is_stream_over = True
        group.core.lane_given_up(peer.lane)
        self._keeper.kill(peer, signal.SIGINT)
        kill = partial(self._keeper.kill, peer, signal.SIGKILL)
        self._reactor.call_later(limits.INTERRUPT_GRACE_SECONDS, kill)

    # -- from the thread that made the call ------------------------------------------------------

    def line_wanted(self, peer: Peer) -> None:
        """Any thread: a direct call is over, and the reactor waits for its worker."""
        self._reactor.post(partial(self.reclaim, peer.group, peer.lane))

    def watch_parked(self, group: WorkerGroup) -> None:
        """Any thread: a call is parked. If it still is after a while, its caller may never ask for the answer."""
        group.is_watched = True
        self._reactor.post(partial(self._look_later_for_parked, group, ()))

    def _look_later_for_parked(self, group: WorkerGroup, seen: tuple[DirectCall, ...]) -> None:
        self._reactor.call_later(limits.PARKED_SECONDS, partial(self._look_for_parked, group, seen))

    def _look_for_parked(self, group: WorkerGroup, seen: tuple[DirectCall, ...]) -> None:
        group.is_watched = False  # first, so that whoever parks a call from now on asks anew
        for peer in group.lent:
            if peer.line.call in seen:
                self.reclaim(group, peer.lane)
        parked = tuple(call for peer in group.lent if (call := peer.line.call) is not None and not call.readers)
        if parked:
            group.is_watched = True
            self._look_later_for_parked(group, parked)

    def take_over(self, call: DirectCall, data: bytes, is_broken: bool, presence: Presence) -> None:
        """Any thread: a direct call goes on here; `data` is what the worker has answered so far. The message keeps the
        caller's claim alive."""
        self._reactor.post(partial(self._take_over, call, data, is_broken, presence))

    def _take_over(self, call: DirectCall, data: bytes, is_broken: bool, presence: Presence | None = None) -> None:
        task = call.task
        peer: Peer = call.peer
        group = peer.group
        if task.state != PENDING:
            return  # a second exception made the line look abandoned, or struck when this had been said already
        if self._reactor.is_stopping or not peer.link.is_open or not peer.link.is_lent:
            group.refuse(task)  # the runtime has ended
            return
        if is_broken:
            peer.line.hold(call)
            self._give_up(peer)
        else:
            self._take_back(peer)
            if group.is_terminating or group.core.is_broken:
                group.refuse(task)
            else:
                group.core.taken_over(peer.lane, task)
                if data:
                    self._receiver.on_data(peer, data)
        if peer.exit_status is not None:
            self._supervisor.bury(peer)
