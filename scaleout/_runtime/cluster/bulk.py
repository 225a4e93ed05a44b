"""Ranges of segments from node to node, over connections of their own, received straight into the segment.

    puller -> node    PULL marshal of (reading, extent, from which of its bytes on); again for the next one
    node -> puller    PULL with flag 1 if it has no such thing; else with flag 0, and then the bytes as they are

A connection that breaks is made anew, and goes on where the other stopped. What is shown for `reading`, which only a
driver knows and tells, is what gives a node the right to see what another node has of that driver.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import marshal
import mmap
import os
import socket
import ssl
import threading
import time

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import dial, tls
from scaleout._runtime.cluster.admission import receive_frame
from scaleout._runtime.store import segment
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.cluster.outbox import SharedFile
    from scaleout._runtime.store.segment import Extent

ASKED_BYTES = 4096
"""The longest request."""


def serve(sock: ssl.SSLSocket, body: bytes, find: Callable[[str, int], SharedFile | None]) -> None:
    """Answer the requests of another node, of which `body` is the first, until it asks no more. Closes the socket.

    `find(reading, segment id)` is called in this thread.
    """
    try:
        while True:
            reading, (segment_id, offset, size_bytes), done_bytes = marshal.loads(body)
            file = find(str(reading), int(segment_id))
            sock.settimeout(limits.SILENCE_SECONDS)
            sock.sendall(frame(frames.PULL, flag=int(file is None)))
            while file is not None and done_bytes < size_bytes:
                piece = os.pread(file.fd, min(limits.BULK_BYTES, size_bytes - done_bytes), offset + done_bytes)
                if not piece:
                    raise ClusterError("a segment was cut short")
                sock.sendall(piece)
                done_bytes += len(piece)
            del file
            _, body = receive_frame(sock, ASKED_BYTES, time.monotonic() + limits.BULK_IDLE_SECONDS)
    except (ClusterError, OSError, ValueError, TypeError, EOFError):
        pass  # it needs no more, or comes again
    finally:
        sock.close()


class _Silent(ClusterError):
    """It is of no use to try again soon."""


class Puller:
    """Fetches what its node is to have of segments that lie at other nodes, a few at a time."""

    def __init__(self, identity: tls.Identity) -> None:
        self._identity = identity
        self._idle: dict[str, list[tuple[float, ssl.SSLSocket]]] = {}  # connections, by address, and since when
        self._used: set[ssl.SSLSocket] = set()
        self._silent_until: dict[str, float] = {}  # by address: nobody answered there
        self._is_closed = False
        self._lock = threading.Lock()
        self._executor = concurrent.futures.ThreadPoolExecutor(limits.PULLS, thread_name_prefix="scaleout-pull")

    def pull(
        self, address: str, reading: str, extent: Extent, file: SharedFile, then: Callable[[bool], object]
    ) -> None:
        """Any thread; `then(whether it is there)` is called in another one."""
        self._executor.submit(self._pull, address, reading, extent, file, then)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._drop_idle(float("inf"))
        with self._lock:
            self._is_closed = True
            for sock in self._used:  # whoever reads there is not to keep the process
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _pull(
        self, address: str, reading: str, extent: Extent, file: SharedFile, then: Callable[[bool], object]
    ) -> None:
        is_there = False
        try:
            is_there = self._receive_all(address, reading, extent, file)
        except (ClusterError, OSError, ValueError, TypeError, EOFError):
            pass  # the driver says what is done about it
        finally:
            then(is_there)

    def _receive_all(self, address: str, reading: str, extent: Extent, file: SharedFile) -> bool:
        _, offset, size_bytes = extent
        done_bytes = 0
        # Reserved first: what is mapped and has no page when memory has run out kills the process.
        os.posix_fallocate(file.fd, offset, size_bytes)
        with mmap.mmap(file.fd, segment.round_to_pages(size_bytes), mmap.MAP_SHARED, offset=offset) as mapping:
            deadline = time.monotonic() + limits.RESUME_SECONDS
            while True:
                before = done_bytes
                try:
                    sock = self._connection(address)
                    with memoryview(mapping) as view:
                        try:
                            sock.sendall(frame(frames.PULL, marshal.dumps((reading, extent, done_bytes))))
                            if not _accepts(sock):
                                self._give_back(address, sock)
                                return False
                            while done_bytes < size_bytes:
                                got = sock.recv_into(view[done_bytes:size_bytes])
                                if not got:
                                    raise ClusterError("the connection has ended")
                                done_bytes += got
                        except BaseException:
                            self._close(sock)
                            raise
                    self._give_back(address, sock)
                    return True
                except (ClusterError, OSError) as error:
                    if done_bytes > before:
                        deadline = time.monotonic() + limits.RESUME_SECONDS
                    is_gone = isinstance(error, _Silent) or isinstance(error.__cause__, ConnectionRefusedError)
                    if is_gone or self._is_closed or time.monotonic() > deadline:
                        raise
                    time.sleep(limits.RESUME_PAUSE_SECONDS)

    def _connection(self, address: str) -> ssl.SSLSocket:
        self._drop_idle(time.monotonic() - limits.BULK_IDLE_SECONDS / 2)
        with self._lock:
            idle = self._idle.get(address)
            if idle:
                sock = idle.pop()[1]
                self._used.add(sock)
                return sock
        if time.monotonic() < self._silent_until.get(address, 0.0):
            raise _Silent(f"nobody answered at {address} a moment ago")
        try:
            sock, _ = dial.connect(address, tls.client_context(self._identity))
        except ClusterError as error:
            if isinstance(error.__cause__, TimeoutError):  # that others need not wait for the same
                self._silent_until[address] = time.monotonic() + limits.RESUME_SECONDS
            raise
        sock.settimeout(limits.SILENCE_SECONDS)
        with self._lock:
            self._used.add(sock)
            is_late = self._is_closed
        if is_late:
            self._close(sock)
            raise _Silent("the node ends")
        return sock

    def _close(self, sock: ssl.SSLSocket) -> None:
        with self._lock:
            self._used.discard(sock)
        sock.close()

    def _give_back(self, address: str, sock: ssl.SSLSocket) -> None:
        with self._lock:
            self._used.discard(sock)
            self._idle.setdefault(address, []).append((time.monotonic(), sock))

    def _drop_idle(self, before: float) -> None:
        """Those that have not been used since; the other side closes them soon."""
        with self._lock:
            for address, found in list(self._idle.items()):
                for since, sock in found:
                    if since < before:
                        sock.close()
                kept = [entry for entry in found if entry[0] >= before]
                if kept:
                    self._idle[address] = kept
                else:
                    del self._idle[address]


def _accepts(sock: ssl.SSLSocket) -> bool:
    header = b""
    while len(header) < frames.HEADER_BYTES:
        more = sock.recv(frames.HEADER_BYTES - len(header))
        if not more:
            raise ClusterError("the connection has ended")
        header += more
    _, kind, flag, _, _ = frames.HEADER.unpack(header)
    if kind != frames.PULL:
        raise ClusterError(f"a node answered with a frame of kind {kind}")
    return not flag


def find_in(tenants: Any, post: Callable[[Callable[[], None]], None], reading: str, segment_id: int) -> Any:
    """The segment, as that tenant has it which may be read with that: asked of the thread that tenants live on. None if
    there is none, or the thread has ended."""
    answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def look() -> None:
        tenant = next((tenant for tenant in tenants if tenant.reading == reading), None)
        answer.set_result(None if tenant is None else tenant.segment(segment_id))

    post(look)
    try:
        return answer.result(limits.SILENCE_SECONDS)
    except concurrent.futures.TimeoutError:
        return None
