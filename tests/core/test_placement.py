"""Where workers go, beside the simplest model of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.placement import Room, choose

CPU = (("CPU", 1000),)


def room(cpus: int, **others: int) -> Room:
    return Room({"CPU": 1000 * cpus, **{name: 1000 * amount for name, amount in others.items()}})


def test_the_freest_by_its_size() -> None:
    small, large = room(1), room(3)
    placed = []
    for _ in range(4):
        chosen = choose([small, large], CPU)
        assert chosen is not None
        chosen.take(CPU)
        placed.append(chosen)
    assert placed.count(large) == 3
    assert choose([small, large], CPU) in (small, large)  # nothing is free: where it will be


def test_what_only_one_has() -> None:
    plain, licensed = room(4), room(1, license=1)
    assert choose([plain, licensed], (("license", 1000),)) is licensed
    licensed.is_wanted = False
    assert choose([plain, licensed], (("license", 1000),)) is licensed
    assert choose([plain, licensed], CPU) is plain
    assert choose([plain], (("license", 1000),)) is None
    assert choose([], CPU) is None


def test_one_without_cpus_gets_no_pool_s_workers() -> None:
    gpus_only, plain = Room({"GPU": 2000}), room(1)
    for _ in range(5):
        chosen = choose([gpus_only, plain], ())
        assert chosen is plain
        plain.take(())


shapes = st.sampled_from([(), CPU, (("CPU", 2000),), (("GPU", 500),), (("CPU", 1000), ("GPU", 1000))])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=4), st.lists(shapes, max_size=25))
def test_nothing_is_given_twice_while_it_is_free_elsewhere(sizes: list[tuple[int, int]], asked: list[tuple]) -> None:  # type: ignore[type-arg]
    rooms = [room(cpus, GPU=gpus) for cpus, gpus in sizes]
    held: list[tuple[Room, tuple]] = []  # type: ignore[type-arg]
    for number, shape in enumerate(asked):
        chosen = choose(rooms, shape)
        if chosen is None:
            assert not any(other.can_ever_fit(shape) for other in rooms)
            continue
        assert chosen.fits(shape) or not any(other.fits(shape) for other in rooms)
        chosen.take(shape)
        held.append((chosen, shape))
        if number % 3 == 2:
            gone, its = held.pop(0)
            gone.give_back(its)
    for chosen, shape in held:
        chosen.give_back(shape)
    assert all(other.workers == 0 and other.fits(tuple(other.resources.items())) for other in rooms)
