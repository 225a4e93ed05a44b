"""The order in which things go over the link between a driver and a node."""

from __future__ import annotations

import os
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.node_link import NodeLink
from scaleout._runtime.cluster.outbox import OFFSET, Awaited, Piecewise, SharedFile
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame

WORKERS = st.integers(1, 3)
SIZES = st.integers(1, 3 * limits.PIECE_BYTES)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(0, 3), st.integers(0, 2000) | st.integers(100_000, 300_000)),
        st.tuples(st.just("bring"), WORKERS, SIZES),
        st.tuples(st.just("bring again"), WORKERS, st.integers(0, 5)),
        st.tuples(st.just("drop"), st.just(0), st.integers(0, 5)),
        st.tuples(st.just("flush"), st.just(0), st.integers(0, 1 << 20)),
    ),
    max_size=40,
)


class Socket(socket.socket):
    """Takes so many bytes, and then no more."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 0
        self.taken = bytearray()

    def pending(self) -> int:
        return 0

    def send(self, data: Any, flags: int = 0) -> int:
        if not self.room:
            raise BlockingIOError
        size = min(len(data), self.room)
        self.room -= size
        self.taken += data[:size]
        return size


def cut(data: bytes) -> list[tuple[int, int, bytes]]:
    """(kind, number, body) of frames."""
    found = []
    position = 0
    while position < len(data):
        length, kind, _, _, number = HEADER.unpack_from(data, position)
        position += HEADER_BYTES + length
        found.append((kind, number, data[position - length : position]))
    return found


def send_all(link: NodeLink, sock: Socket) -> None:
    while not link.flush() or link._outbox or link._sending:
        link.confirmed(len(sock.taken))


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_order(operations: list[tuple[str, int, int]]) -> None:
    """What is of one worker keeps its order; a frame comes after all pieces of what was brought for it; and a piece
    comes after whatever was queued before it and is no piece."""
    fd = os.memfd_create("test")
    file = SharedFile(fd)
    os.ftruncate(fd, 4 * limits.PIECE_BYTES)
    sock = Socket()
    link = NodeLink(sock)  # type: ignore[arg-type]
    try:
        brought: list[tuple[Piecewise, int]] = []  # and the size of each, numbered as segments
        dropped: set[int] = set()
        queued: list[tuple[int, int]] = []  # (worker, serial number) of frames
        needs: dict[int, list[int]] = {}  # by serial number: what must have come, of segments
        of_worker: dict[int, list[int]] = {}
        before: dict[int, int] = {}  # by segment: how many frames were queued before it
        for operation, worker, size in operations:
            if operation == "frame":
                serial = len(queued)
                queued.append((worker, serial))
                needs[serial] = list(of_worker.get(worker, ())) if worker else []
                link.queue(frame(frames.RELAY, OFFSET.pack(serial) + bytes(size), number=worker), worker_id=worker)
            elif operation == "bring":
                pieces = Piecewise((len(brought), 0, size), file)
                before[len(brought)] = len(queued)
                of_worker.setdefault(worker, []).append(len(brought))
                brought.append((pieces, size))
                link.queue(pieces, worker_id=worker)
            elif operation == "bring again" and brought:
                number = size % len(brought)
                if number not in dropped:
                    of_worker.setdefault(worker, []).append(number)
                    if not brought[number][0].is_done:
                        link.queue(Awaited(brought[number][0]), worker_id=worker)
            elif operation == "drop" and brought:
                dropped.add(size % len(brought))
                brought[size % len(brought)][0].drop()
            elif operation == "flush":
                sock.room = size
                link.flush()
                link.confirmed(len(sock.taken))
        sock.room = 1 << 40
        send_all(link, sock)
        arrived: dict[int, int] = {}
        seen: list[tuple[int, int]] = []
        for kind, number, body in cut(bytes(sock.taken)):
            if kind == frames.PIECE:
                unseen = {serial for _, serial in queued[: before[number]]} - {serial for _, serial in seen}
                assert all(needs[serial] for serial in unseen)  # only those that wait for something large themselves
                assert OFFSET.unpack_from(body)[0] == arrived.get(number, 0)
                arrived[number] = arrived.get(number, 0) + len(body) - OFFSET.size
            else:
                serial = OFFSET.unpack_from(body)[0]
                for segment in needs[serial]:
                    assert segment in dropped or arrived.get(segment) == brought[segment][1]
                seen.append((number, serial))
        assert sorted(serial for _, serial in seen) == list(range(len(queued)))
        for worker in range(4):
            assert [s for w, s in seen if w == worker] == [s for w, s in queued if w == worker]
        for number, (_, size) in enumerate(brought):
            assert number in dropped or arrived.get(number) == size
        assert not link._outbox and not link._outbox._waiting
    finally:
        link.close()


def test_others_are_not_held_up() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 64 << 20)
    sock = Socket()
    link = NodeLink(sock)  # type: ignore[arg-type]
    try:
        link.queue(Piecewise((1, 0, 64 << 20), SharedFile(fd)), worker_id=1)
        sock.room = 3 << 20
        link.flush()
        link.queue(frame(frames.RELAY, b"overtakes", number=2), worker_id=2)
        link.queue(frame(frames.RELAY, b"waits", number=1), worker_id=1)
        sock.room = 1 << 40
        send_all(link, sock)
        bodies = [body for kind, _, body in cut(bytes(sock.taken)) if kind == frames.RELAY]
        position = bytes(sock.taken).index(b"overtakes")
        assert bodies == [b"overtakes", b"waits"] and position < (5 << 20) and sock.taken.endswith(b"waits")
    finally:
        link.close()


def test_memory_is_given_back_before_it_is_used_again() -> None:
    """However much there is to send to others, a large value does not overtake the word that its range is free."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 << 20)
    file = SharedFile(fd)
    sock = Socket()
    link = NodeLink(sock)  # type: ignore[arg-type]
    try:
        link.queue(Piecewise((1, 0, 1 << 20), file), worker_id=1)
        sock.room = 100
        link.flush()  # the first of it is on its way
        for _ in range(20):
            link.queue(frame(frames.RELAY, bytes(100_000), number=2), worker_id=2)
        link.queue(frame(frames.DISCARD, b"of segment 2"))
        link.queue(Piecewise((2, 0, 1000), file), worker_id=1)
        link.queue(Piecewise((3, 0, 1000), file), worker_id=3)
        sock.room = 1 << 40
        send_all(link, sock)
        kinds = [(kind, number) for kind, number, _ in cut(bytes(sock.taken)) if kind != frames.RELAY]
        given_back = kinds.index((frames.DISCARD, 0))
        assert given_back < kinds.index((frames.PIECE, 2)) and given_back < kinds.index((frames.PIECE, 3))
        assert kinds.count((frames.PIECE, 1)) == 2 and kinds.index((frames.PIECE, 1)) < given_back
    finally:
        link.close()


def test_a_segment_that_cannot_be_read() -> None:
    """What should have been sent is lost: the link says so, and does not go on over another connection."""
    sock = Socket()
    link = NodeLink(sock)  # type: ignore[arg-type]
    file = SharedFile(os.open(os.curdir, os.O_RDONLY))
    try:
        link.queue(Piecewise((1, 0, 1000), file), worker_id=1)
        sock.room = 1 << 20
        assert link.flush() and link.is_spoilt and not link.may_resume(0)
        assert not sock.taken
    finally:
        link.close()
