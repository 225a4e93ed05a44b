"""Values that are too large for a frame: written to segments of ours, read from segments of others.

A stored value travels as a *body*: marshal of (stream, buffers), where the stream is bytes or a *place*, buffers are
places, and a place is (segment_id, offset, size_bytes, checksum or None).
"""

from __future__ import annotations

import marshal
import os
import pickle
import time

from scaleout._runtime.base import limits
from scaleout._runtime.store import segment
from scaleout._runtime.store.reader import SegmentReader
from scaleout._runtime.store.writer import SegmentWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.store.segment import Extent


class Exchange:
    """A process's segments and its view of the segments of others.

    `announce(segment_id, fd, size_bytes, is_on_disk)` is called when a body names a segment of ours for the first time.
    """

    def __init__(
        self,
        announce: Callable[[int, int, int, bool], None],
        allowance_bytes: Callable[[], int],
        spill_dir: str | None = None,
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        self._announce = announce
        self._announced: set[int] = set()
        self._writer = SegmentWriter(allowance_bytes=allowance_bytes, spill_dir=spill_dir or None)
        self._reader = SegmentReader(on_released)
        self.allocate = self._writer.allocate
        self.fd_of = self._writer.fd_of
        self.foreign_fd_of = self._reader.fd_of
        self.foreign_size_of = self._reader.size_of
        self.write = self._writer.write
        self.add = self._reader.add
        self.drain_released = self._reader.drain_released
        self._used_at = 0.0
        self.is_forgotten = False
        self.is_used = False  # something went through since the last trim

    # -- out -------------------------------------------------------------------------------------

    def store(
        self,
        encoded: Any,
        allocate: Callable[[int], Extent] | None = None,
        extents: list[Extent] | None = None,
        share: Callable[[memoryview], Any] | None = None,
    ) -> bytes:
        """Copy the large parts of an encoded value into our segments; returns the body.

        `extents` collects every range the body names, also on failure, when the caller counts uses; without it, what
        was
        allocated is freed on failure. `share(buffer)` may answer with the place of the same buffer stored before.
        """
        allocate = allocate or self.allocate
        written: list[Extent] = []
        try:
            if encoded.size_bytes > limits.INLINE_BYTES:
                stream: Any = self._put(encoded.chunks, encoded.size_bytes, allocate, written)
            else:
                stream = b"".join(encoded.chunks)
            buffers = []
            for buffer in encoded.buffers:
                place = share(buffer) if share is not None else None
                if place is None:
                    place = self._put([buffer], buffer.nbytes, allocate, written)
                elif extents is not None:
                    extents.append(place[:3])
                buffers.append(place)
        except BaseException:
            if extents is None:
                self.free(written)
            else:
                extents.extend(written)
            raise
        if extents is not None:
            extents.extend(written)
        for segment_id in {extent[0] for extent in written} - self._announced:
            self._announced.add(segment_id)
            self._announce(segment_id, *self.fd_of(segment_id))
        return marshal.dumps((stream, buffers))

    def _put(
        self, chunks: list[Any], size_bytes: int, allocate: Callable[[int], Extent], written: list[Extent]
    ) -> tuple[Any, ...]:
        extent = allocate(size_bytes)
        written.append(extent)
        return (*extent, self._writer.write(extent, chunks))

    def free(self, extents: Iterable[Extent]) -> None:
        """Nobody reads these ranges of ours any more."""
        self._note_use()
        for extent in extents:
            self._writer.free(extent)
        if self._writer.free_warm_bytes > limits.WARM_BYTES:
            self._writer.trim(limits.WARM_BYTES)

    @property
    def used_bytes(self) -> int:
        return self._writer.used_bytes

    def trim(self) -> None:
        """After large values went through: give all free warm pages, and free heap, back to the system."""
        self.is_used = False
        self._writer.trim(0)
        segment.trim_heap()

    def trim_if_idle(self, idle_s: float) -> bool:
        """Trim if nothing went through for that long; True if nothing is left to trim."""
        if time.monotonic() - self._used_at >= idle_s * 0.9:
            self.trim()
        return not self.is_used

    def _note_use(self) -> None:
        self.is_used = True
        self._used_at = time.monotonic()

    # -- in --------------------------------------------------------------------------------------

    def open(self, body: bytes) -> tuple[Any, list[memoryview]]:
        """The stream and the buffers of a body; all are views that pin what they show."""
        stream, buffers = marshal.loads(body)
        # Every place is opened, come what may: an opening, also a failed one, is what its range is given back by.
        error: BaseException | None = None
        views = []
        for place in [stream, *buffers] if type(stream) is tuple else buffers:
            try:
                self._know_own(place[0])
                views.append(self._reader.open(place[:3], place[3]))
            except BaseException as raised:
                error = raised
        if error is not None:
            views.clear()
            raise error
        if type(stream) is tuple:
            stream = views.pop(0)
        return stream, views

    def _know_own(self, segment_id: int) -> None:
        """A process may read what it has written: as all readers, by a private mapping."""
        if not self._reader.knows(segment_id) and segment_id in self._writer.segments():
            fd, size_bytes, is_on_disk = self._writer.fd_of(segment_id)
            self._reader.add(segment_id, os.dup(fd), size_bytes, is_on_disk)

    def give_back(self, body: bytes) -> None:
        """A body that nobody will load: its ranges are reported as released, as after an opening."""
        stream, buffers = marshal.loads(body)
        for place in [stream, *buffers] if type(stream) is tuple else buffers:
            self._reader.give_back(place[:3])

    def load(self, body: bytes) -> Any:
        """The value."""
        stream, buffers = self.open(body)
        self._note_use()
        return pickle.loads(stream, buffers=buffers)

    def writer_died(self, segment_id: int, keep: list[Extent]) -> None:
        """Whoever wrote this segment is gone: what no view pins is given back now, the rest with its last view.

        `keep` are ranges that are still to be opened: the segment stays known until this is called without any.
        """
        self._reader.punch_unpinned(segment_id, keep)
        if not keep:
            self._reader.drop_segment(segment_id)

    def retain_pinned(self) -> None:
        self._reader.retain_pinned()

    def forget(self) -> None:
        """In a forked child: let go without disturbing views that are alive."""
        self.is_forgotten = True
        self._reader.forget()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
