"""Warm ranges beside a set of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.warm import WarmRanges

extents = st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(1, 10))


def bytes_of(extent: tuple[int, int, int]) -> set[tuple[int, int]]:
    segment_id, start, size = extent
    return {(segment_id, offset) for offset in range(start, start + size)}


@given(st.lists(st.tuples(st.sampled_from(["add", "reused", "take"]), extents), max_size=40))
def test_what_is_warm_is_what_was_added_and_not_used_since(steps: list[tuple[str, tuple[int, int, int]]]) -> None:
    warm = WarmRanges()
    model: set[tuple[int, int]] = set()
    for what, extent in steps:
        if what == "add":
            warm.add(extent)
            model |= bytes_of(extent)
        elif what == "reused":
            warm.reused(extent)
            model -= bytes_of(extent)
        else:
            taken = warm.take()
            assert sum(size for _, _, size in taken) == len(model)
            assert set().union(*map(bytes_of, taken)) == model
            model = set()
        assert warm.size_bytes == len(model)
