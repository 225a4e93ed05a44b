"""Some seeds in every run of the tests; `python -m tests.simulation --seeds 1000` tries more."""

from __future__ import annotations

import pytest
from growth import growth
from world import World


@pytest.mark.parametrize("first", range(1, 201, 20))
def test_small_clusters(first: int) -> None:
    for seed in range(first, first + 20):
        World(seed, nodes=3 + seed % 28, tasks=600).run()


@pytest.mark.slow
def test_a_thousand_nodes() -> None:
    World(7, nodes=1000, tasks=600).run()


def test_what_a_cluster_costs_does_not_grow_faster_than_its_nodes() -> None:
    few, many = growth(10), growth(500)
    for found in few, many:
        assert found["head_messages_per_task"] == 0
        assert found["head_messages_per_node_and_second"] <= 1.01
        assert found["delay_p99_ms"] < 10
    for name in ("head_bytes_per_node", "driver_bytes_per_node"):
        assert many[name] < 1.2 * few[name], name


def test_the_same_seed_is_the_same_run() -> None:
    assert World(5).run() == World(5).run()


@pytest.mark.parametrize("seed", range(3))
def test_an_outcome_that_is_delivered_twice_is_found(seed: int) -> None:
    world = World(seed)
    for driver in world.drivers:
        deliver = driver._outcome
        driver._outcome = lambda task, outcome, deliver=deliver: (deliver(task, outcome), deliver(task, outcome))  # type: ignore[assignment, misc]
    with pytest.raises(AssertionError):
        world.run()
