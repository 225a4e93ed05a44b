"""Workers from the socket pair on which they are greeted to the last byte of their streams.

A worker's death has two ends, the zygote's report and the end of the stream, in either order; only when both are known,
or the report is and nothing is left to read, is the worker gone, and the core told.

Everything here runs on the reactor thread.
"""

from __future__ import annotations

import signal
from functools import partial

from scaleout._runtime.base import limits, references
from scaleout._runtime.node.keeper import NoPlace, ZygoteKeeper
from scaleout._runtime.node.peer import Peer
from scaleout._runtime.process import identity
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from scaleout._runtime.node.callbacks import CallbackThread
    from scaleout._runtime.node.group import WorkerGroup
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.reactor import Reactor


class Supervisor:
    """Starts workers, reads their links, and buries them.

    `receive(peer, data)` takes what is read. At a death, what the core wants done is carried out while the worker's
    control page can still be read: `carry_out(group)`; before that: `on_death(peer)`. When all is over:
    `on_gone(peer)`.
    """

    def __init__(
        self,
        reactor: Reactor,
        keeper: ZygoteKeeper,
        objects: ObjectTable,
        errands: CallbackThread,
        receive: Callable[[Peer, bytes], None],
        carry_out: Callable[[WorkerGroup], None],
        on_gone: Callable[[Peer], None],
        on_death: Callable[[Peer], None],
    ) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._objects = objects
        self._errands = errands
        self._receive = receive
        self._carry_out = carry_out
        self._on_gone = on_gone
        self._on_death = on_death
        self.environment_of: Callable[[Peer, WorkerGroup], dict[str, str]] = lambda peer, group: {}

    # -- starting --------------------------------------------------------------------------------

    def start(self, group: WorkerGroup, count: int) -> None:
        missing = count
        try:
            self._keeper.prepare()
            while missing:
                self._start_worker(group)
                missing -= 1
        except NoPlace as error:
            if group.actor is None:
                self._refused(group, missing, str(error))
            else:  # what it is cannot be on fewer machines: it waits
                self._reactor.call_later(limits.PLACE_SECONDS, partial(self._start_actor, group))
        except OSError as error:  # no fds or no memory left
            self._refused(group, missing, str(error))

    def _start_actor(self, group: WorkerGroup) -> None:
        """If there is a place by now, and it is still wanted."""
        core = group.core
        if group.is_terminating or core.is_broken:
            return
        if core.is_closing and not core.has_work:
            self._refused(group, 1, "nobody needs it any more")
        else:
            self.start(group, 1)
        if core.effects:
            self._carry_out(group)

    def _refused(self, group: WorkerGroup, missing: int, reason: str) -> None:
        group.failure = ("refused", reason)
        group.core.start_refused(missing)
        if group.core.size:
            self._errands.put(partial(warn_of_smaller_group, group.core.size, reason))

    def _start_worker(self, group: WorkerGroup) -> None:
        """Ask for one worker; OSError leaves nothing behind."""
        worker_id = next(references.worker_ids)
        seat = self._keeper.seat(worker_id, group.shape)
        peer = Peer(worker_id, next(group.numbers), seat)
        peer.group = group
        try:
            self._objects.admit(peer)
            self._greet(group, peer)
            self.listen(peer)
        except BaseException:
            seat.discard()
            self._objects.reader_died(peer)
            raise
        peer.lane = group.core.worker_started(peer, seat.place)
        peer.lane.talks = seat.is_relayed  # so it is never lent
        group.peers.append(peer)
        self._keeper.fork(peer)

    def _greet(self, group: WorkerGroup, peer: Peer) -> None:
        sources = self._keeper.sources
        info = {
            **group.hello,
            "number": peer.number,
            "modules": sources and (sources.names, sources.folder, sources.work),
        }
        environment = self.environment_of(peer, group)
        if environment:
            info["environment"] = {**(info["environment"] or {}), **environment}
        peer.seat.greet(info)
        tracker_fd = identity.resource_tracker_fd()
        if tracker_fd >= 0:
            peer.share_tracker(tracker_fd)
        if group.initializer is None:
            peer.link.queue(frame(frames.INITIALIZE))
        else:
            group.initializer(peer)
        self._reactor.flush_soon(peer.link)

    def worker_refused(self, peer: Peer, reason: str) -> None:
        """The zygote could not fork it, or may not."""
        group = peer.group
        group.failure = ("refused", reason)
        group.core.refused()
        if group.core.size and reason.startswith("fork"):
            self._errands.put(partial(warn_of_smaller_group, group.core.size, reason))
        self.bury(peer)

    # -- the link --------------------------------------------------------------------------------

    def listen(self, peer: Peer) -> None:
        """Read what the worker says from now on."""
        if not peer.seat.is_relayed:
            self._reactor.watch(peer.link.fileno(), partial(self._on_link, peer))

    def _on_link(self, peer: Peer, events: int) -> None:
        data = self._reactor.read(peer.link, events)
        if data:
            self._receive(peer, data)
        elif data is not None:
            self._stream_over(peer)

    def _stream_over(self, peer: Peer) -> None:
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self._reactor.forget(peer.link.fileno())
            if peer.exit_status is None:
                self._keeper.kill(peer, signal.SIGTERM)  # it closed its link: it is leaving, or has lost its mind
            else:
                self.bury(peer)

    # -- the end ---------------------------------------------------------------------------------

    def bury(self, peer: Peer) -> None:
        """It is dead, and its link is not lent."""
        group = peer.group
        while not peer.is_stream_over:  # a grandchild may hold the other end open: take what is there, then stop
            try:
                data = peer.link.receive()
            except OSError:
                data = b""
            if data:
                self._receive(peer, data)
            else:
                peer.is_stream_over = True
        self._reactor.forget_link(peer.link)
        peer.link.close()
        del self._keeper.peers[peer.worker_id]
        group.peers.remove(peer)
        self._on_death(peer)
        group.last_peer = peer
        is_charged = peer.exit_status is not None and peer.exit_status >= 0
        group.core.worker_died(peer.lane, peer.words[control_page.CLAIMED], is_charged)
        if group.core.effects:
            self._carry_out(group)
        peer.seat.release()
        self._objects.reader_died(peer)
        if peer.exit_status is None:
            peer.exit_status = -1
        peer.has_exited.set()
        if peer.segments:
            self._objects.writer_died(peer.segments)
        self._on_gone(peer)


def warn_of_smaller_group(size: int, reason: str) -> None:
    import warnings

    warnings.warn(f"a worker could not be started ({reason}); going on with {size}", RuntimeWarning, stacklevel=2)
