"""Keeps a zygote at hand: starts one when workers are wanted, and another when it has died.

What it asks the zygote for (forks, kills) and what it hears from it (who was forked, refused, or has exited) goes
through one `Host`. What an exit or a refusal means is for others to say: `on_exit` and `on_refused` are told.

Everything here runs on the reactor thread, except `forget`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque

from scaleout._runtime.base import context, limits
from scaleout._runtime.node.host import Host, present_state
from scaleout._runtime.node.seat import Seat, SeatSupply
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.process.sources import SourcesOfOwner
    from scaleout._runtime.store.segment import Extent


class NoMirrors:
    """For where all memory is on this machine: see `cluster.mirrors`."""

    def know(self, objects: Any) -> None:
        """What is transferred is kept there: nothing is."""

    def mirrored_bytes(self) -> int:
        """Of segments that lie elsewhere."""
        return 0

    def stay(self, extents: list[Extent]) -> None:
        """These are elsewhere: nothing is."""

    def transfer(self, place: Any, extents: list[Extent], holders: Any, then: Callable[[bool], object]) -> None:
        """All is here."""
        then(True)

    def over(self, extents: list[Extent]) -> None:
        """There are no copies."""

    def writer_died(self, segment_id: int, size_bytes: int, keep: list[Extent]) -> None:
        """The same."""


class NoPlace(OSError):
    """No machine has what a worker needs; one that comes may."""


class ZygoteKeeper:
    """See the module's docstring. `host` may be a zygote that is warm from before."""

    steward = ""  # none, without a cluster

    def __init__(self, reactor: Reactor, host: Host | None, max_processes: int) -> None:
        self._reactor = reactor
        self._max_processes = max_processes
        self._deaths: deque[float] = deque(maxlen=limits.ZYGOTE_RESTARTS_PER_MINUTE)
        self.host = host
        self.mirrors = NoMirrors()
        self._seats = SeatSupply(reactor)
        self.peers: dict[int, Peer] = {}  # the workers that were asked for and are not gone, by worker_id
        self.on_exit: Callable[[Peer], None] = lambda peer: None
        self.on_refused: Callable[[Peer, str], None] = lambda peer, reason: None
        # Never called here: we watch links ourselves, there is no other node, and workers print for themselves.
        self.on_data: Callable[[Peer, bytes], None] = lambda peer, data: None
        self.on_nodes: Callable[[list[dict[str, int]]], None] = lambda nodes: None
        self.on_output: Callable[[int, str], None] = lambda number, text: None

    @property
    def sources(self) -> SourcesOfOwner | None:
        """Of modules that our workers may lack: only if we may lack them ourselves, being a worker."""
        return None if context.current is None else context.current.sources

    # -- to the zygote ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """The workers that are asked for from now on look as this process looks now. OSError: no zygote can be had."""
        host = self._need_host()
        host.describe(present_state(self._max_processes))
        host.connect_outputs()
        self._reactor.flush_soon(host.link)

    def seat(self, worker_id: int, shape: Shape) -> Seat:
        """For a worker that is to be; OSError: there are no descriptors left."""
        return self._seats.take()

    def fork(self, peer: Peer) -> None:
        """Ask for the worker, after `prepare`. Cannot fail."""
        assert self.host is not None
        self.peers[peer.worker_id] = peer
        self.host.fork(peer.worker_id, peer.seat.take_theirs())
        self._reactor.flush_soon(self.host.link)

    def kill(self, peer: Peer, signum: int) -> None:
        """Send the worker a signal, if it is there."""
        if peer.exit_status is None and self.host is not None and not self._reactor.is_stopping:
            self.host.kill(peer.worker_id, signum)
            self._reactor.flush_soon(self.host.link)

    def kill_for_task(self, peer: Peer) -> None:
        """Kill the worker for what runs there. The zygote does it a moment later: if that task has ended by then, the
        next one must not be there in its place."""
        peer.group.core.lane_given_up(peer.lane)
        self.kill(peer, signal.SIGKILL)

    def give_up(self, peer: Peer) -> None:
        """What comes makes no sense: user code wrote to a descriptor that was not its own. The worker is lost."""
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self._reactor.forget(peer.link.fileno())
            self.kill(peer, signal.SIGKILL)

    def adopt(self, peer: Peer, fd: int) -> None:
        """The worker becomes an owner: the zygote gets its channel. Takes the fd."""
        host = self._need_host()
        host.adopt(peer.worker_id, fd)
        self._reactor.flush_soon(host.link)

    def capacity(self, settings: Settings, amounts: dict[str, float]) -> tuple[list[dict[str, int]], list[str]]:
        """(what each node has, in milli-units; the names of this one's GPUs). `amounts`, in units, go before."""
        from scaleout._runtime.node.capacity import resources_here

        total, gpu_names = resources_here(settings, amounts)
        return [total], gpu_names

    has_places = False
    """All workers are on this machine."""

    def _need_host(self) -> Host:
        if self.host is None:
            self.host = Host.start()
        if not self._reactor.is_watching(self.host.link.fileno()):
            self._reactor.watch(self.host.link.fileno(), self._on_host)
        return self.host

    # -- from the zygote -------------------------------------------------------------------------

    def _on_host(self, events: int) -> None:
        host = self.host
        assert host is not None
        data = self._reactor.read(host.link, events)
        if not data:
            if data is not None:
                self._host_died(host)
            return
        for kind, _, aux, number, body in host.link.frames(data):
            peer = self.peers.get(number)
            if peer is None:
                continue
            if kind == frames.FORKED:
                peer.pid = aux
                peer.is_started.set()
            elif kind == frames.EXITED:
                peer.exit_status = aux
                self.on_exit(peer)
            elif kind == frames.REFUSED:
                peer.exit_status = -1
                self.on_refused(peer, body.decode())

    def _host_died(self, host: Host) -> None:
        """The zygote is gone and its workers with it: a new one, nobody is charged."""
        self._reactor.forget_link(host.link)
        host.close()
        self.host = None
        now = time.monotonic()
        often = len(self._deaths) == self._deaths.maxlen and now - self._deaths[0] < 60
        self._deaths.append(now)
        orphans = list(self.peers.values())
        for peer in orphans:
            peer.exit_status = -1
            if peer.pid:
                kill_orphan(peer.pid)
        for peer in orphans:
            if often:
                group = peer.group
                group.core.is_broken = True
                group.failure = ("refused", "the zygote process died again and again")
                group.finish_all(frames.GROUP_BROKEN, group.failure)
            self.on_exit(peer)

    # -- the end ---------------------------------------------------------------------------------

    def let_go(self) -> None:
        """The zygote is somebody else's from now on."""
        if self.host is not None and self.host.link.is_open:
            self._reactor.forget(self.host.link.fileno())

    def close(self) -> None:
        """The reactor has ended. If it failed, the zygote and all workers end too; otherwise it was let go."""
        for peer in list(self.peers.values()):
            peer.link.close()
            if peer.exit_status is None:
                peer.exit_status = -1
            peer.has_exited.set()
        if self._reactor.failure is not None and self.host is not None:
            self.host.close()
        self.host = None
        self._seats.close()

    def give_up_host(self) -> None:
        """The reactor could not be started."""
        host, self.host = self.host, None
        if host is not None:
            host.close()

    def forget(self) -> None:
        """In a forked child, where the reactor thread is not: close the fds, which are the parent's; take no lock."""
        for peer in self.peers.values():
            peer.link.close()
        if self.host is not None:
            self.host.link.close()
        self.host = None
        self._seats.close()


def kill_orphan(pid: int) -> None:
    """A worker whose zygote is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
