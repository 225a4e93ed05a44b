"""A worker's place: what it and its owner share."""

from __future__ import annotations

import marshal
import socket

from scaleout._runtime.base import limits
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.control_page import ControlPages
from scaleout._runtime.wire.frames import frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    SeatKind = TypeVar("SeatKind", bound="Seat")

    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.store.segment import Extent


class Seat:
    """For a worker of this machine: a socket pair and a control page. `cluster.fleet` has one for those of others.

    Used on the reactor thread.
    """

    is_relayed = False
    place: Any = None
    node: Any = None  # whose worker it is, on a cluster

    def __init__(
        self, supply: SeatSupply, link: Link, theirs: socket.socket, page: tuple[int, int, memoryview]
    ) -> None:
        self._supply = supply
        self.link = link
        self._theirs: socket.socket | None = theirs
        self._page = page
        self.words: Any = page[2]

    def origin(self, peer: Any) -> str:
        """What goes before what the worker says, if it says it elsewhere."""
        return ""

    def take_theirs(self) -> socket.socket:
        """The worker's end of the link, once."""
        theirs, self._theirs = self._theirs, None
        assert theirs is not None
        return theirs

    def greet(self, info: dict[str, Any]) -> None:
        """Queue the frame that the worker reads first."""
        file, index, _ = self._page
        self.link.queue(frame(frames.HELLO, marshal.dumps({**info, "page": index})), file)

    def introduce(self, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        """Queue the frame by which the worker knows a segment."""
        self.link.queue(frame(frames.SEGMENT, marshal.dumps((size_bytes, is_on_disk)), number=segment_id), fd)

    def bring(self, extent: Extent, fd: int) -> None:
        """What the worker is told next names this range of the segment: it has to be there."""

    def take_segment(self, segment_id: int, size_bytes: int) -> int:
        """The fd of the segment that the worker has just announced."""
        return self.link.fds.popleft()

    def when_settled(self, then: Callable[[], object]) -> None:
        """Call it when what was stored in the control page before is known to the worker, and what that has claimed by
        then to us."""
        self._supply.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, then)

    def discard(self) -> None:
        """There will be no worker."""
        self._supply.reactor.forget_link(self.link)
        self.link.close()
        if self._theirs is not None:
            self._theirs.close()
        self.release()

    def release(self) -> None:
        """The worker is gone, and its control page has been read."""
        file, index, words = self._page
        words.release()
        self._supply.pages.give_back(file, index)


class SeatSupply:
    """Makes seats for workers of this machine."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.pages = ControlPages()

    def take(self, kind: type[SeatKind] = Seat) -> SeatKind:  # type: ignore[assignment]
        """OSError: there are no descriptors left."""
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            return kind(self, Link(ours), theirs, self.pages.take())
        except BaseException:
            ours.close()
            theirs.close()
            raise

    def close(self) -> None:
        self.pages.close()
