"""Large values as their owner keeps them: what of ours is still needed, what of the workers' is still to be read.

Ours are arguments, callables, definitions: written to segments of this process by whoever submits, at ranges that are
allocated on the reactor thread, counted in `ranges` and given back with their last use. The workers' are results: each
is in `unread` until somebody has looked at it, and then lives as long as the views of it. The node's budget is shared
among all who write.

Methods run on the reactor thread unless they say "any thread".
"""

from __future__ import annotations

import itertools
import marshal
import threading
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.core.ranges import RangeTable
from scaleout._runtime.node.stored import StoredObject, StoredResult, extents_of
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import SessionClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.pickling.encode import Encoded
    from scaleout._runtime.store.exchange import Exchange
    from scaleout._runtime.store.segment import Extent

    Place = tuple[int, int, int, Any]  # an extent and its checksum or None: see `store.exchange`


def inline_payload(encoded: Encoded) -> bytes | None:
    """What travels in a frame for this value; None if it is too large for that."""
    if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
        return None
    chunks = encoded.chunks
    payload: bytes = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return payload


HERE = "here"
"""This process, as a reader of objects."""


class ObjectTable:
    """See the module's docstring. `send_soon(peer)` has what is queued for a worker sent, also while it is lent."""

    def __init__(self, settings: Settings, reactor: Reactor, peers: dict[int, Peer]) -> None:
        self._settings = settings
        self._reactor = reactor
        self._peers = peers
        self.send_soon: Callable[[Peer], None] = lambda peer: None
        self.on_over: Callable[[list[Extent]], None] = lambda extents: None  # copies of these may go
        self.on_writer_died: Callable[[int, int, list[Extent]], None] = lambda segment_id, size_bytes, keep: None
        self.mirrored_bytes: Callable[[], int] = lambda: (
            0
        )  # of what workers elsewhere have written, those that are here
        self.ranges = RangeTable()
        self.unread: dict[int, tuple[Peer, list[Extent]]] = {}  # large results nobody has looked at yet
        self.has_released = False  # views have died since `report_released`
        self._result_ids = itertools.count(1)
        self._writers: dict[int, Peer] = {}  # by segment, the workers that wrote those we know
        self._exchange: Exchange | None = None
        self._exchange_lock = threading.Lock()
        self._foreign_bytes = 0  # of the budget, in the workers' segments
        self._is_trim_armed = False

    # -- any thread: what we write ---------------------------------------------------------------

    def pack(
        self, encoded: Encoded, share: Callable[[memoryview], Place | None] | None = None
    ) -> tuple[bytes, list[Extent] | None]:
        """Any thread: (the value itself, None) if that fits into a frame, else what `store` returns."""
        payload = inline_payload(encoded)
        return (payload, None) if payload is not None else self.store(encoded, share)

    def store(
        self, encoded: Encoded, share: Callable[[memoryview], Place | None] | None = None
    ) -> tuple[bytes, list[Extent]]:
        """Any thread: copy what is large into segments of ours; (body that names the places, the extents it names).

        Each extent is held once for the caller, those that `share` answered with included.
        """
        extents: list[Extent] = []
        try:
            body = self.exchange.store(encoded, self._allocate, extents, share)
        except BaseException:
            self.release(extents)
            raise
        return body, extents

    def store_buffer(self, buffer: memoryview) -> Place:
        """Any thread: copy one buffer into a segment of ours; its place is held once for the caller."""
        extent = self._allocate(buffer.nbytes)
        return (*extent, self.exchange.write(extent, [buffer]))

    def hold(self, extents: list[Extent]) -> None:
        """Any thread: one use more of each, from before what this thread posts next."""
        self._reactor.post(partial(self.hold_now, extents))

    def release(self, extents: list[Extent], partial: Any = partial) -> None:
        """Any thread, finalizers included: uses taken by `pack`, `store`, `store_buffer` or `hold` are over. (At the
        interpreter's end, names of modules are gone: hence the default.)"""
        self._reactor.post(partial(self.drop, extents))

    def object_of(self, encoded: Encoded) -> bytes | StoredObject:
        """Any thread: a value as an object of this owner."""
        payload, extents = self.pack(encoded)
        return payload if extents is None else self._object(payload, extents)

    def _object(self, body: bytes, extents: list[Extent]) -> StoredObject:
        """`extents` are held once, for it."""
        return StoredObject(self.exchange, body, extents, self._lend_here, self.release)

    def _lend_here(self, extents: list[Extent]) -> None:
        self._reactor.post(partial(self._lend_here_now, extents))

    def _lend_here_now(self, extents: list[Extent]) -> None:
        for extent in extents:
            self.ranges.lend(HERE, extent)

    @property
    def exchange(self) -> Exchange:
        """Any thread. Made when it is first needed, as most groups never see a large value."""
        if self._exchange is None:
            from scaleout._runtime.store.exchange import Exchange

            with self._exchange_lock:
                if self._exchange is None:
                    self._exchange = Exchange(
                        announce=lambda *segment: None,
                        allowance_bytes=lambda: max(0, self._settings.store_bytes - self._foreign_bytes),
                        spill_dir=self._settings.spill_dir,
                        on_released=self._notice_released,
                    )
        return self._exchange

    def retain_pinned(self) -> None:
        """In the thread that forks, before it does: the ranges that are mapped now are never used again."""
        if self._exchange is not None:
            self._exchange.retain_pinned()

    def _allocate(self, size_bytes: int) -> Extent:
        """A range of our segments, held once. From the reactor thread directly, from others by asking it."""
        if threading.get_ident() == self._reactor.thread.ident:
            return self._allocate_here(size_bytes)
        answer: list[Any] = []
        done = threading.Lock()
        done.acquire()
        self._reactor.post(partial(self._answer_allocation, size_bytes, answer, done))
        try:
            done.acquire()
        except BaseException:  # Ctrl-C: the range that the reactor is about to answer is nobody's
            self._reactor.post(partial(self._drop_answer, answer))
            raise
        if isinstance(answer[0], BaseException):
            raise answer[0]
        extent: Extent = answer[0]
        return extent

    def _answer_allocation(self, size_bytes: int, answer: list[Any], done: Any) -> None:
        try:
            answer.append(self._allocate_here(size_bytes))
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked
            answer.append(error)
        done.release()

    def _drop_answer(self, answer: list[Any]) -> None:
        self.drop([extent for extent in answer if type(extent) is tuple])

    def _allocate_here(self, size_bytes: int) -> Extent:
        if self._reactor.is_stopping:
            raise SessionClosedError("the runtime has ended")
        extent = self.exchange.allocate(size_bytes)
        self.ranges.hold(extent)
        return extent

    def hold_now(self, extents: list[Extent]) -> None:
        for extent in extents:
            self.ranges.hold(extent)

    # -- the uses of what we wrote ---------------------------------------------------------------

    def lend(self, peer: Peer, extents: list[Extent]) -> None:
        """The worker is about to be sent a frame that names these."""
        for extent in extents:
            self.ranges.lend(peer, extent)
            writer = self._writers.get(extent[0])
            if writer is not peer:
                fd, size_bytes, is_on_disk = self.segment_of(extent[0])
                peer.introduce_segment(extent[0], fd, size_bytes, is_on_disk)
                peer.seat.bring(extent, fd)

    def segment_of(self, segment_id: int) -> tuple[int, int, bool]:
        """(fd, size, is_on_disk) of a segment, whoever writes it."""
        of = self.exchange.foreign_fd_of if segment_id in self._writers else self.exchange.fd_of
        return of(segment_id)

    def returned(self, peer: Peer, extents: list[Extent]) -> None:
        """The worker needs these no more."""
        self._free([extent for extent in extents if self.ranges.returned(peer, extent)])

    def drop(self, extents: list[Extent]) -> None:
        """One use less of each."""
        self._free([extent for extent in extents if self.ranges.drop(extent)])

    def reader_died(self, peer: Peer) -> None:
        self._free(self.ranges.reader_died(peer))

    def _free(self, extents: list[Extent]) -> None:
        if not extents or self._reactor.is_stopping:
            return
        self.on_over(extents)
        ours = [extent for extent in extents if extent[0] not in self._writers]
        if len(ours) < len(extents):
            self._free_of_workers([extent for extent in extents if extent[0] in self._writers])
        if ours:
            self.exchange.free(ours)
        self._arm_trim()

    def _free_of_workers(self, extents: list[Extent]) -> None:
        by_writer: dict[Peer, list[Extent]] = {}
        for extent in extents:
            by_writer.setdefault(self._writers[extent[0]], []).append(extent)
        for writer, freed in by_writer.items():
            if writer.has_exited.is_set():
                self.writer_died({extent[0] for extent in freed})
            else:
                self._send_free(writer, freed)

    # -- what workers write ----------------------------------------------------------------------

    def add_segment(self, peer: Peer, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        """A segment of the worker's; takes the fd."""
        self.exchange.add(segment_id, fd, size_bytes, is_on_disk)
        peer.segments.add(segment_id)
        self._writers[segment_id] = peer

    def keep(self, body: bytes) -> StoredObject:
        """A large value that lies in a worker's segments, as an object of this owner."""
        extents = extents_of(body)
        self.hold_now(extents)
        return self._object(body, extents)

    def result(self, peer: Peer, body: bytes) -> StoredResult:
        """A large result, or a large exception, that lies in the worker's segments."""
        result_id = next(self._result_ids)
        result = StoredResult(result_id, self.exchange, body, self._result_settled)
        self.unread[result_id] = (peer, result.extents)
        return result

    def _result_settled(self, result_id: int, unopened: list[Extent]) -> None:
        """Any thread, finalizers included: a large result was opened, or dropped without."""
        self._reactor.post(partial(self._settle_result, result_id, unopened))

    def _settle_result(self, result_id: int, unopened: list[Extent]) -> None:
        peer, extents = self.unread.pop(result_id)
        if self._reactor.is_stopping:
            if not self.unread:
                self.exchange.close()
            return
        self._arm_trim()
        if peer.has_exited.is_set():
            self.writer_died({extent[0] for extent in extents})
        elif unopened:
            self.on_over(unopened)
            self._send_free(peer, unopened)

    def writer_died(self, segment_ids: set[int]) -> None:
        """What is neither mapped here nor waits to be read is given back; the rest follows with its last use."""
        waiting = [extent for _, extents in self.unread.values() for extent in extents]
        for segment_id in segment_ids:
            keep = [extent for extent in waiting if extent[0] == segment_id]
            keep += self.ranges.in_segment(segment_id)
            self.on_writer_died(segment_id, self.exchange.foreign_size_of(segment_id), keep)
            self.exchange.writer_died(segment_id, keep)
            if not keep:
                self._writers.pop(segment_id, None)

    def _send_free(self, peer: Peer, extents: list[Extent]) -> None:
        if peer.exit_status is None and peer.link.is_open:
            peer.link.queue(frame(frames.FREE, marshal.dumps(extents)))
            self.send_soon(peer)

    def _notice_released(self) -> None:
        """Any thread, finalizers included."""
        self.has_released = True
        if self._reactor.is_asleep:
            self._reactor.wake()

    def report_released(self) -> None:
        """The last views of results died here: their writers may use the ranges again."""
        self.has_released = False
        by_segment: dict[int, list[Extent]] = {}
        for extent in self.exchange.drain_released():
            if self.ranges.is_lent(HERE, extent):
                if self.ranges.returned(HERE, extent):
                    self._free([extent])
            else:
                by_segment.setdefault(extent[0], []).append(extent)
        for extents in by_segment.values():
            self.on_over(extents)
        for peer in self._peers.values():
            for segment_id in peer.segments:
                if segment_id in by_segment:
                    self._send_free(peer, by_segment[segment_id])

    # -- the budget ------------------------------------------------------------------------------

    def admit(self, peer: Peer) -> None:
        """A new worker, that has written nothing yet."""
        peer.words[control_page.ALLOWANCE_BYTES] = self._settings.store_bytes

    def share_budget(self) -> None:
        """Every writer may use what it uses, and half of what is left of the node's budget: they learn of one another's
        use late, and together must not overshoot by much."""
        peers = [peer for peer in self._peers.values() if peer.segments and not peer.seat.is_relayed]
        used = self.exchange.used_bytes + sum(peer.words[control_page.USED_BYTES] for peer in peers)
        used += self.mirrored_bytes()
        spare = max(0, self._settings.store_bytes - used)
        for peer in peers:
            peer.words[control_page.ALLOWANCE_BYTES] = peer.words[control_page.USED_BYTES] + spare // 2
        self._foreign_bytes = used - self.exchange.used_bytes

    def _arm_trim(self) -> None:
        if not self._is_trim_armed:
            self._is_trim_armed = True
            self._reactor.call_later(limits.WARM_SECONDS, self._trim)

    def _trim(self) -> None:
        self._is_trim_armed = not self.exchange.trim_if_idle(limits.WARM_SECONDS)
        if self._is_trim_armed:
            self._reactor.call_later(limits.WARM_SECONDS, self._trim)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """The owner ends; results that nobody has looked at yet stay readable, and the last of them closes."""
        if self._exchange is not None and not self.unread:
            self._exchange.close()

    def forget(self) -> None:
        """In a forked child, where the reactor thread is not: the segments are the parent's."""
        if self._exchange is not None:
            self._exchange.forget()
