"""What is to go over a link between a driver and a node, and in which order.

Large values go in pieces, which are read from their segments when they are about to be sent: what waits here is only
where they are. What follows a large value to the same worker waits for it; what is for others goes in between.
"""

from __future__ import annotations

import os
from collections import deque
from struct import Struct

from scaleout._runtime.base import limits
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES
from scaleout._runtime.wire.link import GATHER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.store.segment import Extent

OFFSET = Struct("<Q")
BEFORE_DATA = HEADER_BYTES + OFFSET.size
"""Of a piece."""

TRANSFERS = 1 << 63
"""With a transfer's number, its place in an outbox, as if of a worker: no worker's frames wait for it."""


class SharedFile:
    """The descriptor of a segment, for all who are about to read or write it; closed with the last of them."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class Piecewise:
    """A range of a segment that is still to be sent."""

    __slots__ = ("_file", "left", "offset", "segment_id")

    def __init__(self, extent: Extent, file: SharedFile) -> None:
        self.segment_id, self.offset, self.left = extent
        self._file: SharedFile | None = file

    @property
    def is_done(self) -> bool:
        """All of it has been sent, or nobody wants the rest."""
        return not self.left

    def drop(self) -> None:
        """Nobody wants the rest."""
        self.left = 0
        self._file = None

    def next_frame(self) -> bytes | bytearray:
        """The next of its pieces; b"" after the last."""
        if self._file is None:
            return b""
        piece = bytearray(BEFORE_DATA + min(self.left, limits.PIECE_BYTES))
        with memoryview(piece) as view:
            size = os.preadv(self._file.fd, [view[BEFORE_DATA:]], self.offset)
        if size:
            del piece[BEFORE_DATA + size :]
        else:  # the segment was cut short: what is missing reads as zeros
            size = len(piece) - BEFORE_DATA
        HEADER.pack_into(piece, 0, OFFSET.size + size, frames.PIECE, 0, 0, self.segment_id)
        OFFSET.pack_into(piece, HEADER_BYTES, self.offset)
        self.offset += size
        self.left -= size
        if not self.left:
            self._file = None
        return piece


class Arrival:
    """A range that comes to a node from wherever it is. `when_ended(then)`: `then(whether it has come)`."""

    __slots__ = ("_then", "has_ended", "is_done")

    def __init__(self) -> None:
        self.is_done = self.has_ended = False
        self._then: list[Callable[[bool], object]] = []

    def when_ended(self, then: Callable[[bool], object]) -> None:
        if self.has_ended:
            then(self.is_done)
        else:
            self._then.append(then)

    def end(self, is_done: bool) -> None:
        self.has_ended = True
        self.is_done = is_done
        for then in self._then:
            then(is_done)
        self._then.clear()

    def drop(self) -> None:
        """Nobody wants it any more."""


class Awaited:
    """Stands before what may go only after a range that is on its way."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Piecewise | Arrival) -> None:
        self.pieces = pieces


class Common:
    """A frame for nobody in particular, as one that gives memory back: what is put in later comes later."""

    __slots__ = ("data", "number")

    def __init__(self, data: bytes, number: int) -> None:
        self.data = data
        self.number = number


class Backlog:
    """What waits behind large values for one worker: each with its number in the order of all."""

    __slots__ = ("items", "worker_id")

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.items: deque[tuple[int, Any]] = deque()

    def take(self, before: int) -> bytes | bytearray:
        """The next of it; b"" if it has ended, waits for another, or was put in after number `before`."""
        items = self.items
        while items:
            number, head = items[0]
            if number > before:
                return b""
            if type(head) is Piecewise:
                piece = head.next_frame()
                if piece:
                    return piece
            elif type(head) is Awaited:
                if not head.pieces.is_done:
                    return b""
            else:
                items.popleft()
                return bytes(head)
            items.popleft()
        return b""


class Outbox:
    """See the module's docstring."""

    __slots__ = ("_backlogs", "_common", "_count", "_front", "_waiting")

    def __init__(self) -> None:
        self._front: deque[Any] = deque()  # a backlog in it begins when all before it has gone
        self._common: deque[int] = deque()  # the numbers of the common frames in it
        self._count = 0
        self._backlogs: deque[Backlog] = deque()  # those that have begun, which take turns
        self._waiting: dict[int, Backlog] = {}  # all of them, by worker

    def __bool__(self) -> bool:
        return bool(self._front or self._backlogs)

    def put(self, data: Any, worker_id: int) -> None:
        """Frames, a `Piecewise` or an `Awaited`; with worker 0, a frame for nobody in particular. Whatever is for one
        worker keeps its order, and nothing overtakes what was put in before it but a large value."""
        self._count += 1
        if not worker_id:
            self._front.append(Common(data, self._count))
            self._common.append(self._count)
            return
        backlog = self._waiting.get(worker_id)
        if backlog is None:
            if isinstance(data, bytes):
                self._front.append(data)
                return
            backlog = self._waiting[worker_id] = Backlog(worker_id)
            self._front.append(backlog)
        backlog.items.append((self._count, data))

    def take(self) -> list[bytes | bytearray]:
        """What goes next, about GATHER_BYTES of the front, and as much of the backlogs, or one piece: each has its part
        however much there is of the other."""
        parts = self._take_front()
        before = self._common[0] if self._common else self._count
        size = 0
        for _ in range(len(self._backlogs)):
            if size:
                break
            backlog = self._backlogs.popleft()
            while size < GATHER_BYTES and (data := backlog.take(before)):
                parts.append(data)
                size += len(data)
            if backlog.items:
                self._backlogs.append(backlog)
            else:
                del self._waiting[backlog.worker_id]
        return parts

    def _take_front(self) -> list[bytes | bytearray]:
        parts: list[bytes | bytearray] = []
        size = 0
        while self._front and size < GATHER_BYTES:
            data = self._front.popleft()
            if type(data) is Backlog:
                self._backlogs.append(data)
                continue
            if type(data) is Common:
                self._common.popleft()
                data = data.data
            parts.append(data)
            size += len(data)
        return parts

    def clear(self) -> None:
        self._front.clear()
        self._common.clear()
        self._backlogs.clear()
        self._waiting.clear()
