"""A process's own segments: finding room, copying data in, giving pages back.

While what is in use stays within the allowance, extents come from one segment in memory; above it from a second
segment that is an unlinked file on a disk (that is what "spill" is here). Both are made at first need.

Not thread-safe: one thread owns `allocate`, `free`, `trim` and `close`. `write` may run in any thread meanwhile.

How bytes get in, measured for 50 MB (2 cores, Linux 6.18; ms):
                                    cold pages          warm pages
    os.pwritev (no GIL)             17 (130 if the      7.5 to 9
                                    host has to find
                                    the memory)
    slice assignment to a mapping   37 (140)            3.3 to 4.4, the first time in this process 17 (page faults)
    ctypes memmove to a mapping     30 (142)            3.0
So fresh pages are written with `pwritev`: faster, holds no GIL, and a lack of memory is an error instead of SIGBUS.
Ranges that were handed out warm are written through a mapping, in pieces (a piece of 1 MB holds the GIL for 0.1
ms). *Rejected:* memmove through ctypes, which needs the C layout of Py_buffer for read-only sources and gains a
tenth.
"""

from __future__ import annotations

import errno
import os
import zlib
from pickle import PickleBuffer

from scaleout._runtime.core.allocator import OffsetAllocator
from scaleout._runtime.store import segment as files
from scaleout._runtime.store.segment import Extent
from scaleout.errors import StoreFullError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Sequence

COPY_PIECE_BYTES = 1 << 20
"""One slice assignment: other threads may run between two of them."""

VECTOR_CHUNKS = 512
"""Chunks per `pwritev`: the kernel takes at most 1024 (IOV_MAX)."""

DISK_RESERVE_BYTES = 64 << 20
"""Left free on the spill disk: a full /var/tmp breaks other programs."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


class SegmentWriter:
    """Allocates extents and writes them.

    `allowance_bytes` is asked at each `allocate` how much of the memory budget this process may use now.
    `spill_dir` is where the disk segment goes; by default `segment.default_spill_dir()`, found at first need.
    """

    def __init__(self, *, allowance_bytes: Callable[[], int], spill_dir: str | None = None) -> None:
        self._allowance_bytes = allowance_bytes
        self._spill_dir = spill_dir
        self._memory: _Segment | None = None
        self._disk: _Segment | None = None
        self._checksums: dict[Extent, int] = {}
        """Of what was written to disk."""

    # -- room -------------------------------------------------------------------------------------

    def allocate(self, size_bytes: int) -> Extent:
        """An extent for `size_bytes` (at least 1), in memory if the allowance has room for it, else on disk.

        StoreFullError if neither has; other OSErrors (EMFILE) come as they are. Both leave everything as it was.
        """
        allowance = self._allowance_bytes()
        extent = self._allocate_in_memory(size_bytes, allowance)
        return extent if extent is not None else self._allocate_on_disk(size_bytes, allowance)

    def free(self, extent: Extent) -> None:
        """Take an extent back; nobody may have it mapped any more. ValueError if it is not in use."""
        segment_id, offset, _ = extent
        owner = self._segment(segment_id)
        owner.ranges.free(offset)
        owner.warm_offsets.discard(offset)
        if owner is self._disk:
            self._checksums.pop(extent, None)
            owner.trim(0)  # now: what is still only in the page cache need not reach the disk

    def trim(self, keep_bytes: int) -> int:
        """Give free warm pages back to the system, least recently freed first, until at most `keep_bytes` are left.
        The number of bytes given back."""
        return self._memory.trim(keep_bytes) if self._memory else 0

    @property
    def used_bytes(self) -> int:
        """Bytes of memory in use, in whole pages; what is on disk does not count."""
        return self._memory.ranges.used_bytes if self._memory else 0

    @property
    def spilled_bytes(self) -> int:
        """Bytes on disk in use, in whole pages."""
        return self._disk.ranges.used_bytes if self._disk else 0

    @property
    def free_warm_bytes(self) -> int:
        """Bytes of memory that are free but still committed."""
        return self._memory.ranges.warm_bytes if self._memory else 0

    def segments(self) -> list[int]:
        """The ids of the segments that exist so far."""
        return [owned.segment_id for owned in (self._memory, self._disk) if owned]

    def fd_of(self, segment_id: int) -> tuple[int, int, bool]:
        """(fd, size_bytes, is_on_disk): what `SegmentReader.add` of another process needs. The fd stays ours."""
        owned = self._segment(segment_id)
        return owned.fd, owned.size_bytes, owned is self._disk

    def close(self) -> None:
        """Close the fds and forget everything; no `write` may be running. Right also in a child after fork: it only
        drops this process's hold, and readers that have the segments mapped keep them."""
        for owned in (self._memory, self._disk):
            if owned:
                owned.close()
        self._memory = self._disk = None
        self._checksums.clear()

    def _segment(self, segment_id: int) -> _Segment:
        for owned in (self._memory, self._disk):
            if owned and owned.segment_id == segment_id:
                return owned
        raise ValueError(f"segment {segment_id:#x} is not one of this writer")

    def _allocate_in_memory(self, size_bytes: int, allowance: int) -> Extent | None:
        if self.used_bytes + files.round_to_pages(size_bytes) > allowance:
            return None
        try:
            if self._memory is None:
                # As large as the allowance if that is more than usual; what is virtual costs nothing.
                self._memory = _Segment(files.create_memory_segment(max(files.SEGMENT_BYTES, allowance)))
            extent = self._memory.allocate(size_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return None  # what must be reserved cannot be: a small /dev/shm, or the commit limit
        # Free warm pages are memory too: together with what is in use they stay within the allowance.
        self.trim(max(0, allowance - self.used_bytes))
        return extent

    def _allocate_on_disk(self, size_bytes: int, allowance: int) -> Extent:
        if self._spill_dir is None:
            self._spill_dir = files.default_spill_dir()
        disk_free: int | None = None
        cause: OSError | None = None
        try:
            status = os.statvfs(self._spill_dir)
            disk_free = max(0, status.f_bavail * status.f_frsize - DISK_RESERVE_BYTES)
            if files.round_to_pages(size_bytes) <= disk_free:
                if self._disk is None:
                    self._disk = _Segment(files.create_disk_segment(self._spill_dir))
                extent = self._disk.allocate(size_bytes)
                if extent is not None:
                    return extent
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            cause = error
        has = "cannot be used" if disk_free is None else f"has {_size_text(disk_free)} to spare"
        raise StoreFullError(
            f"an object of {_size_text(size_bytes)} does not fit: of the {_size_text(allowance)} of memory that this "
            f"process may fill {_size_text(self.used_bytes)} are in use, and the disk of {self._spill_dir} {has}"
            + (f" ({cause.strerror})" if cause else ""),
            size_bytes=size_bytes,
            budget_bytes=allowance,
            disk_free_bytes=disk_free,
        ) from cause

    # -- data -------------------------------------------------------------------------------------

    def write(self, extent: Extent, chunks: Sequence[bytes | bytearray | memoryview]) -> int | None:
        """Copy the chunks, one after the other, to the start of the extent; any thread.

        Chunks are C- or Fortran-contiguous buffers of any format. For an extent on disk the CRC-32 of the chunks is
        returned and kept for `checksum_of`; else None. ValueError if they are too long, StoreFullError if the
        system has no pages for them: the extent is still in use then and has to be freed.
        """
        segment_id, offset, size_bytes = extent
        owned = self._segment(segment_id)
        views = [PickleBuffer(chunk).raw() for chunk in chunks]
        total = sum(view.nbytes for view in views)
        if total > size_bytes:
            raise ValueError(f"{total} bytes do not fit into an extent of {size_bytes}")
        try:
            owned.write(offset, views)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise StoreFullError(
                f"the system has no room for the {_size_text(total)} of an object: {error.strerror}",
                size_bytes=total,
                budget_bytes=self._allowance_bytes(),
                disk_free_bytes=None,
            ) from error
        if owned is not self._disk:
            return None
        checksum = 0
        for view in views:
            checksum = zlib.crc32(view, checksum)
        self._checksums[extent] = checksum
        return checksum

    def checksum_of(self, extent: Extent) -> int | None:
        """The CRC-32 of what was last written to an extent on disk; None in memory, or before it was written."""
        return self._checksums.get(extent)


class _Segment:
    """One file, and which of its ranges are in use."""

    __slots__ = ("_must_reserve", "_view", "fd", "ranges", "segment_id", "size_bytes", "warm_offsets")

    def __init__(self, file: files.SegmentFile) -> None:
        self.segment_id = (int.from_bytes(os.urandom(8), "little") >> 1) or 1
        self.fd, self.size_bytes, self._must_reserve = file.fd, file.size_bytes, file.must_reserve
        self.ranges = OffsetAllocator(self.size_bytes, files.PAGE_BYTES)
        self.warm_offsets: set[int] = set()
        """Ranges in use that were wholly warm when they were handed out: written through the mapping."""
        self._view: memoryview | None = None
        """Over the mapping; made when the first range is recycled, as only then it is of use."""

    def allocate(self, size_bytes: int) -> Extent | None:
        """None if no free range is long enough; OSError if its blocks cannot be reserved."""
        warm_before = self.ranges.warm_bytes
        offset = self.ranges.allocate(size_bytes)
        if offset is None:
            return None
        whole_size = files.round_to_pages(size_bytes)
        if warm_before - self.ranges.warm_bytes == whole_size:
            self.warm_offsets.add(offset)
            if self._view is None and not self._must_reserve:
                self._view = self._map()
        elif self._must_reserve:
            try:
                os.posix_fallocate(self.fd, offset, whole_size)
            except BaseException:
                self.ranges.free(offset)
                self.trim(0)  # freed ranges count as warm, this one is not; and part of it may have been reserved
                raise
        return self.segment_id, offset, size_bytes

    def write(self, offset: int, views: list[memoryview]) -> None:
        if self._view is not None and offset in self.warm_offsets:
            for view in views:
                for start in range(0, view.nbytes, COPY_PIECE_BYTES):
                    piece = view[start : start + COPY_PIECE_BYTES]
                    self._view[offset : offset + piece.nbytes] = piece
                    offset += piece.nbytes
            return
        pending = [view for view in views if view.nbytes]
        while pending:
            written = os.pwritev(self.fd, pending[:VECTOR_CHUNKS], offset)
            offset += written
            done = 0
            while done < len(pending) and written >= pending[done].nbytes:
                written -= pending[done].nbytes
                done += 1
            del pending[:done]
            if written:
                pending[0] = pending[0][written:]

    def trim(self, keep_bytes: int) -> int:
        given_back = 0
        for offset, size in self.ranges.take_cold(keep_bytes):
            files.punch(self.fd, offset, size)
            given_back += size
        return given_back

    def close(self) -> None:
        self._view = None
        os.close(self.fd)

    def _map(self) -> memoryview | None:
        try:
            mapping: mmap.mmap = files.map_shared(self.fd, self.size_bytes)
        except OSError:  # RLIMIT_AS: then everything is written with pwritev
            return None
        return memoryview(mapping)


def _size_text(size_bytes: int) -> str:
    """
    >>> _size_text(1_500_000)
    '1.5 MB'
    """
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"
