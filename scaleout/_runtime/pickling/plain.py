"""Values that need no Encoder: most arguments and results of small calls are numbers, or None."""

from __future__ import annotations

import pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN = frozenset((int, float, bool, type(None)))
_FEW_ITEMS = 8

dumps = pickle.dumps


def is_plain(value: Any) -> bool:
    """Whether it is a number or None, or a short tuple of them. The C pickler writes these as they are, whatever
    reducers there are, and nothing in them has a name: `dumps(value, 5)` is all that it takes."""
    kind = type(value)
    if kind is not tuple:
        return kind in _PLAIN
    if len(value) > _FEW_ITEMS:
        return False
    for item in value:
        if type(item) not in _PLAIN:
            return False
    return True
