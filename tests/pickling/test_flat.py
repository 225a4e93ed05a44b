"""Long flat lists: what is pickled without a memo, and what must not be."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from scaleout._runtime.pickling import flat
from scaleout._runtime.pickling.decode import decode
from scaleout._runtime.pickling.definitions import DefinitionBook
from scaleout._runtime.pickling.encode import Encoded, Encoder
from scaleout._runtime.pickling.flat import MANY_ITEMS, encode_flat

COUNT = 3 * MANY_ITEMS
LINES = [f"line {i}" for i in range(COUNT)]


def value_of(encoded: Encoded | None) -> Any:
    assert encoded is not None
    return decode(b"".join(encoded.chunks), encoded.buffers)


class Word(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        LINES,
        (LINES,),
        (LINES, 1, "a", None, 2.5, True, 1j),
        (LINES, list(reversed(LINES)), []),
        [line.encode() for line in LINES],
        ["text", *range(COUNT)],
    ],
)
def test_flat_values_come_back_equal(value: Any) -> None:
    encoded = encode_flat(value)
    assert encoded is not None and encoded.size_bytes == sum(map(len, encoded.chunks))
    assert value_of(encoded) == value
    assert value_of(Encoder(DefinitionBook()).encode(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        list(range(COUNT)),  # numbers have no memo to be spared
        [Word(line) for line in LINES],
        [*LINES, Word("last")],
        [*LINES, ["nested"]],
        (LINES, LINES),
        (LINES, {}),
        (LINES, (LINES,)),
    ],
)
def test_other_values_keep_the_memo(value: Any) -> None:
    assert encode_flat(value) is None
    assert value_of(Encoder(DefinitionBook()).encode(value)) == value


def test_what_is_the_same_list_twice_stays_so() -> None:
    first, second = value_of(Encoder(DefinitionBook()).encode((LINES, LINES)))
    assert first is second


def test_a_list_in_itself_stays_so() -> None:
    own: list[Any] = list(LINES)
    own.append(own)
    value = value_of(Encoder(DefinitionBook()).encode(own))
    assert value[-1] is value


@pytest.mark.parametrize("distinct", [2, 1000, 4999, 5000, 8191, 8209, 20_011])
def test_strings_that_repeat_are_written_once(distinct: int) -> None:
    """Whatever the period, and so whatever a sample at even distances would meet."""
    words = [f"a word of some length, number {i:09}" for i in range(distinct)]
    repeated = (words * (1 + 200_000 // distinct))[:200_000]
    encoded = Encoder(DefinitionBook()).encode(repeated)
    assert encoded.size_bytes <= len(pickle.dumps(repeated, 5)) + 1000
    assert value_of(encoded) == repeated


def test_a_list_that_changes_meanwhile_is_pickled_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_are_flat", lambda parts: True)  # as if another thread had put it in since
    changed = [*LINES, lambda: None]
    assert encode_flat(changed) is None
