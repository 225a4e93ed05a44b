"""Other processes' segments: views of their extents, and the moment when the last view is gone.

A segment is mapped once, privately and writable: what nobody writes is never copied, and what a view's user writes
nobody else sees. An *opening* is one call of `open`; it lives until the last view derived from it dies. In order,
at its end:
1. the token on the pin dies; its weak references append the opening to a deque and call `on_released`, no more: it
   can happen anywhere, in any thread, inside any lock;
2. `drain_released` (or an `open` that comes first) gives the private pages of the WHOLE range back, so that a later
   opening sees the file again and not what was written by this one;
3. `drain_released` returns the extent, once per opening; only then may the writer recycle the range.

The pin is a ctypes array over the mapping, because numpy and memoryview slices all keep it (a weak reference to a
memoryview dies with the first slice). The weak references are not to the pin but to a token that only the pin holds:
when the cyclic garbage collector finds a view, it calls weak references BEFORE the `__del__` methods of the same
garbage, which may still use the view or bring it back to life. The token is hidden from the collector, so it goes only
when the pin really goes. *Rejected:* `__del__` on the token, which a Ctrl-C can end before its first line;
`deque.append` as the callback is one step.

Invariants
- The `shared` openings of a segment, those on its shared mapping, are disjoint; any other has a mapping of its own. So
  two openings never share private pages, and MADV_DONTNEED never hits a live view.
- An opening leaves `_openings` once, and only then its extent is reported.

Threads: `open` in any, `drain_released` in any (usually one). There is no lock, because a garbage collection or a
signal handler may run user code in the middle of anything here, and that may open extents, or wait for the thread
that drains. Instead each step is one atomic operation of a built-in type, and a claim is laid first and looked at
second: of two that overlap and race at least one sees the other and takes a mapping of its own. *Rejected:* RLock
(deadlock as said; inside it, two levels of one thread meet), and a flag as a lock that is not waited for (an
exception in its `finally`, by Ctrl-C, leaves it taken). An exception at the wrong place can at worst lose a release,
which leaks a range; none is ever doubled.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import zlib
from bisect import bisect_left, insort
from collections import deque
from weakref import ref

from scaleout._runtime.store import segment as files
from scaleout._runtime.store.segment import Extent
from scaleout.errors import ObjectLostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

VERIFY_PIECE_BYTES = 1 << 20
"""Read at once when a checksum is verified."""


class SegmentReader:
    """Opens extents of segments whose fds were received from their writers.

    `on_released()` is called whenever `drain_released` has something to do. It can be called anywhere, also inside a
    garbage collection, so it must not take a lock or raise: set a flag, write to an eventfd.
    """

    def __init__(self, on_released: Callable[[], None] = lambda: None) -> None:
        self._on_released = on_released
        self._wake = lambda _: on_released()
        self._start_empty()

    def _start_empty(self) -> None:
        self._segments: dict[int, _Segment] = {}
        self._openings: dict[int, _Opening] = {}
        """By number; until their private pages were given back."""
        self._died: deque[ref[_Token]] = deque()
        """Weak references `died` of the openings whose last view died."""
        self._settled: deque[Extent] = deque()
        """Extents of those whose private pages were given back since."""

    # -- segments ---------------------------------------------------------------------------------

    def add(self, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool = False) -> None:
        """Know a segment from now on. Owns `fd`, and closes it if the segment is known already."""
        if segment_id in self._segments:
            os.close(fd)
        else:
            self._segments[segment_id] = _Segment(fd, size_bytes, is_on_disk)

    def knows(self, segment_id: int) -> bool:
        segment = self._segments.get(segment_id)
        return segment is not None and not segment.is_dropped

    def drop_segment(self, segment_id: int) -> None:
        """No more openings of this segment: its writer is dead, and its objects are lost or no longer wanted.

        Views that are alive stay valid. Mapping and fd go with the last of them (when that was drained).
        """
        segment = self._segments.get(segment_id)
        if segment is not None:
            segment.is_dropped = True
            self._close_if_unused(segment_id)

    def punch_unpinned(self, segment_id: int, keep: Iterable[Extent] = ()) -> None:
        """Give a dead writer's memory back, but for what is open here and the extents in `keep` (what is open
        in other processes, or still referenced). The writer must be dead: everything else reads as zeros
        afterwards, in every process. Also right between `drop_segment` and the end of the last view; nothing if the
        segment is unknown.
        """
        segment = self._segments.get(segment_id)
        if segment is None:
            return
        self._settle()
        extents = [opening.extent for opening in list(self._openings.values()) if opening.segment is segment]
        extents += [extent for extent in keep if extent[0] == segment_id]
        gap_start = 0
        for start, stop in sorted(_page_range(extent) for extent in extents):
            if start > gap_start:
                files.punch(segment.fd, gap_start, start - gap_start)
            gap_start = max(gap_start, stop)
        if gap_start < segment.size_bytes:
            files.punch(segment.fd, gap_start, segment.size_bytes - gap_start)

    # -- reading ----------------------------------------------------------------------------------

    def open(self, extent: Extent, checksum: int | None = None) -> memoryview:
        """A writable view of exactly the extent's bytes; writes to it stay private to it.

        Takes over the caller's pin: `drain_released` returns the extent once for this call, after the last view of it
        died, or soon if the call raises. So do not free the extent yourself after an error. With a `checksum` (an
        extent on disk) the bytes are verified first. ObjectLostError if they are damaged or the segment is gone,
        MemoryError if they cannot be mapped.
        """
        segment_id, _, size_bytes = extent
        segment = self._segments.get(segment_id) or _NO_SEGMENT
        token = _Token()
        wake = ref(token, self._wake)  # of several, the newest reference calls first: the drain finds it in `_died`
        died = ref(token, self._died.append)
        opening = _Opening(segment, extent, died, wake)
        # From here on the extent will be reported, wherever the token dies.
        self._openings[opening.number] = opening
        segment.openings.add(opening.number)
        if segment.is_dropped:  # asked after the line above, so `drop_segment` cannot close the fd under us
            raise ObjectLostError(f"segment {segment_id:#x} is not known here any more")
        start, stop = _page_range(extent)
        if start % files.PAGE_BYTES or size_bytes <= 0 or start < 0 or stop > segment.size_bytes:
            raise ValueError(f"{extent} is not an extent of a segment of {segment.size_bytes} bytes")
        if checksum is not None:
            _verify(segment, extent, checksum)
        self._settle()
        mapping = segment.whole_mapping()
        if mapping is not None and segment.claim(start, stop, opening.number):
            pin = _pin(mapping, start, stop - start, token)
        else:
            pin = _pin(_map_own(segment, start, stop), 0, stop - start, token)
        if self._settled:
            self._on_released()  # a drain in another thread may have come and gone while we settled
        return memoryview(pin).cast("B")[:size_bytes]

    def copy_out(self, extent: Extent, checksum: int | None = None) -> bytes:
        """The extent's bytes, copied: for small objects, which share pages with nobody's views. Pins and reports
        nothing."""
        segment = self._segments.get(extent[0])
        if segment is None:
            raise ObjectLostError(f"segment {extent[0]:#x} is not known here any more")
        data = b"".join(_read_pieces(segment, extent))
        if checksum is not None and zlib.crc32(data) != checksum:
            raise _damaged(extent)
        return data

    def give_back(self, extent: Extent) -> None:
        """As an opening that is over at once: the caller's pin is settled without a look at the extent."""
        self._settled.append(extent)
        self._on_released()

    def fd_of(self, segment_id: int) -> tuple[int, int, bool]:
        """(fd, size, is_on_disk) of a segment, to introduce it to another reader. ObjectLostError if it is gone."""
        segment = self._segments.get(segment_id)
        if segment is None or segment.fd < 0:
            raise ObjectLostError(f"segment {segment_id:#x} is not known here any more")
        return segment.fd, segment.size_bytes, segment.is_on_disk

    def size_of(self, segment_id: int) -> int:
        """0 if it is gone."""
        segment = self._segments.get(segment_id)
        return 0 if segment is None else segment.size_bytes

    # -- releasing --------------------------------------------------------------------------------

    def drain_released(self) -> list[Extent]:
        """The extents whose last view died since the last call, once per opening; their private pages are given
        back, so they may be freed at the writer."""
        self._settle()
        released: list[Extent] = []
        while self._settled:
            try:
                released.append(self._settled.popleft())
            except IndexError:  # another thread was faster
                break
        return released

    def retain_pinned(self) -> None:
        """Never report what is open now. For `register_at_fork(before=...)`: a child's views are not counted here, and
        its pages change if the writer recycles the range."""
        for opening in list(self._openings.values()):
            opening.is_retained = True

    def forget(self) -> None:
        """Drop everything: for a child after fork, where living views stay valid and nothing is reported to the
        parent's `on_released`. The reader is empty afterwards and can be used again."""
        segments = list(self._segments.values())
        self._start_empty()  # and with the weak references go their callbacks
        for segment in segments:
            segment.close()

    def close(self) -> None:
        """Close all fds. Living views stay valid, and are not reported any more."""
        self.forget()

    def _settle(self) -> None:
        """Give the private pages of all died openings back."""
        died = self._died
        while died:
            try:
                reference = died.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._settle_one(reference)
            except BaseException:
                died.append(reference)  # Ctrl-C: every step may be repeated
                raise

    def _settle_one(self, reference: ref[_Token]) -> None:
        opening = self._openings.get(id(reference))
        if opening is None:
            return  # its `open` was interrupted before it began
        segment = opening.segment
        segment.unclaim(*_page_range(opening.extent), opening.number)
        segment.openings.discard(opening.number)
        if opening.is_retained:
            del self._openings[opening.number]
        else:
            self._settled.append(self._openings.pop(opening.number).extent)
        self._close_if_unused(opening.extent[0])

    def _close_if_unused(self, segment_id: int) -> None:
        segment = self._segments.get(segment_id)
        if segment is not None and segment.is_dropped and not segment.openings:
            self._segments.pop(segment_id, None)
            segment.close()


class _Token:
    """Dies with the pin that holds it."""

    __slots__ = ("__weakref__",)


class _Opening:
    """One call of `open`, from then until its last view died and its private pages were given back."""

    __slots__ = ("_died", "_wake", "extent", "is_retained", "number", "segment")

    def __init__(self, segment: _Segment, extent: Extent, died: ref[_Token], wake: ref[_Token]) -> None:
        self.segment = segment
        self.extent = extent
        self.is_retained = False
        """A fork child may still see it: it is never reported."""
        self._died = died
        self._wake = wake
        self.number = id(died)
        """No other opening has it, as `died` lives as long as this."""


class _Segment:
    """One segment of another process: its fd, its mapping, and who is on that."""

    __slots__ = (
        "_is_mappable",
        "_mapping",
        "claims",
        "fd",
        "is_dropped",
        "is_on_disk",
        "openings",
        "shared",
        "size_bytes",
    )

    def __init__(self, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.is_on_disk = is_on_disk
        self.is_dropped = False
        self.openings: set[int] = set()
        """Numbers of the openings that are not settled yet, claimed or not."""
        self.claims: list[tuple[int, int, int]] = []
        """(start, stop, number) of the openings that are, or would be, on the shared mapping: sorted."""
        self.shared: set[int] = set()
        """Numbers of those that are. Their ranges are disjoint."""
        self._mapping: mmap.mmap | None = None
        self._is_mappable = True

    def whole_mapping(self) -> mmap.mmap | None:
        """The shared mapping of the whole segment. None with overcommit_memory=2 or a low RLIMIT_AS, which count it
        at its virtual size: then each opening gets a mapping of its own."""
        if self._mapping is None and self._is_mappable:
            try:
                self._mapping = files.map_private(self.fd, 0, self.size_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOMEM, errno.EAGAIN):
                    raise
                self._is_mappable = False
        return self._mapping

    def claim(self, start: int, stop: int, number: int) -> bool:
        """Put an opening on the shared mapping, if no other is there. False: it needs a mapping of its own."""
        claim = (start, stop, number)
        insort(self.claims, claim)
        claims = self.claims.copy()  # neighbours are only neighbours while nobody else inserts
        index = bisect_left(claims, claim)
        has_overlap = (index > 0 and claims[index - 1][1] > start) or (
            index + 1 < len(claims) and claims[index + 1][0] < stop
        )
        if has_overlap:
            self.claims.remove(claim)
            return False
        self.shared.add(number)
        return True

    def unclaim(self, start: int, stop: int, number: int) -> None:
        """Take an opening off the shared mapping, private pages first. Nothing if it is not there."""
        if number in self.shared:
            if self._mapping is not None:
                self._mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)
            # Before the claim: from the moment that one is gone the pages may be somebody else's.
            self.shared.discard(number)
        with contextlib.suppress(ValueError):  # it never had one, or this is the second try after Ctrl-C
            self.claims.remove((start, stop, number))

    def close(self) -> None:
        """The mapping is unmapped by the end of the last pin on it."""
        fd, self.fd = self.fd, -1
        self._mapping = None
        self.is_dropped = True
        if fd >= 0:
            os.close(fd)


_NO_SEGMENT = _Segment(-1, 0, False)
"""Stands for a segment that is not known, so that its openings are reported like all others."""
_NO_SEGMENT.is_dropped = True


def _pin(mapping: mmap.mmap, offset: int, size_bytes: int, token: _Token) -> Any:
    """A buffer over the mapping that takes `token` along when it dies, and not before."""
    import ctypes

    ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(token))  # why: see the module's docstring
    pin = (ctypes.c_ubyte * size_bytes).from_buffer(mapping, offset)
    pin.token = token  # type: ignore[attr-defined]
    return pin


def _map_own(segment: _Segment, start: int, stop: int) -> mmap.mmap:
    """A mapping for one opening alone; it is unmapped by the end of the pin."""
    try:
        return files.map_private(segment.fd, start, stop - start)
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.EAGAIN):
            raise
        raise MemoryError(
            f"an object of {stop - start} bytes cannot be mapped: RLIMIT_AS, the commit limit of overcommit_memory=2 "
            "or vm.max_map_count is reached"
        ) from error


def _page_range(extent: Extent) -> tuple[int, int]:
    _, offset, size_bytes = extent
    return offset, offset + files.round_to_pages(size_bytes)


# -- reading without a mapping: an I/O error is an exception here, and SIGBUS there -----------------


def _verify(segment: _Segment, extent: Extent, checksum: int) -> None:
    actual = 0
    for piece in _read_pieces(segment, extent):
        actual = zlib.crc32(piece, actual)
    if actual != checksum:
        raise _damaged(extent)


def _read_pieces(segment: _Segment, extent: Extent) -> Iterable[bytes]:
    _, offset, left = extent
    while left > 0:
        try:
            piece = os.pread(segment.fd, min(left, VERIFY_PIECE_BYTES), offset)
        except OSError as error:
            raise ObjectLostError(f"an object of {extent[2]} bytes cannot be read: {error.strerror}") from error
        if not piece:
            raise ObjectLostError(f"an object of {extent[2]} bytes ends {left} bytes early")
        yield piece
        offset += len(piece)
        left -= len(piece)


def _damaged(extent: Extent) -> ObjectLostError:
    return ObjectLostError(
        f"an object of {extent[2]} bytes was damaged on disk: its checksum is not the one it was stored with"
    )
