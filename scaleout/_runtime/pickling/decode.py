"""Bytes back to values. What the stream calls lives in `rebuild`; nothing is caught here."""

from __future__ import annotations

import pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_loads = pickle.loads


def decode(data: Any, buffers: Iterable[Any] = ()) -> Any:
    """The value of a stream; `data` is one bytes-like object, `buffers` what left the stream, in its order."""
    return _loads(data, buffers=buffers)
