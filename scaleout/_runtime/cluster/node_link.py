"""A link between a driver and a node: a stream of frames, over one TLS connection after the other.

The stream outlives its connection: what the other side has not confirmed is kept, and goes again over the next one.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections import deque

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.outbox import Outbox
from scaleout._runtime.core.unconfirmed import Unconfirmed
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame
from scaleout._runtime.wire.link import Link
from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

SILENCE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
"""How a connection ends whose other end is gone without a word."""

RECORD_BYTES = 16 * 1024
"""The longest record of TLS: what the library may hold that no poll of the socket shows."""


WHOLE_BYTES = 64 * 1024
"""What is larger is not copied once more to be sent together with what stands beside it."""


class NodeLink(Link):
    """Non-blocking. One thread at a time uses it, as a TLS connection has one state for both directions."""

    __slots__ = (
        "_buffer",
        "_confirmation",
        "_confirmed_bytes",
        "_cut_bytes",
        "_filled_bytes",
        "_outbox",
        "_pending",
        "_sending",
        "_unconfirmed",
        "is_broken",
        "is_spoilt",
        "received_bytes",
        "was_silent",
    )

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._use(sock)
        self.was_silent = False  # the connection ended for that
        self.is_spoilt = False  # something that should have been sent is lost: no connection is to follow
        # A torn frame stands at the beginning; the pages of what is never filled cost nothing.
        self._buffer = memoryview(bytearray(limits.FRAME_BYTES + HEADER_BYTES + limits.TURN_BYTES + RECORD_BYTES))
        self._filled_bytes = self._cut_bytes = 0  # of the buffer; and so much of that has been cut into frames
        self.received_bytes = self._confirmed_bytes = 0  # of the stream; and so many of them we have confirmed
        self._confirmation = b""  # the frame that is to say so
        self._outbox = Outbox()
        # The same bytes again after a write that did not go through, as TLS wants it.
        self._sending: deque[memoryview] = deque()
        self._unconfirmed = Unconfirmed()

    # -- one connection after the other ----------------------------------------------------------

    def _use(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._pending = sock.pending
        self.is_broken = False
        watch_for_silence(sock)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # what the system holds back nothing can overtake
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.PIECE_BYTES)

    def break_off(self) -> None:
        """The connection has ended; there may be another. Until then what is queued waits."""
        self.is_broken = True
        self.sock.close()

    def may_resume(self, arrived_bytes: int) -> bool:
        """Whether the other side can have so much, and no more, of what we have sent."""
        return not self.is_spoilt and self._unconfirmed.may_be(arrived_bytes)

    def resume(self, sock: ssl.SSLSocket, arrived_bytes: int) -> None:
        """Go on over this connection: the other side has so much of what we have sent. ValueError: that cannot be."""
        self._send_next(self._unconfirmed.take_back(arrived_bytes))
        self._use(sock)

    def bye(self) -> None:
        """Tell the other side, if that can be done at once, that no connection follows this one."""
        if self.is_open and not self.is_broken and not self._sending:
            try:
                self.sock.send(frame(frames.BYE))
            except (ValueError, OSError):
                pass  # it finds out

    # -- receiving -------------------------------------------------------------------------------

    def receive(self) -> memoryview:  # type: ignore[override]
        """As that of any link, for `frames`: good until the next call."""
        buffer = self._buffer
        start = self._filled_bytes - self._cut_bytes
        buffer[:start] = buffer[self._cut_bytes : self._filled_bytes]
        self._filled_bytes, self._cut_bytes = start, 0
        end = start
        try:
            while (end - start < limits.TURN_BYTES or self._has_more) and (got := self.sock.recv_into(buffer[end:])):
                end += got  # a record of TLS at most: 16 KB
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if end == start:
                raise BlockingIOError from None
        except OSError as error:
            self.was_silent = error.errno in SILENCE
            if end == start:
                raise
        if end == start:
            return buffer[:0]  # a torn frame may go on over another connection
        self._filled_bytes = end
        self.received_bytes += end - start
        if self.received_bytes - self._confirmed_bytes >= limits.CONFIRM_BYTES:
            self._confirmed_bytes = self.received_bytes
            self._confirmation = frame(frames.CONFIRM, number=self.received_bytes)
        return buffer[:end]

    def frames(self, data: Any) -> list[tuple[int, int, int, int, Any]]:
        """As any link cuts what it received. The body of a PIECE is not copied: good until more is received."""
        found: list[tuple[int, int, int, int, Any]] = []
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = HEADER.unpack_from(data, position)
            if length > limits.FRAME_BYTES:
                raise InternalError(f"a frame of kind {kind} claims {length} bytes; the bound is {limits.FRAME_BYTES}")
            following = position + HEADER_BYTES + length
            if following > end:
                break
            body = data[position + HEADER_BYTES : following]
            found.append((kind, flag, aux, number, body if kind == frames.PIECE else bytes(body)))
            position = following
        self._cut_bytes = position
        return found

    @property
    def _has_more(self) -> bool:
        """Whether there is something that no poll of the socket will show."""
        return bool(self._pending())

    # -- sending ---------------------------------------------------------------------------------

    def queue(self, data: Any, fd: int = -1, worker_id: int = 0) -> None:
        """As `Outbox.put`. No descriptor crosses to another machine."""
        assert fd < 0
        if self.is_open:
            self._outbox.put(data, worker_id)

    def confirmed(self, arrived_bytes: int) -> None:
        """So much of what we have sent has arrived."""
        self._unconfirmed.confirmed(arrived_bytes)

    def flush(self) -> bool:
        """Also True if it has to wait for a confirmation or a connection: then it is called again."""
        if self.is_broken:
            return True
        size = 0
        while self._sending or self._load():
            if size >= limits.TURN_BYTES:
                return False  # the rest when the socket says that it takes more
            data = self._sending[0]
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except (ValueError, OSError):
                self._hang_up()
                return True
            size += sent
            if sent == len(data):
                self._sending.popleft()
            else:
                self._sending[0] = data[sent:]
        return True

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
        """The next bytes to be sent, if there are any: with too much under way only a confirmation, or both sides may
        wait for one."""
        parts: list[bytes | bytearray] = [self._confirmation]
        self._confirmation = b""
        if self._unconfirmed.size_bytes < limits.UNCONFIRMED_BYTES:
            try:
                parts += self._outbox.take()
            except OSError:  # a segment that lies on a disk cannot be read
                self.is_spoilt = True
                self.discard_outbound()
                self._hang_up()
                return False
        self._send_next(joined(parts))
        return bool(self._sending)

    def _send_next(self, parts: Iterable[memoryview]) -> None:
        self._sending.clear()
        for part in parts:
            self._sending.append(part)
            self._unconfirmed.sent(part)  # some of it may arrive although the socket has not taken it all

    def discard_outbound(self) -> None:
        self._outbox.clear()
        self._sending.clear()

    def close(self) -> None:
        super().close()
        self._unconfirmed = Unconfirmed()
        self._buffer = memoryview(b"")  # megabytes, and whoever still knows the link has no use for them
        self._filled_bytes = self._cut_bytes = 0


def joined(parts: Iterable[bytes | bytearray]) -> Iterator[memoryview]:
    """What is small together, as each write costs a record of TLS and a call of the system; what is large as it is."""
    small: list[bytes | bytearray] = []
    for part in parts:
        if len(part) < WHOLE_BYTES:
            small.append(part)
            continue
        if small:
            yield memoryview(b"".join(small))
            small.clear()
        yield memoryview(part)
    if data := b"".join(small):
        yield memoryview(data)


def watch_for_silence(sock: socket.socket) -> None:
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
