"""Workers of other machines, as their owner sees them.

To the owner a worker of another machine is one like any other: its seat has a link and a control page. Here the link is
*relayed*: what is queued goes, as it is, through the one link to the worker's node, and what the worker says comes from
there. The control page is a copy: what the owner stores is sent on, what the worker stores arrives a moment later, or
when it is asked for.

Segments are *mirrored*: a node that needs a range of one which lies elsewhere has a segment of the same id and size,
and gets that range, at the same place, before the frame that names it. So frames need no translation, in either
direction.
"""

from __future__ import annotations

import marshal
import time

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.outbox import OFFSET, Arrival, Awaited, Piecewise
from scaleout._runtime.cluster.outputs import origin_of
from scaleout._runtime.core.placement import Room
from scaleout._runtime.core.warm import WarmRanges
from scaleout._runtime.store import segment
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.cluster.node_link import NodeLink
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.store.segment import Extent

    Fleet = Any  # cluster.fleet's, which is put together from this and others
    Near = Any  # cluster.near's, as well


class RemoteNode:
    """A node, and what it has of ours. `resources` are in thousandths; `session` is what it knows us by, `reading` what
    other nodes show it to read what it has of ours."""

    def __init__(
        self, link: NodeLink, node_id: str, resources: dict[str, int], address: str, session: str, reading: str
    ) -> None:
        self.link = link
        self.node_id = node_id
        self.address = address
        self.session = session
        self.reading = reading
        self.attempts = 0  # at another connection
        self.room = Room(resources)
        self.is_leaving = False  # it is being drained
        self.state = b""  # how its workers are to look, as it was told
        self.peers: dict[int, Peer] = {}
        self.mirrored: dict[Extent, Piecewise | Arrival] = {}
        self.warm = WarmRanges()  # was mirrored, and may be overwritten
        self.home: set[int] = set()  # segments of its own workers
        self.channel: tuple[Host, dict[str, Any]] | None = None  # from `near_socket`, if it is on this machine
        self.near: Near | None = None  # what has come of that

    def leave(self) -> None:
        """No more of it; also of what nobody has used yet."""
        self.link.close()
        if self.channel is not None:
            self.channel[0].close()


class RelayedLink:
    """Frames to and from a worker, by its node. As `wire.link.Link`, as far as owners use that."""

    __slots__ = ("_node", "_parts", "_reactor", "_tail", "_worker_id", "fds", "is_lent", "is_open")

    def __init__(self, reactor: Reactor, node: RemoteNode, worker_id: int) -> None:
        self._reactor = reactor
        self._node = node
        self._worker_id = worker_id
        self._parts: list[bytes] = []
        self._tail = b""
        self.fds: list[int] = []
        self.is_open = True
        self.is_lent = False

    def fileno(self) -> int:
        """No descriptor; but no other link's number."""
        return -1 - self._worker_id

    def queue(self, data: bytes, fd: int = -1) -> None:
        assert fd < 0
        if self.is_open:
            self._parts.append(data)

    def flush(self) -> bool:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            for start in range(0, len(data), limits.PIECE_BYTES):
                body = data[start : start + limits.PIECE_BYTES]
                relay = frame(frames.RELAY, body, number=self._worker_id)
                self._node.link.queue(relay, worker_id=self._worker_id)
            self._reactor.flush_soon(self._node.link)
        return True

    def take(self, body: bytes) -> bytes:
        """What the worker has said, from a frame's start on."""
        data, self._tail = self._tail + body, b""
        return data

    def receive(self) -> bytes:
        """Nothing: all that it said has been handed on."""
        return b""

    def leftover(self, data: bytes, position: int) -> None:
        self._tail = data[position:]

    def close(self) -> None:
        self.is_open = False
        self._parts.clear()


class RelayedWords:
    """A copy of a control page: what is stored here is sent to the node, but for what the node itself decides."""

    def __init__(self, seat: RelayedSeat) -> None:
        self._seat = seat
        self._values = [0] * control_page.WORDS
        self._values[control_page.REVOKED_FROM] = control_page.NOTHING_REVOKED
        self._values[control_page.ITEM_INDEX] = control_page.NO_ITEM

    def __getitem__(self, index: int) -> int:
        return self._values[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._values[index] = value
        if index in (control_page.REVOKED_FROM, control_page.INTERRUPTED):
            self._seat.tell(frame(frames.WORD, OFFSET.pack(value), aux=index, number=self._seat.worker_id))

    def assume_all_claimed(self) -> None:
        self._values[control_page.CLAIMED] = control_page.NOTHING_REVOKED

    def update(self, data: bytes) -> None:
        """What the node has read."""
        values = memoryview(data).cast("Q").tolist()
        age_ns = values[control_page.SINCE_NS]
        for index in (control_page.REVOKED_FROM, control_page.INTERRUPTED, control_page.ALLOWANCE_BYTES):
            values[index] = self._values[index]
        values[control_page.SINCE_NS] = max(0, time.monotonic_ns() - age_ns)
        self._values = values


class RelayedSeat:
    """The place of a worker of another machine: see `node.seat`."""

    is_relayed = True

    @property
    def place(self) -> RemoteNode:
        """The machine that the worker is on, as `core.places` names it."""
        return self.node

    def __init__(self, fleet: Fleet, node: RemoteNode, worker_id: int, shape: Shape) -> None:
        self._fleet = fleet
        self._gpus = dict(shape).get("GPU", 0)
        self.node = node
        self.worker_id = worker_id
        self._questions: dict[int, Callable[[], object]] = {}  # LOOKs that are not answered yet
        self.link = RelayedLink(fleet.reactor, node, worker_id)
        self.words = RelayedWords(self)

    def tell(self, data: Any) -> None:
        """The node itself, after what is queued for the worker."""
        self.link.flush()
        self.node.link.queue(data, worker_id=self.worker_id)
        self._fleet.reactor.flush_soon(self.node.link)

    def greet(self, info: dict[str, Any]) -> None:
        archive = self._fleet.sources.archive
        if archive is not None and info.get("working_dir") is not None:
            info["working_dir"] = archive.digest  # of a copy that the node gets
        self.tell(frame(frames.GREET, marshal.dumps((info, self._gpus)), number=self.worker_id))

    def introduce(self, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        body = marshal.dumps((segment_id, size_bytes, is_on_disk))
        self.tell(frame(frames.INTRODUCE, body, number=self.worker_id))

    def bring(self, extent: Extent, fd: int) -> None:
        node = self.node
        if extent[0] in node.home:
            return
        mirrors = self._fleet.mirrors
        pieces = node.mirrored.get(extent)
        if pieces is None and extent[2] >= limits.SPREAD_BYTES:
            pieces = mirrors.arrival(node, extent, [None, *mirrors.holders_of(extent)])
        if pieces is None:
            pieces = node.mirrored[extent] = Piecewise(extent, mirrors.file_of(extent[0], fd))
            node.warm.reused(pages_of(extent))
            self.tell(pieces)
        elif not pieces.is_done:
            self.tell(Awaited(pieces))

    def origin(self, peer: Peer) -> str:
        return origin_of(self.node.node_id, peer.pid)

    def take_segment(self, segment_id: int, size_bytes: int) -> int:
        self.node.home.add(segment_id)
        return int(self._fleet.mirrors.mirror(segment_id, size_bytes))

    def when_settled(self, then: Callable[[], object]) -> None:
        number = self._fleet.next_question()
        self._questions[number] = then
        self.tell(frame(frames.LOOK, aux=number, number=self.worker_id))

    def answered(self, number: int) -> None:
        """The control page is what it was when the node was asked."""
        then = self._questions.pop(number, None)
        if then is not None:
            then()

    def answer_all(self) -> None:
        """It will not change any more."""
        for number in list(self._questions):
            self.answered(number)

    def discard(self) -> None:
        self.tell(frame(frames.UNSEAT, number=self.worker_id))
        self.link.close()

    def release(self) -> None:
        self.link.close()


def pages_of(extent: Extent) -> Extent:
    """The whole pages, which are its own."""
    segment_id, offset, size_bytes = extent
    return segment_id, offset, segment.round_to_pages(size_bytes)
