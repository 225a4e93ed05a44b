"""Ranges of copies that nobody reads any more, whose pages are still there. Pure.

What comes next is mostly as large as what went, and its writer puts it at the same place: a page that is there already
takes it ten times faster than a new one. So pages are given back only after a while, but for those in use again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Extent = tuple[int, int, int]


class WarmRanges:
    """By segment, as (start, stop); they do not overlap."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self.size_bytes = 0

    def add(self, extent: Extent) -> None:
        """Nobody reads it now."""
        segment_id, start, size_bytes = extent
        self.reused(extent)
        self._ranges.setdefault(segment_id, []).append((start, start + size_bytes))
        self.size_bytes += size_bytes

    def reused(self, extent: Extent) -> None:
        """It is about to be written: none of it is to be given back."""
        segment_id, start, size_bytes = extent
        stop = start + size_bytes
        ranges = self._ranges.get(segment_id)
        if not ranges:
            return
        left = []
        for first, last in ranges:
            if last <= start or stop <= first:
                left.append((first, last))
                continue
            self.size_bytes -= min(last, stop) - max(first, start)
            left += [part for part in ((first, start), (stop, last)) if part[0] < part[1]]
        self._ranges[segment_id] = left

    def forget(self, segment_id: int) -> None:
        """Nobody has the segment any more."""
        for start, stop in self._ranges.pop(segment_id, ()):
            self.size_bytes -= stop - start

    def take(self) -> list[Extent]:
        """All of them, to be given back."""
        taken = [
            (segment_id, start, stop - start)
            for segment_id, ranges in self._ranges.items()
            for start, stop in sorted(ranges)
        ]
        self._ranges.clear()
        self.size_bytes = 0
        return taken


def gaps_between(extents: list[Extent], segment_id: int, size_bytes: int) -> list[Extent]:
    """What of the segment is in none of these.

    >>> gaps_between([(1, 10, 5), (1, 0, 4)], 1, 20)
    [(1, 4, 6), (1, 15, 5)]
    """
    gaps = []
    gap_start = 0
    for _, start, size in sorted(extents):
        if start > gap_start:
            gaps.append((segment_id, gap_start, start - gap_start))
        gap_start = max(gap_start, start + size)
    if gap_start < size_bytes:
        gaps.append((segment_id, gap_start, size_bytes - gap_start))
    return gaps
