"""Workers of the node that is on the driver's own machine: by a channel to a zygote of that node's (`near_socket`) the
driver has them as it has those of its own, with sockets and shared memory between them and nothing relayed.

They run where and as the node says (its limits, its environment, its interpreter), and end with it.

Everything here runs on the reactor thread, except `forget`.
"""

from __future__ import annotations

import marshal

from scaleout._runtime.cluster.outputs import Outputs, origin_of
from scaleout._runtime.node.keeper import kill_orphan
from scaleout._runtime.node.seat import Seat
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.cluster.relayed import RemoteNode
    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.node.seat import SeatSupply

    Fleet = Any  # cluster.fleet's, which is put together from this and others


class NearSeat(Seat):
    """A worker's place: see `node.seat`. What it prints comes by pipes."""

    pid = 0
    near: Near

    @property
    def node(self) -> RemoteNode:
        """Whose worker it is."""
        return self.near.node

    def greet(self, info: dict[str, Any]) -> None:
        super().greet({**info, "spill_dir": self.near.spill_dir})

    def origin(self, peer: Any) -> str:
        return origin_of(self.node.node_id, peer.pid)

    def discard(self) -> None:
        self.near.outputs.close(self)
        super().discard()

    def answer_all(self) -> None:
        """As that of a relayed one; here nobody waits for an answer."""


class Near:
    """See the module's docstring."""

    def __init__(self, fleet: Fleet, node: RemoteNode, host: Host, info: dict[str, Any], seats: SeatSupply) -> None:
        self._fleet = fleet
        self._reactor: Reactor = fleet.reactor
        self.node = node
        self._host = host
        self._info = info
        self._seats = seats
        self._state = b""
        self._peers: dict[int, Any] = {}  # peers whose seats are near
        self.outputs = Outputs(
            node.node_id, self._reactor.watch, self._reactor.forget, self._reactor.call_later, self._print
        )
        self._reactor.watch(host.link.fileno(), self._on_host)

    def seat(self, state: bytes) -> NearSeat:
        """For a worker that is to look so; OSError: there are no descriptors left."""
        if state != self._state:
            self._state = state
            wanted = marshal.loads(state)
            more = [entry for entry in self._info["path"] if entry not in wanted["path"]]
            looks = {**wanted, "path": [*wanted["path"], *more], "max_processes": self._info["max_processes"]}
            self._host.describe(looks)
            self._reactor.flush_soon(self._host.link)
        seat = self._seats.take(NearSeat)
        seat.near = self
        try:
            self.outputs.open(seat)
        except BaseException:
            seat.discard()
            raise
        return seat

    @property
    def spill_dir(self) -> Any:
        return self._info["spill_dir"]

    def fork(self, peer: Any) -> None:
        """Ask for the worker. Cannot fail."""
        self._peers[peer.worker_id] = peer
        for number, fd in self.outputs.take_theirs(peer.seat):
            self._host.give_output(number, fd)
        self._host.fork(peer.worker_id, peer.seat.take_theirs())
        if not self._host.link.flush():  # at once: many workers that start have many descriptors on their way
            self._reactor.flush_soon(self._host.link)
        peer.link.flush()

    def kill(self, peer: Peer, signum: int) -> None:
        self._host.kill(peer.worker_id, signum)
        self._reactor.flush_soon(self._host.link)

    def adopt(self, peer: Peer, fd: int) -> None:
        """The worker becomes an owner: the zygote gets its channel. Takes the fd."""
        self._host.adopt(peer.worker_id, fd)
        self._reactor.flush_soon(self._host.link)

    def _print(self, number: int, text: bytes) -> None:
        self._fleet.on_output(number, text.decode(errors="replace"))

    # -- from the zygote -------------------------------------------------------------------------

    def _on_host(self, events: int) -> None:
        data = self._reactor.read(self._host.link, events)
        if not data:
            if data is not None:
                self._fleet.near_lost(self.node)
            return
        for kind, _, aux, number, body in self._host.link.frames(data):
            peer = self._peers.get(number)
            if peer is None:
                continue
            if kind == frames.FORKED:
                peer.pid = peer.seat.pid = aux
                peer.is_started.set()
            elif kind == frames.EXITED:
                self._leave(peer, aux)
                self._fleet.on_exit(peer)
            elif kind == frames.REFUSED:
                self._leave(peer, -1)
                self._fleet.on_refused(peer, body.decode())

    def _leave(self, peer: Any, exit_status: int) -> None:
        del self._peers[peer.worker_id]
        self.outputs.end(peer.seat)
        self._fleet.left(self.node, peer)
        peer.exit_status = exit_status

    def end(self) -> None:
        """The zygote and its workers end, if they have not yet. Nobody is charged."""
        self._reactor.forget_link(self._host.link)
        self._host.close()
        orphans = list(self._peers.values())
        for peer in orphans:
            if peer.pid:
                kill_orphan(peer.pid)
            self._leave(peer, -1)
        for peer in orphans:
            self._fleet.on_exit(peer)

    def close(self) -> None:
        """The owner ends."""
        self._reactor.forget_link(self._host.link)
        self._host.close()
        for peer in self._peers.values():
            self.outputs.close(peer.seat)

    def forget(self) -> None:
        """In a forked child: close the fds, which are the parent's."""
        self._host.link.close()
        self.outputs.forget()
