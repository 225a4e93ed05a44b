"""Which ranges of one segment are in use: offsets and sizes, nothing else. No memory is touched here.

A free range is *warm* (it was in use; its pages are still committed) or *cold* (never used, or punched out since).
Writing 50 MB into warm pages takes 3 ms, into cold ones 17 to 130, so warm ranges go first.

Invariants
- Ranges in use and free ranges tile the segment: no gap, no overlap; every bound is a multiple of the page size.
- Two neighbouring free ranges never have the same warmth: they would have been merged.
- A call that raises leaves everything as it was.

How a range is chosen
1. Best fit among the warm ranges: a large warm range is worth keeping whole for a large object.
2. Best fit among the cold ranges, the lowest of equals. The never-used tail is the largest cold range by far, so it is
   cut into last and the segment stays compact. *Rejected:* first fit by address, which scans every small hole left by
   `take_cold` each time; best fit is one bisection.
3. A run of neighbours of both kinds, the lowest that is long enough: rare, so a plain scan.

Sorted lists and `bisect` are enough: with 100 000 ranges in use an insertion moves some hundred KB, about 20 µs.
"""

from __future__ import annotations

from bisect import bisect_left, insort


class OffsetAllocator:
    """Hands out page-aligned ranges of a segment of `size_bytes`, warm ones first. Not thread-safe.

    >>> ranges = OffsetAllocator(4 * 4096)
    >>> ranges.allocate(5000), ranges.allocate(1)
    (0, 8192)
    >>> ranges.free(0)
    >>> ranges.used_bytes, ranges.warm_bytes
    (4096, 8192)
    >>> ranges.take_cold(keep_bytes=4096)
    [(4096, 4096)]
    """

    __slots__ = ("_by_size", "_clock", "_free_size", "_free_starts", "_freed_at", "_used", "page_bytes", "size_bytes",
                 "used_bytes", "warm_bytes")  # fmt: skip

    def __init__(self, size_bytes: int, page_bytes: int = 4096) -> None:
        if page_bytes <= 0 or size_bytes <= 0 or size_bytes % page_bytes:
            raise ValueError(f"a segment of {size_bytes} bytes is not a positive number of {page_bytes}-byte pages")
        self.size_bytes = size_bytes
        self.page_bytes = page_bytes
        self.used_bytes = 0
        """Bytes in use, in whole pages."""
        self.warm_bytes = 0
        """Free bytes whose pages are still committed."""
        self._used: dict[int, int] = {}
        """Offset -> size of each range in use."""
        self._free_starts: list[int] = []
        """Offsets of all free ranges, sorted: finds neighbours."""
        self._free_size: dict[int, int] = {}
        """Offset -> size of each free range."""
        self._freed_at: dict[int, int] = {}
        """Offset -> when it was freed, for the warm ranges only: a free range that is not in here is cold."""
        self._by_size: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        """Is warm -> sorted (size, offset) of those free ranges: finds the best fit."""
        self._clock = 0
        """Counts calls of `free`; orders the warm ranges by age."""
        self._insert(0, size_bytes, None)

    def allocate(self, size: int) -> int | None:
        """The offset of `size` bytes, rounded up to whole pages; None if there is no room."""
        if size <= 0:
            raise ValueError(f"cannot allocate {size} bytes")
        need = -(-size // self.page_bytes) * self.page_bytes
        run = self._best_fit(need, is_warm=True) or self._best_fit(need, is_warm=False) or self._lowest_run(need)
        if not run:
            return None
        offset = run[0]
        for start in run:
            range_size, freed_at = self._remove(start)
            rest = start + range_size - (offset + need)
            if rest > 0:  # only the last of a run can be longer than what is needed
                self._insert(offset + need, rest, freed_at)
        self._used[offset] = need
        self.used_bytes += need
        return offset

    def free(self, offset: int) -> None:
        """Give back a range that `allocate` returned; it is warm from now on. ValueError if it is not in use."""
        if offset not in self._used:
            raise ValueError(f"offset {offset} is not in use: freed twice, or never allocated")
        size = self._used.pop(offset)
        self.used_bytes -= size
        self._clock += 1
        self._insert_merged(offset, size, self._clock)

    def take_cold(self, keep_bytes: int) -> list[tuple[int, int]]:
        """The warm (offset, size) ranges to punch out so that at most `keep_bytes` stay warm: least recently freed
        first, the last one only in part. They count as cold at once, so the caller punches them before it allocates.
        """
        surplus = self.warm_bytes - max(0, keep_bytes)
        if surplus <= 0:
            return []  # asked often, so before anything is sorted
        surplus = -(-surplus // self.page_bytes) * self.page_bytes
        taken: list[tuple[int, int]] = []
        for start in sorted(self._freed_at, key=self._freed_at.__getitem__):
            if surplus <= 0:
                break
            size, freed_at = self._remove(start)
            cut = min(size, surplus)  # the upper part goes: low addresses are reused first
            if cut < size:
                self._insert(start, size - cut, freed_at)
            taken.append((start + size - cut, cut))
            surplus -= cut
        # Only now: merging while the loop runs would not change a warm range, but this way it need not be proved.
        for offset, size in taken:
            self._insert_merged(offset, size, None)
        return taken

    def size_of(self, offset: int) -> int | None:
        """Whole-page size of the range in use at `offset`; None if there is none."""
        return self._used.get(offset)

    def free_ranges(self) -> list[tuple[int, int, bool]]:
        """(offset, size, is warm) of every free range by address: for tests and for looking at a running store."""
        return [(start, self._free_size[start], start in self._freed_at) for start in self._free_starts]

    # -- choosing ---------------------------------------------------------------------------------

    def _best_fit(self, need: int, *, is_warm: bool) -> list[int]:
        ranges = self._by_size[is_warm]
        index = bisect_left(ranges, (need, 0))
        return [ranges[index][1]] if index < len(ranges) else []

    def _lowest_run(self, need: int) -> list[int]:
        """The starts of the lowest free ranges that adjoin and are together long enough; empty if there are none."""
        if need > self.size_bytes - self.used_bytes:
            return []
        run: list[int] = []
        run_stop = -1
        for start in self._free_starts:
            if start != run_stop:
                run = []
            run.append(start)
            run_stop = start + self._free_size[start]
            if run_stop - run[0] >= need:
                return run
        return []

    # -- the free ranges --------------------------------------------------------------------------

    def _insert(self, offset: int, size: int, freed_at: int | None) -> None:
        insort(self._free_starts, offset)
        self._free_size[offset] = size
        insort(self._by_size[freed_at is not None], (size, offset))
        if freed_at is not None:
            self._freed_at[offset] = freed_at
            self.warm_bytes += size

    def _remove(self, offset: int) -> tuple[int, int | None]:
        """Take a free range out; its size and when it was freed (None: cold)."""
        del self._free_starts[bisect_left(self._free_starts, offset)]
        size = self._free_size.pop(offset)
        freed_at = self._freed_at.pop(offset, None)
        ranges = self._by_size[freed_at is not None]
        del ranges[bisect_left(ranges, (size, offset))]
        if freed_at is not None:
            self.warm_bytes -= size
        return size, freed_at

    def _insert_merged(self, offset: int, size: int, freed_at: int | None) -> None:
        """Insert a range that became free or cold, together with its neighbours of the same warmth.

        The merged range is as young as its youngest part: it is the recent use that says it may be wanted again.
        """
        index = bisect_left(self._free_starts, offset)
        neighbours = self._free_starts[max(0, index - 1) : index + 1]
        for start in neighbours:
            adjoins = start + self._free_size[start] == offset or offset + size == start
            if not adjoins or (start in self._freed_at) != (freed_at is not None):
                continue
            other_size, other_freed_at = self._remove(start)
            offset, size = min(offset, start), size + other_size
            if freed_at is not None and other_freed_at is not None:
                freed_at = max(freed_at, other_freed_at)
        self._insert(offset, size, freed_at)
