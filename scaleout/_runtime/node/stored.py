"""A large result that lies in a worker's segment until somebody asks for it."""

from __future__ import annotations

import marshal

from scaleout.errors import ForeignSessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.store.exchange import Exchange


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
        stream, buffers = marshal.loads(body)
        self.extents = [place[:3] for place in buffers]
        if type(stream) is tuple:
            self.extents.append(stream[:3])

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
