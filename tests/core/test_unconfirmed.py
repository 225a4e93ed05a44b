"""A stream that outlives its connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.unconfirmed import Unconfirmed


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 20)),
            st.tuples(st.just("arrive"), st.integers(0, 30)),
            st.tuples(st.just("confirm"), st.integers(0, 0)),
            st.tuples(st.just("break"), st.integers(0, 30)),
        )
    )
)
def test_everything_arrives_once(steps: list[tuple[str, int]]) -> None:
    stream = bytes(range(256)) * 20
    kept = Unconfirmed()
    arrived = b""
    on_the_way = b""
    position = 0
    for step, size in steps:
        if step == "send":
            chunk = stream[position : position + size]
            position += size
            kept.sent(memoryview(chunk))
            on_the_way += chunk
        elif step == "arrive":
            arrived, on_the_way = arrived + on_the_way[:size], on_the_way[size:]
        elif step == "confirm":
            kept.confirmed(len(arrived))
            assert kept.size_bytes == position - len(arrived)
        else:
            arrived += on_the_way[:size]
            again = kept.take_back(len(arrived))
            assert kept.size_bytes == 0
            kept.sent(memoryview(b"".join(again)))
            on_the_way = b"".join(again)
            assert arrived + on_the_way == stream[:position]
    assert arrived + on_the_way == stream[:position]


def test_what_cannot_be() -> None:
    kept = Unconfirmed()
    kept.sent(memoryview(b"abc"))
    kept.sent(memoryview(b"def"))
    kept.confirmed(4)
    for offset in (2, 7):
        with pytest.raises(ValueError, match="bytes"):
            kept.take_back(offset)
    assert b"".join(kept.take_back(5)) == b"f"
