"""Long flat lists: recognised, so that they are pickled without a memo.

The C pickler notes every string it writes, in case the same object comes again. For a list of half a million lines of
text that is most of its work. In a list of nothing but strings, bytes and numbers the note has one use: an object that
stands in it many times is written once. So the memo is left out where a sample says that hardly any does, and where
no list stands in the value twice: what comes out is equal, list by list and item by item.
"""

from __future__ import annotations

import pickle

from scaleout._runtime.pickling.stream import Encoded, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MANY_ITEMS = 4096
"""A shorter list is pickled sooner than looked at."""

SAMPLE_ITEMS = 4096
"""Of so many of a list's items none may be there twice: of a million distinct ones about 8 pairs would be."""

_MEMOIZED = frozenset({str, bytes})
_ATOMS = _MEMOIZED | {int, float, complex, bool, type(None)}


def encode_flat(value: Any) -> Encoded | None:
    """`value`, a long list or a tuple that begins with one, pickled without a memo; None if that would not do."""
    parts = (value,) if type(value) is list else value
    if not _MEMOIZED.issuperset(map(type, parts[0][:1])) or not _are_flat(parts):
        return None
    stream = Stream()
    pickler = pickle.Pickler(stream, 5)
    pickler.fast = True
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - another thread has put something else into it
        return None
    return stream.finish(())


def _are_flat(parts: tuple[Any, ...]) -> bool:
    lists = [part for part in parts if type(part) is list]
    return (
        all(type(part) in _ATOMS for part in parts if type(part) is not list)
        and len(set(map(id, lists))) == len(lists)
        and all(_is_flat(part) for part in lists)
    )


def _is_flat(items: list[Any]) -> bool:
    if not _ATOMS.issuperset(map(type, items)):
        return False
    length = len(items)
    places = {hash((i, length)) % length for i in range(SAMPLE_ITEMS)} if length else ()  # at random, as it were
    sample = [item for item in (items[place] for place in places) if type(item) in _MEMOIZED]
    return len(set(map(id, sample))) == len(sample)
