"""A link between a driver and a node: frames over a TLS connection.

Large values go in pieces, which are read from their segments when they are about to be sent: what waits in the queue
is only where they are. What follows a large value to the same worker waits for it; what is for others goes in between.

The stream outlives its connection: what the other side has not confirmed is kept, and goes again over the next one.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections import deque
from struct import Struct

from scaleout._runtime.base import limits
from scaleout._runtime.core.unconfirmed import Unconfirmed
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, frame
from scaleout._runtime.wire.link import GATHER_BYTES, Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.store.segment import Extent

OFFSET = Struct("<Q")

SILENCE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""How a connection ends whose other end is gone without a word."""

RECORD_BYTES = 16 * 1024
"""The longest record of TLS: what the library may hold that no poll of the socket shows."""


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

    def next_frame(self) -> bytes:
        """The next of its pieces; b"" after the last."""
        if self._file is None:
            return b""
        data = os.pread(self._file.fd, min(self.left, limits.PIECE_BYTES), self.offset)
        if not data:  # the segment was cut short: what is missing reads as zeros
            data = bytes(min(self.left, limits.PIECE_BYTES))
        head = HEADER.pack(OFFSET.size + len(data), frames.PIECE, 0, 0, self.segment_id)
        piece = b"".join((head, OFFSET.pack(self.offset), data))
        self.offset += len(data)
        self.left -= len(data)
        if not self.left:
            self._file = None
        return piece


class Awaited:
    """Stands before what may go only after a range that is sent to somebody else."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Piecewise) -> None:
        self.pieces = pieces


class Common:
    """A frame for nobody in particular, as one that gives memory back: what is queued later comes later."""

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

    def take(self, before: int) -> bytes:
        """The next of it; b"" if it has ended, waits for another, or was queued after number `before`."""
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


class NodeLink(Link):
    """Non-blocking. One thread at a time uses it, as a TLS connection has one state for both directions."""

    __slots__ = (
        "_buffer",
        "_confirmation",
        "_backlogs",
        "_common",
        "_count",
        "_pending",
        "_queue",
        "_sending",
        "_unconfirmed",
        "_waiting",
        "is_broken",
        "received_bytes",
        "said_bytes",
        "was_silent",
    )

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._use(sock)
        self._unconfirmed = Unconfirmed()
        self.received_bytes = self.said_bytes = 0  # of the stream; and so many of them we have confirmed
        self._confirmation = b""
        self.was_silent = False  # the connection ended for that
        self._queue: deque[Any] = deque()  # a backlog in it begins when all before it has gone
        self._common: deque[int] = deque()  # the numbers of the common frames in it
        self._count = 0
        self._backlogs: deque[Backlog] = deque()  # those that have begun, which take turns
        self._waiting: dict[int, Backlog] = {}  # all of them, by worker
        self._buffer = memoryview(bytearray(limits.TURN_BYTES + RECORD_BYTES))
        self._sending = memoryview(b"")  # the same bytes again after a write that did not go through, as TLS wants it

    # -- one connection after the other ----------------------------------------------------------

    def _use(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._pending = sock.pending
        self.is_broken = False
        _watch_for_silence(sock)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # what the system holds back nothing can overtake
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.PIECE_BYTES)

    def break_off(self) -> None:
        """The connection has ended; there may be another. Until then what is queued waits."""
        self.is_broken = True
        self.sock.close()

    def resume(self, sock: ssl.SSLSocket, arrived_bytes: int) -> None:
        """Go on over this connection: the other side has so much of what we have sent. ValueError: that cannot be."""
        again = memoryview(b"".join(self._unconfirmed.take_back(arrived_bytes)))
        self._unconfirmed.sent(again)
        self._sending = again
        self._use(sock)

    def may_resume(self, arrived_bytes: int) -> bool:
        return self._unconfirmed.may_be(arrived_bytes)

    def bye(self) -> None:
        """Tell the other side, if that can be done at once, that no connection follows this one."""
        if self.is_open and not self.is_broken and not self._sending:
            try:
                self.sock.send(frame(frames.BYE))
            except (ValueError, OSError):
                pass  # it finds out

    # -- receiving -------------------------------------------------------------------------------

    def receive(self) -> bytes:
        size = 0
        buffer = self._buffer
        try:
            while (size < limits.TURN_BYTES or self._has_more) and (got := self.sock.recv_into(buffer[size:])):
                size += got  # a record of TLS at most: 16 KB
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not size:
                raise BlockingIOError from None
        except OSError as error:
            self.was_silent = error.errno in SILENCE
            if not size:
                raise
        self.received_bytes += size
        if self.received_bytes - self.said_bytes >= limits.CONFIRM_BYTES:
            self.said_bytes = self.received_bytes
            self._confirmation = frame(frames.CONFIRM, number=self.received_bytes)
        if not size:
            return b""  # a torn frame may go on over another connection
        tail, self._tail = self._tail, b""
        return b"".join((tail, buffer[:size]))

    @property
    def _has_more(self) -> bool:
        """Whether there is something that no poll of the socket will show."""
        return bool(self._pending())

    # -- sending ---------------------------------------------------------------------------------

    def queue(self, data: Any, fd: int = -1, worker_id: int = 0) -> None:
        """Send frames, a `Piecewise` or an `Awaited` later. Whatever is for one worker keeps its order, and nothing
        overtakes what was queued before it but a large value. No descriptor crosses to another machine."""
        assert fd < 0
        if not self.is_open:
            return
        self._count += 1
        if not worker_id:
            self._queue.append(Common(data, self._count))
            self._common.append(self._count)
            return
        backlog = self._waiting.get(worker_id)
        if backlog is None:
            if isinstance(data, bytes):
                self._queue.append(data)
                return
            backlog = self._waiting[worker_id] = Backlog(worker_id)
            self._queue.append(backlog)
        backlog.items.append((self._count, data))

    def confirmed(self, arrived_bytes: int) -> None:
        """So much of what we have sent has arrived."""
        self._unconfirmed.confirmed(arrived_bytes)

    def flush(self) -> bool:
        """Also True if it has to wait for a confirmation or a connection: then it is called again."""
        size = 0
        if self.is_broken:
            return True
        while self._sending or self._load():
            try:
                sent = self.sock.send(self._sending)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except (ValueError, OSError):
                self._hang_up()
                return True
            self._sending = self._sending[sent:]
            size += sent
            if size >= limits.TURN_BYTES:
                return self._has_nothing_left  # else the rest when the socket says that it takes more
        return True

    @property
    def _has_nothing_left(self) -> bool:
        return not (self._sending or self._queue or self._backlogs)

    def _hang_up(self) -> None:
        """The connection takes no more: the other side sees the end of it, and then so do we. What it has sent until
        then is read.

        Not by `SSLSocket.shutdown`: that takes the encryption off, and what is read then are the records as they are.
        """
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            pass

    def _load(self) -> bool:
        """The next bytes to be sent, if there are any."""
        parts = [self._confirmation]
        size = len(self._confirmation)
        self._confirmation = b""
        if self._unconfirmed.size_bytes >= limits.UNCONFIRMED_BYTES:
            return self._load_these(parts)  # or both sides may wait for it
        queue = self._queue
        while queue and size < GATHER_BYTES:
            data = queue.popleft()
            if type(data) is Backlog:
                self._backlogs.append(data)
                continue
            if type(data) is Common:
                self._common.popleft()
                data = data.data
            parts.append(data)
            size += len(data)
        enough = size + 1  # backlogs have their part however much else there is
        before = self._common[0] if self._common else self._count
        for _ in range(len(self._backlogs)):
            if size >= enough:
                break
            backlog = self._backlogs.popleft()
            while size < max(enough, GATHER_BYTES) and (data := backlog.take(before)):
                parts.append(data)
                size += len(data)
            if backlog.items:
                self._backlogs.append(backlog)
            else:
                del self._waiting[backlog.worker_id]
        return self._load_these(parts)

    def _load_these(self, parts: list[bytes]) -> bool:
        self._sending = memoryview(b"".join(parts))
        self._unconfirmed.sent(self._sending)  # some of it may arrive although the socket has not taken it all
        return len(self._sending) > 0

    def discard_outbound(self) -> None:
        self._queue.clear()
        self._common.clear()
        self._backlogs.clear()
        self._waiting.clear()
        self._sending = memoryview(b"")


def _watch_for_silence(sock: socket.socket) -> None:
    """A machine that is gone without a word ends the connection after SILENCE_SECONDS: the system asks for it while
    nothing is sent, and counts the time that what is sent goes unconfirmed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = 3
    for option, value in (
        ("TCP_KEEPIDLE", limits.SILENCE_SECONDS - 2 * probes),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", 1000 * limits.SILENCE_SECONDS),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
