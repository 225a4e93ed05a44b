"""How resources are shared: by example, and as properties of all shares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.base import limits
from scaleout._runtime.core.resources import MILLI, Devices, Resources, shape_of

CPU = shape_of({"CPU": 1})
HALF = shape_of({"CPU": 0.5})
GPU = shape_of({"CPU": 1, "GPU": 1})
FREE = shape_of({})


def resources(**units: float) -> Resources:
    return Resources({name: round(amount * MILLI) for name, amount in units.items()})


# -- shapes -----------------------------------------------------------------------------------------


def test_a_shape_is_in_milli_units_and_has_one_spelling() -> None:
    assert shape_of({"GPU": 0.25, "CPU": 1}) == (("CPU", 1000), ("GPU", 250)) == shape_of({"CPU": 1.0, "GPU": 1 / 4})


def test_what_is_not_needed_is_left_out() -> None:
    assert shape_of({"CPU": 0, "GPU": 0.0}) == ()


def test_the_least_amount_is_still_one() -> None:
    """Rounded to nothing it would let any number of tasks run."""
    assert shape_of({"CPU": 0.0001}) == (("CPU", 1),)
    assert resources(CPU=0.002).shares([(shape_of({"CPU": 0.0001}), 0, 10**9)]) == [2]


@pytest.mark.parametrize(
    ("amounts", "fits"),
    [({"CPU": 4}, True), ({"CPU": 4.001}, False), ({"CPU": 1, "TPU": 1}, False), ({}, True), ({"TPU": 0}, True)],
)
def test_what_can_ever_run(amounts: dict[str, float], fits: bool) -> None:
    assert resources(CPU=4).can_ever_fit(shape_of(amounts)) is fits


# -- shares by example ------------------------------------------------------------------------------


def test_as_many_as_there_are() -> None:
    assert resources(CPU=4).shares([(CPU, 0, 9)]) == [4]
    assert resources(CPU=4).shares([(CPU, 0, 3)]) == [3]


def test_fractions() -> None:
    assert resources(CPU=1.5).shares([(HALF, 0, 9)]) == [3]
    assert resources(CPU=1.5).shares([(HALF, 0, 1), (CPU, 0, 9)]) == [1, 1]
    assert resources(CPU=1).shares([(shape_of({"CPU": 0.3}), 0, 9)]) == [3]


def test_one_each_until_nothing_is_left() -> None:
    assert resources(CPU=5).shares([(CPU, 0, 9), (CPU, 0, 9), (CPU, 0, 1)]) == [2, 2, 1]


def test_what_is_held_stays_and_counts() -> None:
    assert resources(CPU=4).shares([(CPU, 3, 9), (CPU, 0, 9)]) in ([3, 1], [4, 0])


def test_more_may_be_held_than_there_is() -> None:
    """By tasks that came back from waiting."""
    assert resources(CPU=2).shares([(CPU, 3, 5), (HALF, 1, 5)]) == [3, 1]


def test_every_resource_of_a_shape_counts() -> None:
    assert resources(CPU=4, GPU=2).shares([(GPU, 0, 9), (CPU, 0, 9)]) == [2, 2]
    assert resources(CPU=4).shares([(GPU, 0, 9)]) == [0]


def test_what_is_held_of_a_resource_that_is_not_there() -> None:
    assert resources(CPU=4).shares([(GPU, 1, 9), (CPU, 0, 9)]) == [1, 3]


def test_tasks_that_need_nothing_are_bounded_all_the_same() -> None:
    assert resources(CPU=1).shares([(FREE, 0, 10**6)]) == [limits.FREE_TASKS]
    assert resources(CPU=1).shares([(FREE, limits.FREE_TASKS + 3, 5)]) == [limits.FREE_TASKS + 3]


def test_nobody_wants_anything() -> None:
    assert resources(CPU=1).shares([]) == []
    assert resources(CPU=1).shares([(CPU, 0, 0)]) == [0]


def test_each_has_its_turn_however_often_is_asked() -> None:
    """One slot becomes free at every second question: the same shape must not always be the one to get it."""
    for period in range(1, 5):
        shared = resources(CPU=1)
        holder = None
        got = [0, 0, 0]
        for question in range(60):
            if question % period == 0:
                holder = None  # its task has ended
            held = [int(position == holder) for position in range(3)]
            granted = shared.shares([(CPU, held[position], 9) for position in range(3)])
            if holder is None:
                holder = granted.index(1)
                got[holder] += 1
        assert max(got) - min(got) <= 1, (period, got)


def test_those_that_need_nothing_do_not_disturb_the_turns() -> None:
    shared = resources(CPU=1)
    winners = [shared.shares([(CPU, 0, 9), (CPU, 0, 9), (FREE, 0, 1)])[:2].index(1) for _ in range(10)]
    assert winners in ([0, 1] * 5, [1, 0] * 5)


# -- shares in general ------------------------------------------------------------------------------

NAMES = ("CPU", "GPU", "memory")
SHAPES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.1, 0.25, 0.5, 1, 2, 3.7])).map(shape_of)
TOTALS = st.fixed_dictionaries(
    {"CPU": st.integers(1, 8)}, optional={"GPU": st.sampled_from([0.5, 1, 4]), "memory": st.integers(1, 100)}
)
DEMANDS = st.lists(st.tuples(SHAPES, st.integers(0, 5), st.integers(0, 200)), max_size=6)


def used_by(demands: list[tuple[Any, int]], name: str) -> int:
    return sum(count * dict(shape).get(name, 0) for shape, count in demands)


@given(totals=TOTALS, rounds=st.lists(DEMANDS, min_size=1, max_size=4))
def test_shares_are_sound(totals: dict[str, float], rounds: list[list[tuple[Any, int, int]]]) -> None:
    shared = resources(**totals)
    for demands in rounds:
        granted = shared.shares(demands)
        assert len(granted) == len(demands)
        for (_, held, wanted), share in zip(demands, granted, strict=True):
            assert held <= share <= held + wanted
        after = [(shape, share) for (shape, _, _), share in zip(demands, granted, strict=True)]
        before = [(shape, held) for shape, held, _ in demands]
        for name in NAMES:
            assert used_by(after, name) <= max(shared.total.get(name, 0), used_by(before, name)), name
        for (shape, held, wanted), share in zip(demands, granted, strict=True):
            left = {name: shared.total.get(name, 0) - used_by(after, name) for name, _ in shape}
            if share < held + wanted:  # there was a reason
                assert any(left[name] < amount for name, amount in shape) or (not shape and share >= limits.FREE_TASKS)


@given(
    size=st.integers(1, 3),
    count=st.integers(2, 5),
    ends=st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=30, max_size=60),
)
def test_nobody_starves(size: int, count: int, ends: list[int | None]) -> None:
    """All want more than there is, always. Whenever a slot became free `count` times, each has had one."""
    shared = resources(CPU=size)
    running: list[int] = []
    history: list[int] = []
    for ended in ends:
        if ended is not None and ended < len(running):
            del running[ended]
        held = [running.count(position) for position in range(count)]
        granted = shared.shares([(CPU, held[position], 9) for position in range(count)])
        for position in range(count):
            for _ in range(granted[position] - held[position]):
                running.append(position)
                history.append(position)
        assert len(running) == size
    for begin in range(len(history) - 2 * count):
        assert set(history[begin : begin + 2 * count]) == set(range(count)), history


# -- devices ----------------------------------------------------------------------------------------


def test_whole_devices_are_one_s_own() -> None:
    devices = Devices(3)
    assert devices.take(1, 2 * MILLI) == [0, 1]
    assert devices.take(2, MILLI) == [2]
    devices.give_back(1)
    assert devices.take(3, MILLI) in ([0], [1])


def test_fractions_share_the_fullest_that_has_room() -> None:
    devices = Devices(2)
    assert devices.take(1, 500) == devices.take(2, 500) == [0]
    assert devices.take(3, 300) == [1]
    devices.give_back(1)
    assert devices.take(4, 400) == [0]
    assert devices.take(5, 600) == [1]


def test_one_more_than_there_are_gets_the_freest() -> None:
    devices = Devices(2)
    devices.take(1, MILLI)
    devices.take(2, 500)
    assert devices.take(3, MILLI) == [1]
    for worker in (1, 2, 3, 3):
        devices.give_back(worker)
    assert devices.take(4, 2 * MILLI) == [0, 1]


@given(st.lists(st.sampled_from([0, 250, 500, 750, 1000, 1500, 2000, 2500, 3000]), max_size=8))
def test_what_there_is_can_be_taken_without_a_device_taken_twice(amounts: list[int]) -> None:
    devices = Devices(3)
    used = dict.fromkeys(range(3), 0)
    for worker, amount in enumerate(amounts):
        if devices.has(amount):
            parts = [MILLI] * (amount // MILLI) + ([amount % MILLI] if amount % MILLI else [])
            taken = devices.take(worker, amount)
            assert len(taken) == len(parts)
            before = sum(used.values())
            for number, part in devices._taken[worker]:
                used[number] += part
            assert sum(used.values()) == before + amount
            assert max(used.values()) <= MILLI
    assert not devices.has(3001) and devices.has(0)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 250, 500, 1000, 1500, 3000]))))
def test_what_is_given_back_is_free(steps: list[tuple[int, int]]) -> None:
    devices = Devices(2)
    having: set[int] = set()
    for worker, amount in steps:
        if worker in having:
            devices.give_back(worker)
            having.remove(worker)
        else:
            taken = devices.take(worker, amount)
            assert taken == sorted(set(taken))
            assert len(taken) == min(2, -(-amount // MILLI))
            having.add(worker)
    for worker in having:
        devices.give_back(worker)
    assert devices.take(9, 2 * MILLI) == [0, 1]


def test_what_is_withheld_is_not_given_away() -> None:
    resources = Resources({"CPU": 4000, "GPU": 2000})
    half = (("CPU", 1000), ("GPU", 500))
    assert resources.shares([(half, 0, 4)], (("GPU", 2000),)) == [0]
    assert resources.shares([(half, 1, 4)], (("GPU", 1000),)) == [2]
    assert resources.shares([(half, 0, 9)]) == [4]
