"""Lists of nodes that come late, links that break, dialling that fails: in the end there is one link to each."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.roster import Roster


def listed(*ids: str, draining: str = "", state: str = "alive") -> list[Any]:
    return [(node_id, f"{node_id}:1", {"CPU": 1000}, state, node_id in draining) for node_id in ids]


def test_a_node_comes_and_goes() -> None:
    roster = Roster(5, listed("a"))
    assert roster.linked("a")
    assert roster.to_dial() == {}
    news = roster.told(6, listed("a", "b"))
    assert news is not None and (news.gone, news.resting, news.working) == ([], {}, ["a"])
    assert roster.to_dial() == {"b": "b:1"}
    assert roster.to_dial() == {}  # it is being dialled
    assert roster.linked("b")
    news = roster.told(7, listed("b"))
    assert news is not None and news.gone == ["a"]
    roster.lost("a")
    assert roster.to_dial() == {}


def test_an_older_list_is_no_news() -> None:
    roster = Roster(5, listed("a", "b"))
    roster.linked("a")
    roster.linked("b")
    assert roster.told(5, []) is None
    assert roster.told(4, listed("a")) is None


def test_who_gets_nothing_new() -> None:
    roster = Roster(1, listed("a", "b"))
    roster.linked("a")
    roster.linked("b")
    news = roster.told(2, listed("a", "b", draining="b"))
    assert news is not None and (news.gone, news.resting, news.working) == ([], {"b": True}, ["a"])
    news = roster.told(3, listed("a", "b", state="suspected"))
    assert news is not None and (news.resting, news.working) == ({"a": False, "b": False}, [])
    roster.lost("b")
    assert roster.to_dial() == {}  # not while it is silent
    roster.told(4, listed("a", "b"))
    assert roster.to_dial() == {"b": "b:1"}


def test_dialling_again() -> None:
    roster = Roster(1, listed("a"))
    assert roster.to_dial() == {"a": "a:1"}
    roster.unreachable("a")
    assert roster.to_dial() == {"a": "a:1"}
    assert roster.linked("a")
    assert not roster.linked("a")  # by another way
    roster.lost("a")
    assert roster.to_dial() == {"a": "a:1"}


@given(st.integers(0, 10_000))
def test_in_the_end_there_is_one_link_to_each(seed: int) -> None:
    chance = random.Random(seed)
    roster = Roster(0, [])
    lists = [(version, listed(*chance.sample("abcde", chance.randrange(6)))) for version in range(1, 9)]
    links: set[str] = set()
    dialling: list[str] = []
    late = lists[:]
    chance.shuffle(late)
    for version, nodes in [*late, lists[-1]]:
        news = roster.told(version, nodes)
        for node_id in news.gone if news is not None else ():
            links.discard(node_id)
            roster.lost(node_id)
        dialling += roster.to_dial()
        chance.shuffle(dialling)
        while dialling and chance.random() < 0.6:
            node_id = dialling.pop()
            if chance.random() < 0.3:
                roster.unreachable(node_id)
            elif roster.linked(node_id):
                assert node_id not in links
                links.add(node_id)
        if links and chance.random() < 0.3:
            node_id = chance.choice(sorted(links))
            links.discard(node_id)
            roster.lost(node_id)
    for _ in range(10):  # nothing more goes wrong
        for node_id in dialling:
            if roster.linked(node_id):
                links.add(node_id)
        dialling = list(roster.to_dial())
    assert links >= {node_id for node_id, *_ in lists[-1][1]}
