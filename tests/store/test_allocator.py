from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleout._runtime.core.allocator import OffsetAllocator

PAGE = 4096
PAGES = 24


def pages(count: int) -> int:
    return count * PAGE


class AgainstBitmap(RuleBasedStateMachine):
    """The allocator against a list with one entry per page: "cold", "warm", or the offset of the range in use."""

    @initialize()
    def start(self) -> None:
        self.ranges = OffsetAllocator(pages(PAGES), PAGE)
        self.model: list[object] = ["cold"] * PAGES
        self.freed_at = [0] * PAGES
        self.clock = 0

    @rule(size=st.integers(1, pages(PAGES) + 1))
    def allocate(self, size: int) -> None:
        count = -(-size // PAGE)
        offset = self.ranges.allocate(size)
        if offset is None:
            assert not self.has_free_run(count, ("cold", "warm"))
            return
        assert offset % PAGE == 0
        first = offset // PAGE
        taken = self.model[first : first + count]
        assert len(taken) == count and set(taken) <= {"cold", "warm"}
        if set(taken) != {"warm"}:
            assert not self.has_free_run(count, ("warm",)), "a warm range was long enough"
        if len(set(taken)) > 1:
            assert not self.has_free_run(count, ("cold",)), "kinds were mixed without need"
        self.model[first : first + count] = [offset] * count

    @precondition(lambda self: any(isinstance(page, int) for page in self.model))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted({page for page in self.model if isinstance(page, int)})))
        self.ranges.free(offset)
        self.clock += 1
        for index, page in enumerate(self.model):
            if page == offset:
                self.model[index] = "warm"
                self.freed_at[index] = self.clock
        # A merged range is as young as its youngest page, also when it is split later.
        for index, youngest in self.youngest_of_runs().items():
            self.freed_at[index] = youngest

    @rule(offset=st.integers(-PAGE, pages(PAGES)))
    def free_unknown(self, offset: int) -> None:
        if offset not in self.model:
            before = self.ranges.free_ranges(), self.ranges.used_bytes, self.ranges.warm_bytes
            with pytest.raises(ValueError, match="not in use"):
                self.ranges.free(offset)
            assert before == (self.ranges.free_ranges(), self.ranges.used_bytes, self.ranges.warm_bytes)

    @rule(keep=st.integers(-1, pages(PAGES)))
    def take_cold(self, keep: int) -> None:
        warm_before = self.ranges.warm_bytes
        taken = self.ranges.take_cold(keep)
        cut = {index for offset, size in taken for index in range(offset // PAGE, (offset + size) // PAGE)}
        assert all(self.model[index] == "warm" for index in cut)
        assert pages(len(cut)) == sum(size for _, size in taken)
        surplus = warm_before - max(0, keep)
        assert pages(len(cut)) == max(0, -(-surplus // PAGE) * PAGE)
        ages = [self.freed_at[offset // PAGE] for offset, _ in taken]
        assert ages == sorted(ages)
        if ages:
            left = [index for index, page in enumerate(self.model) if page == "warm" and index not in cut]
            assert all(self.freed_at[index] >= max(ages) for index in left)
        for index in cut:
            self.model[index] = "cold"

    @invariant()
    def accounts(self) -> None:
        used = sum(isinstance(page, int) for page in self.model)
        assert self.ranges.used_bytes == pages(used)
        assert self.ranges.warm_bytes == pages(self.model.count("warm"))
        expected = []  # maximal runs of one kind: coalesced, and warm and cold kept apart
        for index, page in enumerate(self.model):
            if isinstance(page, int):
                continue
            if index and self.model[index - 1] == page:
                expected[-1][1] += PAGE
            else:
                expected.append([pages(index), PAGE, page == "warm"])
        assert [list(free) for free in self.ranges.free_ranges()] == expected

    def teardown(self) -> None:
        if not hasattr(self, "ranges"):
            return
        for offset in {page for page in self.model if isinstance(page, int)}:
            self.ranges.free(offset)
        self.ranges.take_cold(0)
        assert self.ranges.free_ranges() == [(0, pages(PAGES), False)]
        assert self.ranges.used_bytes == self.ranges.warm_bytes == 0

    def has_free_run(self, count: int, kinds: tuple[str, ...]) -> bool:
        length = 0
        for page in self.model:
            length = length + 1 if page in kinds else 0
            if length >= count:
                return True
        return False

    def youngest_of_runs(self) -> dict[int, int]:
        youngest: dict[int, int] = {}
        run: list[int] = []
        for index in range(PAGES + 1):
            if index < PAGES and self.model[index] == "warm":
                run.append(index)
            else:
                youngest.update(dict.fromkeys(run, max((self.freed_at[i] for i in run), default=0)))
                run = []
        return youngest


TestAgainstBitmap = AgainstBitmap.TestCase
TestAgainstBitmap.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_best_fitting_warm_range_is_taken_before_cold_space() -> None:
    ranges = OffsetAllocator(pages(100), PAGE)
    offsets = [ranges.allocate(pages(count)) for count in (5, 1, 3, 1, 4)]
    for offset in offsets[::2]:
        ranges.free(offset)
    assert ranges.allocate(pages(3)) == offsets[2]
    assert ranges.allocate(pages(6)) == pages(14)


def test_an_allocation_spans_warm_and_cold_neighbours_only_if_it_must() -> None:
    ranges = OffsetAllocator(pages(4), PAGE)
    first = ranges.allocate(pages(2))
    ranges.free(first)
    assert ranges.allocate(pages(3)) == 0
    assert (ranges.used_bytes, ranges.warm_bytes) == (pages(3), 0)
    assert ranges.free_ranges() == [(pages(3), PAGE, False)]


def test_a_double_free_raises_and_changes_nothing() -> None:
    ranges = OffsetAllocator(pages(4), PAGE)
    offset = ranges.allocate(1)
    ranges.free(offset)
    with pytest.raises(ValueError, match="freed twice"):
        ranges.free(offset)
    assert ranges.free_ranges() == [(0, PAGE, True), (PAGE, pages(3), False)]


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_smaller_than_a_byte_is_allocated(size: int) -> None:
    with pytest.raises(ValueError, match="cannot allocate"):
        OffsetAllocator(pages(4), PAGE).allocate(size)


def test_take_cold_cuts_the_last_range_from_above() -> None:
    ranges = OffsetAllocator(pages(10), PAGE)
    old, _, young = ranges.allocate(pages(2)), ranges.allocate(pages(1)), ranges.allocate(pages(4))
    ranges.free(old)
    ranges.free(young)
    assert ranges.take_cold(pages(1) + 5) == [(old, pages(2)), (young + pages(1), pages(3))]
    assert ranges.warm_bytes == PAGE


def test_a_hundred_thousand_ranges() -> None:
    """Every other one is freed, so all free ranges are small holes; the work stays far from quadratic in Python."""
    count = 100_000
    ranges = OffsetAllocator(pages(2 * count), PAGE)
    offsets = [ranges.allocate(PAGE) for _ in range(count)]
    for offset in offsets[::2]:
        ranges.free(offset)
    assert ranges.allocate(pages(2)) == pages(count)
    for offset in offsets[1::2]:
        ranges.free(offset)
    ranges.free(pages(count))
    ranges.take_cold(0)
    assert ranges.free_ranges() == [(0, pages(2 * count), False)]
