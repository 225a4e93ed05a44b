"""The nodes that lend this driver workers, in the place that `node.keeper` has where the only node is this process.

What the owner shares with each of their workers is in `relayed`. Here: which nodes there are, where workers go, what
nodes say, what becomes of memory that is mirrored, and links and nodes that are lost.

Everything here runs on the reactor thread, except `forget` and what says so.
"""

from __future__ import annotations

import marshal
import os
import signal
import threading
import time
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.dial import NodeRefusal
from scaleout._runtime.cluster.outbox import OFFSET, Arrival, Piecewise, SharedFile
from scaleout._runtime.cluster.relayed import RelayedSeat, RemoteNode, pages_of
from scaleout._runtime.cluster.sources import OwnSources
from scaleout._runtime.cluster.transfers import Transfers
from scaleout._runtime.core.placement import choose
from scaleout._runtime.core.roster import Roster
from scaleout._runtime.core.warm import WarmRanges, gaps_between
from scaleout._runtime.node.host import present_state
from scaleout._runtime.node.reactor import READABLE
from scaleout._runtime.store import segment
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.store.segment import Extent


class Fleet:
    """The nodes of a driver, with the interface of `node.keeper.ZygoteKeeper`.

    `dial(address)` makes a link to a node that has joined; `redial(node, seconds)` another connection for a link that
    has lost its own, and says how much has arrived there. Both run in threads of their own. `on_data(peer, data)` takes
    what a worker says.
    """

    def __init__(
        self,
        reactor: Reactor,
        nodes: list[RemoteNode],
        listed: tuple[int, list[Any]],
        max_processes: int,
        dial: Callable[[str], RemoteNode],
        redial: Callable[[RemoteNode, float], tuple[Any, int]],
    ) -> None:
        self.reactor = reactor
        self._dial = dial
        self._redial = redial
        self.nodes = nodes
        self._max_processes = max_processes
        self._state = b""
        self._questions = 0
        self.host = None  # no zygote is ours
        self.sources = OwnSources()
        self._warm = WarmRanges()  # of our own mirrors
        self._is_trim_armed = False
        self._used_at = 0.0
        self._mirrors: dict[int, SharedFile] = {}  # of what workers have written, by segment
        self._files: dict[int, SharedFile] = {}  # of what we have sent
        self.peers: dict[int, Peer] = {}
        self.on_exit: Callable[[Peer], None] = lambda peer: None
        self.on_refused: Callable[[Peer, str], None] = lambda peer, reason: None
        self.on_data: Callable[[Peer, bytes], None] = lambda peer, data: None
        self.on_nodes: Callable[[list[dict[str, int]]], None] = lambda nodes: None
        self.on_output: Callable[[int, str], None] = lambda number, text: None
        self.on_place_lost: Callable[[RemoteNode], None] = lambda node: None
        self.on_short: Callable[[RemoteNode, dict[int, int]], None] = lambda node, usage: None
        self.on_leaving: Callable[[RemoteNode], None] = lambda node: None
        self._absent: set[Extent] = set()  # ranges of mirrors that nothing has come of
        self._transfers = Transfers(self._tell_at, self.next_question)
        self._teller: RemoteNode | None = None  # by whom we hear of nodes: of a thousand, one is enough
        self._roster = Roster(*listed)
        for node in nodes:
            self._roster.linked(node.node_id)

    has_places = True

    # -- to the nodes ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """The workers that are asked for from now on look as this process looks now. OSError: there are no nodes."""
        if not self.nodes:
            raise OSError("no node of the cluster is connected")
        for node in self.nodes:
            self._listen(node)
        self.sources.look()
        state = present_state(self._max_processes)
        del state["environ"]  # a node has its own
        self._state = marshal.dumps(state)

    def _listen(self, node: RemoteNode) -> None:
        if not node.link.is_broken and not self.reactor.is_watching(node.link.fileno()):
            self.reactor.watch(node.link.fileno(), partial(self._on_node, node))
        self._need_teller()

    def _need_teller(self) -> None:
        if self._teller not in self.nodes:
            self._teller = self.nodes[0] if self.nodes else None
            if self._teller is not None:
                self._tell(self._teller, frame(frames.WATCH))

    def seat(self, worker_id: int, shape: Shape) -> RelayedSeat:
        """For a worker that is to be; OSError: there is no node for it."""
        room = choose((node.room for node in self.nodes), shape)
        if room is None:
            raise OSError("no node of the cluster has what is asked for any more")
        node = next(node for node in self.nodes if node.room is room)
        if node.state != self._state:  # of a thousand nodes, those that get workers are told
            node.state = self._state
            self._tell(node, frame(frames.STATE, self._state))
        return RelayedSeat(self, node, worker_id, shape)

    def fork(self, peer: Peer) -> None:
        seat: Any = peer.seat
        seat.node.room.take(peer.group.shape)
        self.peers[peer.worker_id] = seat.node.peers[peer.worker_id] = peer
        seat.tell(frame(frames.FORK, number=peer.worker_id))

    def kill(self, peer: Peer, signum: int) -> None:
        if peer.exit_status is None and not self.reactor.is_stopping:
            seat: Any = peer.seat
            seat.tell(frame(frames.KILL, aux=signum, number=peer.worker_id))

    def kill_for_task(self, peer: Peer) -> None:
        peer.group.core.lane_given_up(peer.lane)
        self.kill(peer, signal.SIGKILL)

    def give_up(self, peer: Peer) -> None:
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self.kill(peer, signal.SIGKILL)

    def adopt(self, peer: Peer, fd: int) -> None:
        """Its node has done it."""

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

    # -- large values ----------------------------------------------------------------------------

    def mirror(self, segment_id: int, size_bytes: int) -> int:
        """The fd of a segment for what lies elsewhere under this id; the caller's to close."""
        file = SharedFile(segment.create_memory_segment(size_bytes).fd)
        fd = os.dup(file.fd)
        self._mirrors[segment_id] = self._files[segment_id] = file
        return fd

    def file_of(self, segment_id: int, fd: int) -> SharedFile:
        """To read a segment by while its ranges are being sent."""
        file = self._files.get(segment_id)
        if file is None:
            file = self._files[segment_id] = SharedFile(os.dup(fd))
        return file

    def mirrored_bytes(self) -> int:
        """What is here of segments that lie elsewhere."""
        return sum(os.fstat(file.fd).st_blocks * 512 for file in self._mirrors.values())

    def stay(self, extents: list[Extent]) -> None:
        """These have been written, and are not here."""
        self._absent.update(extents)

    def know(self, objects: ObjectTable) -> None:
        """What is transferred is kept there."""
        transfers = self._transfers
        transfers.hold = objects.hold_now
        transfers.drop = objects.drop

        def file_of(segment_id: int) -> tuple[SharedFile, int]:
            fd, size_bytes, _ = objects.segment_of(segment_id)
            return self.file_of(segment_id, fd), size_bytes

        transfers.file_of = file_of

    def transfer(
        self,
        place: RemoteNode | None,
        extents: list[Extent],
        holders: Iterable[RemoteNode],
        then: Callable[[bool], object],
    ) -> None:
        """Have the bytes of these sent to a node, or here (None), from those that have them; `then(True)` when they are
        there, `then(False)` if they are not to be had or the node is gone."""
        outcomes: list[bool] = []

        def ended(is_there: bool) -> None:
            outcomes.append(is_there)
            if len(outcomes) == len(extents):
                then(all(outcomes))

        for extent in list(extents):
            if place is None:
                self._absent.discard(extent)
                self._transfers.want(extent, None, holders, ended)
            elif place in self.nodes:
                arrival = self.arrival(place, extent, holders)
                if isinstance(arrival, Arrival):
                    arrival.when_ended(ended)
                else:
                    ended(True)  # it was sent before
            else:
                ended(False)

    def arrival(self, node: RemoteNode, extent: Extent, holders: Iterable[RemoteNode | None]) -> Piecewise | Arrival:
        """A range as it comes to a node."""
        arrival = node.mirrored.get(extent)
        if arrival is None:
            arrival = node.mirrored[extent] = Arrival()
            node.warm.reused(pages_of(extent))
            self._transfers.want(extent, node, holders, partial(self._arrived, node, extent, arrival))
        return arrival

    def _arrived(self, node: RemoteNode, extent: Extent, arrival: Arrival, is_there: bool) -> None:
        if not is_there and node.mirrored.get(extent) is arrival:
            del node.mirrored[extent]
        arrival.end(is_there)
        self.reactor.flush_soon(node.link)  # of what has waited for it

    def holders_of(self, extent: Extent) -> list[RemoteNode]:
        """The nodes that have a range of which the bytes are here, too."""
        return [node for node in self.nodes if extent[0] in node.home or _has_arrived(node.mirrored.get(extent))]

    def _tell_at(self, node: RemoteNode, data: Any, place: int) -> None:
        node.link.queue(data, worker_id=place)
        self.reactor.flush_soon(node.link)

    def writer_died(self, segment_id: int, size_bytes: int, keep: list[Extent]) -> None:
        """Nobody will write this segment any more, and nobody needs more of it than these ranges. Its node gives the
        rest of the memory back; with the last range all forget the segment."""
        if not keep:
            self._mirrors.pop(segment_id, None)
            self._files.pop(segment_id, None)
        for node in self.nodes:
            if not keep:
                node.home.discard(segment_id)
                for extent in [extent for extent in node.mirrored if extent[0] == segment_id]:
                    node.mirrored.pop(extent).drop()
                node.warm.forget(segment_id)
                self._tell(node, frame(frames.FORGET_SEGMENT, number=segment_id))
            elif segment_id in node.home:
                gaps = gaps_between([pages_of(extent) for extent in keep], segment_id, size_bytes)
                self._tell(node, frame(frames.DISCARD, marshal.dumps(gaps)))
        if not keep:
            self._warm.forget(segment_id)

    def over(self, extents: list[Extent]) -> None:
        """Nobody reads these any more."""
        self._transfers.over(extents)
        for node in self.nodes:
            for extent in extents:
                pieces = node.mirrored.pop(extent, None)
                if pieces is not None:
                    pieces.drop()
                    node.warm.add(pages_of(extent))
        for extent in extents:
            if extent in self._absent:
                self._absent.discard(extent)
            elif extent[0] in self._mirrors:
                self._warm.add(pages_of(extent))
        if max(warm.size_bytes for warm in self._all_warm) > limits.WARM_BYTES:
            self._trim()
        elif not self._is_trim_armed:
            self._is_trim_armed = True
            self.reactor.call_later(limits.WARM_SECONDS, self._trim_if_idle)
        self._used_at = time.monotonic()

    @property
    def _all_warm(self) -> list[WarmRanges]:
        return [self._warm, *(node.warm for node in self.nodes)]

    def _trim_if_idle(self) -> None:
        if time.monotonic() - self._used_at < limits.WARM_SECONDS * 0.9:
            self.reactor.call_later(limits.WARM_SECONDS, self._trim_if_idle)
            return
        self._is_trim_armed = False
        self._trim()

    def _trim(self) -> None:
        """Give the pages back that nobody needs."""
        for node in self.nodes:
            ranges = node.warm.take()
            if ranges:
                self._tell(node, frame(frames.DISCARD, marshal.dumps(ranges)))
        for segment_id, offset, size_bytes in self._warm.take():
            segment.punch(self._mirrors[segment_id].fd, offset, size_bytes)

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
                self._write_piece(number, body)
                continue
            if kind == frames.NODES:
                self._told_of_nodes(*marshal.loads(body))
                continue
            if kind == frames.CONFIRM:
                node.link.confirmed(number)
                continue
            if kind == frames.FETCHED:
                self._transfers.ended(number, not flag)
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
                self._left(node, peer)
                peer.exit_status = -1 if flag else aux  # with its zygote: no fault of what ran there
                self.on_exit(peer)
            elif kind == frames.REFUSED:
                self._left(node, peer)
                peer.exit_status = -1
                self.on_refused(peer, body.decode())

    def _left(self, node: RemoteNode, peer: Peer) -> None:
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
            node.link.close()
            return
        self.nodes.append(node)
        self._listen(node)
        self.on_nodes(self._resources)

    @property
    def _resources(self) -> list[dict[str, int]]:
        return [node.room.resources for node in self.nodes]

    def _write_piece(self, segment_id: int, body: bytes) -> None:
        file = self._mirrors.get(segment_id)
        if file is not None:
            offset = OFFSET.unpack_from(body)[0]
            self._warm.reused(pages_of((segment_id, offset, len(body) - OFFSET.size)))
            segment.write_all(file.fd, memoryview(body)[OFFSET.size :], offset)

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
        for peer in list(node.peers.values()):
            # What it has begun since it was heard of last nobody knows: all of it, for those that must not run twice.
            peer.words.assume_all_claimed()
            self._left(node, peer)
            peer.exit_status = -1
            self.on_exit(peer)
        self.on_place_lost(node)
        self._transfers.place_lost(node)
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
            node.link.bye()
            self.reactor.forget_link(node.link)
            node.link.close()
        self.nodes.clear()
        self._transfers.close()
        self._close_mirrors()

    def give_up_host(self) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked child, where the reactor thread is not: close the fds, which are the parent's; take no lock."""
        for node in self.nodes:
            node.link.close()
        self.nodes.clear()
        self._close_mirrors()

    def _close_mirrors(self) -> None:
        self._mirrors.clear()
        self._files.clear()


def _has_arrived(arrival: Piecewise | Arrival | None) -> bool:
    """All of it, and not only sent."""
    return isinstance(arrival, Arrival) and arrival.is_done
