"""A large result that lies in a worker's segment until somebody asks for it."""

from __future__ import annotations

import marshal
import pickle

from scaleout._runtime.base.references import resolving
from scaleout.errors import ForeignSessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.store.exchange import Exchange


def extents_of(body: bytes) -> list[Any]:
    """The ranges that a body names (see `store.exchange`)."""
    stream, buffers = marshal.loads(body)
    extents = [place[:3] for place in buffers]
    if type(stream) is tuple:
        extents.append(stream[:3])
    return extents


class StoredObject:
    """A large value that may be read any number of times, here and by workers; its ranges go back when this dies.

    `lend()` is called before each reading here, `release(extents)` at the end, both from any thread. `places` are the
    machines that have its bytes; if there are none, this one does. It is set on the reactor thread.
    """

    __slots__ = ("_exchange", "_lend", "_release", "body", "extents", "places")

    def __init__(
        self,
        exchange: Exchange,
        body: bytes,
        extents: list[Any],
        lend: Callable[[list[Any]], None],
        release: Callable[[list[Any]], None],
    ) -> None:
        self._exchange = exchange
        self._lend = lend
        self._release = release
        self.body = body
        self.extents = extents
        self.places: tuple[Any, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(extent[2] for extent in self.extents)

    def load(self) -> Any:
        """The value; its large parts are private views of the segment."""
        if self._exchange.is_forgotten:
            raise ForeignSessionError("this object belongs to the process that this one was forked from")
        self._lend(self.extents)
        return self._exchange.load(self.body)

    def __del__(self) -> None:
        if not self._exchange.is_forgotten:
            self._release(self.extents)


class Referring:
    """A result that has references in it, for a sink that is no entry: they live as long as this does, and then by what
    is unpickled from it."""

    __slots__ = ("_contained", "_payload")

    def __init__(self, payload: Any, contained: tuple[Any, ...]) -> None:
        self._payload = payload
        self._contained = contained

    def load(self) -> Any:
        return load_referring(self._payload, self._contained)


def load_referring(payload: Any, contained: tuple[Any, ...]) -> Any:
    """The value of bytes or something stored, whose references are to these entries."""
    before, resolving.entries = resolving.entries, {entry.id: entry for entry in contained}
    try:
        return pickle.loads(payload) if type(payload) is bytes else payload.load()
    finally:
        resolving.entries = before


class StoredResult:
    """`load()` maps and unpickles it; if that never happens, the ranges go back when this object dies.

    `settle(result_id, unread)` is told once, from any thread: which of the extents were never opened.
    """

    __slots__ = ("_body", "_exchange", "_settle", "extents", "result_id")

    def __init__(
        self, result_id: int, exchange: Exchange, body: bytes, settle: Callable[[int, list[Any]], None]
    ) -> None:
        self.result_id = result_id
        self._exchange = exchange
        self._body: bytes | None = body
        self._settle = settle
        self.extents = extents_of(body)

    def load(self) -> Any:
        """The value; its large parts are views of the segment, which is pinned as long as they live."""
        if self._exchange.is_forgotten:
            raise ForeignSessionError("this result was not looked at before the fork; only the parent process can")
        body, self._body = self._body, None
        assert body is not None
        try:
            return self._exchange.load(body)
        finally:
            self._settle(self.result_id, [])

    def __del__(self) -> None:
        if self._body is not None:
            self._body = None
            self._settle(self.result_id, self.extents)
