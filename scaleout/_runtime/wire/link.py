"""One end of a socket that carries frames: an unbounded outbound queue for those who must not block, and the cutting
of what arrives into frames.

Not here: what frames mean. The reactor's links are non-blocking; workers and the zygote use `send_now`, which blocks.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque

from scaleout._runtime.base.limits import FRAME_BYTES, RECEIVE_BYTES
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES
from scaleout.errors import InternalError

FD_SPACE = socket.CMSG_SPACE(4)
NO_FLAGS = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
CONTROL_DATA_LOST = int(socket.MSG_CTRUNC)  # as `enum.IntFlag`, `&` takes a microsecond
GATHER_BYTES = 256 * 1024


class Link:
    """Frames over a connected stream socket, with at most one file descriptor per frame."""

    __slots__ = ("_outbound", "_tail", "fds", "is_lent", "is_open", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: deque[int] = deque()  # received, not yet taken by the frame they came with
        self.is_open = True
        self.is_lent = False  # another thread than the reactor uses it: what is queued waits
        self._outbound: deque[tuple[bytes | memoryview, int]] = deque()
        self._tail = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    # -- receiving -------------------------------------------------------------------------------

    def receive(self) -> bytes:
        """Bytes that begin at a frame's start; b"" at the end of the stream. BlockingIOError if none are there.

        Follow with `leftover(data, position)` for what is not yet a whole frame.
        """
        data, ancillary, flags, _ = self.sock.recvmsg(RECEIVE_BYTES, FD_SPACE, NO_FLAGS)
        if ancillary:
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(raw[: len(raw) - len(raw) % received.itemsize])
                    self.fds.extend(received)
        if flags & CONTROL_DATA_LOST:
            raise OSError(24, "a file descriptor was lost on arrival: too many open files (see `ulimit -n`)")
        if self._tail:
            data = self._tail + data if data else b""
            self._tail = b""
        return data

    @property
    def is_torn(self) -> bool:
        """Whether the rest of a frame is still to come."""
        return bool(self._tail)

    def leftover(self, data: bytes, position: int) -> None:
        """Keep the torn frame at the end of `data` until the rest of it arrives."""
        self._tail = data[position:]

    def frames(self, data: bytes) -> list[tuple[int, int, int, int, bytes]]:
        """Cut `data` into (kind, flag, aux, number, body); the torn rest is kept. For the paths that are not hot."""
        found = []
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = HEADER.unpack_from(data, position)
            if length > FRAME_BYTES:
                raise InternalError(f"a frame of kind {kind} claims {length} bytes; the bound is {FRAME_BYTES}")
            following = position + HEADER_BYTES + length
            if following > end:
                break
            found.append((kind, flag, aux, number, data[position + HEADER_BYTES : following]))
            position = following
        self._tail = data[position:]
        return found

    # -- sending ---------------------------------------------------------------------------------

    def queue(self, data: bytes, fd: int = -1) -> None:
        """Send later, from `flush`. With `fd`, a duplicate of it goes along with the first byte."""
        if self.is_open:
            self._outbound.append((data, os.dup(fd) if fd >= 0 else -1))

    def queue_and_give(self, data: bytes, fd: int) -> None:
        """The same with the fd itself, which is closed once it was sent; this cannot fail."""
        if self.is_open:
            self._outbound.append((data, fd))
        else:
            os.close(fd)

    def flush(self) -> bool:
        """Send what the socket takes; True when nothing is left. A closed peer counts as taking everything."""
        outbound = self._outbound
        try:
            while outbound:
                data, fd = outbound[0]
                if fd >= 0:
                    sent = send_with_fd(self.sock, data, fd)
                    os.close(fd)
                    outbound[0] = (data, -1)
                else:
                    if len(outbound) > 1 and len(data) < GATHER_BYTES:
                        data = self._gather()
                    sent = self.sock.send(data)
                if sent == len(data):
                    outbound.popleft()
                else:
                    outbound[0] = (memoryview(data)[sent:], -1)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionError, OSError):
            self.discard_outbound()
        return True

    def _gather(self) -> bytes:
        """Join the data that stands before the next descriptor into one send."""
        outbound = self._outbound
        parts = []
        size = 0
        while outbound and outbound[0][1] < 0 and size < GATHER_BYTES:
            part = outbound.popleft()[0]
            parts.append(part)
            size += len(part)
        data = b"".join(parts)
        outbound.appendleft((data, -1))
        return data

    def discard_outbound(self) -> None:
        for _, fd in self._outbound:
            if fd >= 0:
                os.close(fd)
        self._outbound.clear()

    def send_now(self, data: bytes, fd: int = -1) -> None:
        """Send on a blocking socket."""
        if fd >= 0:
            sent = send_with_fd(self.sock, data, fd)
            data = data[sent:]
        if data:
            self.sock.sendall(data)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.discard_outbound()
            while self.fds:
                os.close(self.fds.popleft())
            self.sock.close()


def send_with_fd(sock: socket.socket, data: bytes | memoryview, fd: int) -> int:
    """Send some of `data` with one descriptor; returns how many bytes went."""
    return sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
