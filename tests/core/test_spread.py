"""How one object comes to many machines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.spread import MOST_SENDS, Spread


def rounds_of(spread: Spread, places: list[int]) -> int:
    """All want it at once, and each round takes all transfers to their end."""
    for place in places:
        spread.wanted(place)
    rounds = 0
    while spread.waiting or spread.under_way:
        for _, place in spread.begin() or [(None, place) for place in spread.under_way]:
            spread.arrived(place)
        rounds += 1
    return rounds


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 30, 100])
@pytest.mark.parametrize("source", [None, "first"])
def test_many_have_it_after_few_rounds_and_nobody_sends_it_often(count: int, source: str | None) -> None:
    spread = Spread([source])
    rounds = rounds_of(spread, list(range(count)))
    assert set(spread.sends) == {source, *range(count)}
    assert max(spread.sends.values()) <= MOST_SENDS
    assert math.ceil(math.log2(count + 1)) <= rounds <= math.ceil(math.log2(count + 1)) + 3


def test_this_process_is_asked_last() -> None:
    spread = Spread([None, "a"])
    spread.wanted("b")
    assert spread.begin() == [("a", "b")]
    spread.wanted("c")
    assert spread.begin() == [(None, "c")]  # as nobody else has a hand free


def test_nothing_is_sent_twice_to_one_machine() -> None:
    spread = Spread(["a"])
    spread.wanted("b")
    spread.wanted("b")
    assert spread.begin() == [("a", "b")]
    spread.wanted("b")
    assert spread.begin() == []
    spread.arrived("b")
    spread.wanted("b")
    assert spread.begin() == [] and spread.sends == {"a": 1, "b": 0}


def test_after_a_failure_another_one_is_asked_and_then_it_is_hopeless() -> None:
    spread = Spread(["a", "b"])
    spread.wanted("c")
    assert spread.begin() == [("a", "c")]
    spread.failed("c")
    assert spread.begin() == [("b", "c")]
    spread.failed("c")
    assert spread.begin() == [] and spread.hopeless() == ["c"] and spread.hopeless() == []
    spread.wanted("d")
    assert spread.begin() == [("a", "d")]


def test_a_machine_that_is_gone() -> None:
    spread = Spread(["a"])
    for place in "bc":
        spread.wanted(place)
    assert spread.begin() == [("a", "b")]
    spread.lost("b")
    assert spread.begin() == [("a", "c")]
    spread.arrived("b")  # said before it was gone
    spread.lost("a")
    spread.failed("c")
    assert spread.hopeless() == ["c"]


@given(st.lists(st.tuples(st.sampled_from(["want", "arrive", "fail", "lose"]), st.integers(0, 5)), max_size=60))
def test_whatever_happens(events: list[tuple[str, int]]) -> None:
    spread = Spread([0])
    wanting: set[int] = set()
    for what, place in events:
        if what == "want" and place not in spread.sends:
            spread.wanted(place)
            wanting.add(place)
        elif what == "arrive":
            if place in spread.under_way:
                wanting.discard(place)
            spread.arrived(place)
        elif what == "fail":
            spread.failed(place)
        elif what == "lose":
            spread.lost(place)
            wanting.discard(place)
        for source, to in spread.begin():
            assert source != to and source in spread.sends and to not in spread.sends
        wanting.difference_update(spread.hopeless())
        sources = list(spread.under_way.values())
        assert len(sources) == len(set(sources))
        assert wanting == {*spread.waiting, *spread.under_way}
        if spread.waiting:  # for somebody who is busy
            assert spread.under_way
