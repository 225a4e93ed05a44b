"""The nodes that lend this driver workers, in the place that `node.keeper` has where the only node is this process.

What the owner shares with each of their workers is in `relayed`, what becomes of large values in `mirrors`. Here: which
nodes there are, where workers go, what nodes say, and links and nodes that are lost.

Everything here runs on the reactor thread, except `forget` and what says so.
"""

from __future__ import annotations

import marshal
import signal
import threading
import time
from collections import deque
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.dial import NodeRefusal
from scaleout._runtime.cluster.mirrors import Mirrors
from scaleout._runtime.cluster.near import Near
from scaleout._runtime.cluster.relayed import RelayedSeat, RemoteNode
from scaleout._runtime.cluster.sources import OwnSources
from scaleout._runtime.core.placement import choose
from scaleout._runtime.core.roster import Roster
from scaleout._runtime.node.host import present_state
from scaleout._runtime.node.keeper import NoPlace
from scaleout._runtime.node.reactor import READABLE
from scaleout._runtime.node.seat import SeatSupply
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.cluster.near import NearSeat
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor


class Fleet:
    """The nodes of a driver, with the interface of `node.keeper.ZygoteKeeper`.

    `dial(address)` makes a link to a node that has joined; `redial(node, seconds)` another connection for a link that
    has lost its own, and says how much has arrived there; `ask(node)` is `near_socket.ask`. They run in threads of
    their own. `on_data(peer, data)` takes what a worker says.
    """

    def __init__(
        self,
        reactor: Reactor,
        nodes: list[RemoteNode],
        listed: tuple[int, list[Any]],
        max_processes: int,
        dial: Callable[[str], RemoteNode],
        redial: Callable[[RemoteNode, float], tuple[Any, int]],
        ask: Callable[[RemoteNode], tuple[Host, dict[str, Any]] | None],
    ) -> None:
        self.reactor = reactor
        self._dial = dial
        self._redial = redial
        self._ask = ask
        self.nodes = nodes
        self._max_processes = max_processes
        self._state = b""
        self._questions = 0
        self.host = None  # no zygote is ours
        self.sources = OwnSources()
        self.mirrors = Mirrors(reactor, nodes, self.next_question)
        self.peers: dict[int, Peer] = {}
        self.on_exit: Callable[[Peer], None] = lambda peer: None
        self.on_refused: Callable[[Peer, str], None] = lambda peer, reason: None
        self.on_data: Callable[[Peer, bytes], None] = lambda peer, data: None
        self.on_nodes: Callable[[list[dict[str, int]]], None] = lambda nodes: None
        self.on_output: Callable[[int, str], None] = lambda number, text: None
        self.on_place_lost: Callable[[RemoteNode], None] = lambda node: None
        self.on_short: Callable[[RemoteNode, dict[int, int]], None] = lambda node, usage: None
        self.on_leaving: Callable[[RemoteNode], None] = lambda node: None
        self.steward = ""  # the address of the steward of detached actors
        self._teller: RemoteNode | None = None  # by whom we hear of nodes: of a thousand, one is enough
        self._seats = SeatSupply(reactor)  # of near workers
        self._near_deaths: deque[float] = deque(maxlen=limits.ZYGOTE_RESTARTS_PER_MINUTE)
        self._roster = Roster(*listed)
        for node in nodes:
            self._roster.linked(node.node_id)

    has_places = True

    # -- to the nodes ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """The workers that are asked for from now on look as this process looks now. OSError: there are no nodes."""
        if not self.nodes:
            raise NoPlace("no node of the cluster is connected")
        for node in self.nodes:
            self._listen(node)
        self.sources.look()
        state = present_state(self._max_processes)
        del state["environ"]  # a node has its own
        self._state = marshal.dumps(state)

    def _listen(self, node: RemoteNode) -> None:
        if node.channel is not None:
            self._come_near(node, node.channel)
        if not node.link.is_broken and not self.reactor.is_watching(node.link.fileno()):
            self.reactor.watch(node.link.fileno(), partial(self._on_node, node))
        self._need_teller()

    def _come_near(self, node: RemoteNode, channel: tuple[Host, dict[str, Any]] | None) -> None:
        """It is on this machine, and has a zygote for us; or (None) has none any more."""
        node.channel = None
        if channel is None:
            return
        if self.reactor.is_stopping or node not in self.nodes or node.near is not None:
            channel[0].close()
        else:
            node.near = Near(self, node, *channel, self._seats)

    def near_lost(self, node: RemoteNode) -> None:
        """The zygote that it had for us is gone, and workers with it. Until there is another, they are relayed."""
        near, node.near = node.near, None
        assert near is not None
        near.end()
        now = time.monotonic()
        is_often = len(self._near_deaths) == self._near_deaths.maxlen and now - self._near_deaths[0] < 60
        self._near_deaths.append(now)
        if not is_often:
            try:
                threading.Thread(target=self._ask_anew, args=(node,), name="scaleout-near", daemon=True).start()
            except RuntimeError:  # no more threads
                pass

    def _ask_anew(self, node: RemoteNode) -> None:
        """In a thread of its own."""
        self.reactor.post(partial(self._come_near, node, self._ask(node)))

    def _need_teller(self) -> None:
        if self._teller not in self.nodes:
            self._teller = self.nodes[0] if self.nodes else None
            if self._teller is not None:
                self._tell(self._teller, frame(frames.WATCH))

    def seat(self, worker_id: int, shape: Shape) -> RelayedSeat | NearSeat:
        """For a worker that is to be; OSError: there is no node for it."""
        room = choose((node.room for node in self.nodes), shape)
        if room is None:
            raise NoPlace("no node of the cluster has what is asked for any more")
        node = next(node for node in self.nodes if node.room is room)
        if node.near is not None and not dict(shape).get("GPU"):  # those the node itself has to give out
            try:
                return node.near.seat(self._state)
            except OSError:  # no descriptors are left: a relayed one takes none
                pass
        if node.state != self._state:  # of a thousand nodes, those that get workers are told
            node.state = self._state
            self._tell(node, frame(frames.STATE, self._state))
        return RelayedSeat(self, node, worker_id, shape)

    def fork(self, peer: Peer) -> None:
        seat: Any = peer.seat
        seat.node.room.take(peer.group.shape)
        self.peers[peer.worker_id] = seat.node.peers[peer.worker_id] = peer
        if not seat.is_relayed:
            seat.near.fork(peer)
            return
        seat.tell(frame(frames.FORK, number=peer.worker_id))

    def kill(self, peer: Peer, signum: int) -> None:
        if peer.exit_status is None and not self.reactor.is_stopping:
            order = frame(frames.KILL, aux=signum, number=peer.worker_id)
            seat: Any = peer.seat
            if not seat.is_relayed:
                seat.near.kill(peer, signum)
            elif peer.pid:  # what is queued for it, and may wait for large values, it need not see any more
                self._tell(seat.node, order)
            else:
                seat.tell(order)

    def kill_for_task(self, peer: Peer) -> None:
        peer.group.core.lane_given_up(peer.lane)
        self.kill(peer, signal.SIGKILL)

    def give_up(self, peer: Peer) -> None:
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self.reactor.forget(peer.link.fileno())
            self.kill(peer, signal.SIGKILL)

    def adopt(self, peer: Peer, fd: int) -> None:
        """A near worker becomes an owner; what others become, their nodes know already."""
        seat: Any = peer.seat
        seat.near.adopt(peer, fd)

    def _tell(self, node: RemoteNode, data: bytes) -> None:
        node.link.queue(data)
        self.reactor.flush_soon(node.link)

    @property
    def num_cpus(self) -> int:
        """Any thread: of all nodes."""
        return max(1, sum(node.room.resources.get("CPU", 0) for node in list(self.nodes)) // 1000)

    def capacity(self, settings: Settings, amounts: dict[str, float]) -> tuple[list[dict[str, int]], list[str]]:
        """As `node.keeper`'s. ValueError for amounts: each node says what it has."""
        if amounts:
            raise ValueError(
                f"{', '.join(amounts)} cannot be given where the program runs on a cluster: "
                "its nodes were started with what they have (`scaleout start --num-cpus ... --resources ...`)"
            )
        return self._resources, []

    def next_question(self) -> int:
        self._questions = (self._questions + 1) & 0xFFFFFFFF or 1
        return self._questions

    # -- from the nodes --------------------------------------------------------------------------

    def _on_node(self, node: RemoteNode, events: int) -> None:
        data = self.reactor.read(node.link, events)
        try:
            if data:
                self._obey(node, data)
                self.reactor.flush_soon(node.link)  # of confirmations
            elif data is not None:
                self._connection_lost(node)
        except Exception as error:  # nonsense, or no memory left for what it sends: one node less
            self.on_output(2, f"scaleout: node {node.node_id} is given up: {type(error).__name__}: {error}\n")
            self._node_died(node)

    def _obey(self, node: RemoteNode, data: bytes) -> None:
        for kind, flag, aux, number, body in node.link.frames(data):
            if kind == frames.PIECE:
                self.mirrors.write(number, body)
                continue
            if kind == frames.NODES:
                self._told_of_nodes(*marshal.loads(body))
                continue
            if kind == frames.CONFIRM:
                node.link.confirmed(number)
                continue
            if kind == frames.FETCHED:
                self.mirrors.transfers.ended(number, not flag)
                continue
            if kind == frames.SHORT:
                self.on_short(node, marshal.loads(body))
                continue
            if kind == frames.BYE:
                self._node_died(node)
                return
            if kind == frames.PRINTED:
                self.on_output(aux, body.decode(errors="replace"))
                continue
            peer = node.peers.get(number)
            if peer is None:
                continue
            if kind == frames.RELAY:
                if not peer.is_stream_over:
                    self.on_data(peer, peer.link.take(body))
            elif kind == frames.WORDS:
                peer.words.update(body)
                seat: Any = peer.seat
                seat.answered(aux)
            elif kind == frames.FORKED:
                peer.pid = aux
                peer.is_started.set()
            elif kind == frames.EXITED:
                self.left(node, peer)
                peer.exit_status = -1 if flag else aux  # with its zygote: no fault of what ran there
                self.on_exit(peer)
            elif kind == frames.REFUSED:
                self.left(node, peer)
                peer.exit_status = -1
                self.on_refused(peer, body.decode())

    def left(self, node: RemoteNode, peer: Peer) -> None:
        """The worker is gone, or will not be."""
        del node.peers[peer.worker_id]
        node.room.give_back(peer.group.shape)
        seat: Any = peer.seat
        seat.answer_all()

    # -- connections that are lost ---------------------------------------------------------------

    def _connection_lost(self, node: RemoteNode) -> None:
        """Node and workers may be well: the link goes on over another connection, if there is one soon."""
        if node.link.was_silent or node.link.is_spoilt:  # for as long as makes a node dead; or it cannot go on
            self._node_died(node)
            return
        self.reactor.forget_link(node.link)
        node.link.break_off()
        threading.Thread(target=self._reconnect, args=(node,), name="scaleout-reconnect", daemon=True).start()

    def _reconnect(self, node: RemoteNode) -> None:
        """In a thread of its own."""
        deadline = time.monotonic() + limits.RESUME_SECONDS
        sock, arrived_bytes = None, 0
        while sock is None and node in self.nodes and (left_s := deadline - time.monotonic()) > 0:
            try:
                sock, arrived_bytes = self._redial(node, left_s)
            except Exception as error:  # as in `_reach`
                if isinstance(error, NodeRefusal) or isinstance(error.__cause__, ConnectionRefusedError):
                    break
                time.sleep(limits.RESUME_PAUSE_SECONDS)
        self.reactor.post(partial(self._reconnected, node, sock, arrived_bytes))

    def _reconnected(self, node: RemoteNode, sock: Any, arrived_bytes: int) -> None:
        if sock is None or self.reactor.is_stopping or node not in self.nodes:
            if sock is not None:
                sock.close()
            self._node_died(node)
            return
        try:
            node.link.resume(sock, arrived_bytes)
        except (ValueError, TypeError):  # it is out of its mind
            sock.close()
            self._node_died(node)
            return
        self._listen(node)
        self.reactor.flush_soon(node.link)
        self._on_node(node, READABLE)  # a TLS connection may hold what no poll shows

    # -- nodes that come and go ------------------------------------------------------------------

    def _told_of_nodes(self, version: int, nodes: list[Any]) -> None:
        news = self._roster.told(version, nodes)
        if news is None:
            return
        for node in list(self.nodes):
            if node.node_id in news.gone:
                self._node_died(node)
                continue
            if news.resting.get(node.node_id) and not node.is_leaving:
                node.is_leaving = True
                self.on_leaving(node)
                for peer in list(node.peers.values()):
                    if not peer.group.keeps_order:  # an actor stays where it is
                        peer.group.core.lane_unwanted(peer.lane)
            node.room.is_wanted = node.node_id not in news.resting
        self._reach_all()

    def _reach_all(self) -> None:
        for node_id, address in self._roster.to_dial().items():
            threading.Thread(target=self._reach, args=(node_id, address), daemon=True).start()

    def _reach(self, node_id: str, address: str) -> None:
        """In a thread of its own."""
        try:
            node: RemoteNode | None = self._dial(address)
        except Exception:  # it may say anything, and somebody must hear that it is not reached
            node = None
        self.reactor.post(partial(self._reached, node_id, node))

    def _reached(self, node_id: str, node: RemoteNode | None) -> None:
        if node is None or node.node_id != node_id:  # another has its address now
            self._roster.unreachable(node_id)
            self.reactor.call_later(limits.REDIAL_SECONDS, self._reach_all)
        if node is None:
            return
        if self.reactor.is_stopping or not self._roster.linked(node.node_id):
            node.link.bye()
            node.leave()
            return
        self.nodes.append(node)
        self._listen(node)
        self.on_nodes(self._resources)

    @property
    def _resources(self) -> list[dict[str, int]]:
        return [node.room.resources for node in self.nodes]

    def _node_died(self, node: RemoteNode) -> None:
        """The node is gone, or cut off, and its workers with it; nobody is charged."""
        node.link.bye()
        self.reactor.forget_link(node.link)
        node.link.close()
        if node not in self.nodes:
            return
        self.nodes.remove(node)
        self._roster.lost(node.node_id)
        self._need_teller()
        for peer in node.peers.values():
            peer.group.core.lane_given_up(peer.lane)  # before anything is sent to the next of them
        if node.near is not None:
            near, node.near = node.near, None
            near.end()
        for peer in list(node.peers.values()):
            # What it has begun since it was heard of last nobody knows: all of it, for those that must not run twice.
            peer.words.assume_all_claimed()
            self.left(node, peer)
            peer.exit_status = -1
            self.on_exit(peer)
        self.on_place_lost(node)
        self.mirrors.transfers.place_lost(node)
        self.on_nodes(self._resources)
        self.reactor.call_later(limits.REDIAL_SECONDS, self._reach_all)  # it may only have lost the connection

    # -- the end ---------------------------------------------------------------------------------

    def let_go(self) -> None:
        """The owner ends; `close` follows."""

    def close(self) -> None:
        for peer in list(self.peers.values()):
            peer.link.close()
            if peer.exit_status is None:
                peer.exit_status = -1
            peer.has_exited.set()
        for node in self.nodes:
            if node.near is not None:
                node.near.close()
            node.link.bye()
            self.reactor.forget_link(node.link)
            node.leave()
        self.nodes.clear()
        self.mirrors.close()
        self._seats.close()

    def give_up_host(self) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked child, where the reactor thread is not: close the fds, which are the parent's; take no lock."""
        for peer in self.peers.values():
            peer.link.close()
        for node in self.nodes:
            if node.near is not None:
                node.near.forget()
            node.leave()
        self.nodes.clear()
        self.mirrors.forget()
        self._seats.close()
