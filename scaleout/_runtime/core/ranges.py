"""Who still needs a range of a segment: this process's, or a worker's if it holds an object. Pure.

A range is needed by the tasks, objects and results that name it and, once sent, by each reader until it says
"released". Counts, not sets: one reader may open a range several times. When nobody needs a range any more it is
returned to the caller, who gives it back to the allocator; only then may its pages be written again.
"""

from __future__ import annotations

from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Extent = tuple[int, int, int]


class RangeTable:
    """Reference counts of extents, and which of them each reader holds."""

    def __init__(self) -> None:
        self._uses: dict[Extent, int] = {}
        self._lent: dict[Any, dict[Extent, int]] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def hold(self, extent: Extent) -> None:
        self._uses[extent] = self._uses.get(extent, 0) + 1

    def drop(self, extent: Extent) -> bool:
        """One use less; True when that was the last one, and the range is to be freed."""
        left = self._uses.get(extent, 0) - 1
        if left < 0:
            raise InternalError(f"range {extent} was released more often than it was held")
        if left:
            self._uses[extent] = left
            return False
        del self._uses[extent]
        return True

    def lend(self, reader: Any, extent: Extent) -> None:
        """The reader is sent a frame that names the range."""
        lent = self._lent.setdefault(reader, {})
        lent[extent] = lent.get(extent, 0) + 1
        self.hold(extent)

    def returned(self, reader: Any, extent: Extent) -> bool:
        """The reader released one opening; True when the range is to be freed. Unknown: ignored, it was settled."""
        lent = self._lent.get(reader)
        if not lent or extent not in lent:
            return False
        lent[extent] -= 1
        if not lent[extent]:
            del lent[extent]
        return self.drop(extent)

    def is_lent(self, reader: Any, extent: Extent) -> bool:
        return extent in self._lent.get(reader, ())

    def in_segment(self, segment_id: int) -> list[Extent]:
        """The ranges of one segment that somebody needs."""
        return [extent for extent in self._uses if extent[0] == segment_id]

    def reader_died(self, reader: Any) -> list[Extent]:
        """All that the reader held is released; returns the ranges to be freed."""
        freed = []
        for extent, count in self._lent.pop(reader, {}).items():
            for _ in range(count):
                if self.drop(extent):
                    freed.append(extent)
        return freed
