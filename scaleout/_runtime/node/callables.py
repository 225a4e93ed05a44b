"""The callables an owner has pickled, and for how long it keeps them.

A function that pickles by name has one record for good, found by identity. Every other callable (bound method,
partial, closure, lambda) is pickled once per API call, because what it carries may have changed since; if the bytes
are those of an earlier record, that record is used again, so workers are sent nothing. Records without a user are
kept while they fit the bounds, oldest out first; what goes out is forgotten by the workers too.
"""

from __future__ import annotations

import threading
from types import BuiltinFunctionType, FunctionType

from scaleout._runtime.base import limits
from scaleout._runtime.core.tasks import Profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.pickling.definitions import DefinitionBook
    from scaleout._runtime.pickling.encode import Encoded, Encoder


class CallableRecord:
    """A pickled callable. `users` counts the API calls under way with it."""

    __slots__ = ("id", "name", "needs", "payload", "profile", "root", "stored", "users")

    def __init__(self, callable_id: int, payload: bytes, stored: Any, needs: tuple[int, ...]) -> None:
        self.id = callable_id
        self.payload = payload
        self.stored = stored
        self.needs = needs
        self.users = 0
        self.name = ""  # for those who look
        self.root: tuple[str, str] | None = None
        self.profile = Profile()


class CallableTable:
    """All records of an owner; used by submitting threads under one lock, and by the reactor."""

    def __init__(self, encoder: Encoder, book: DefinitionBook, pack: Callable[[Encoded], tuple[bytes, Any]]) -> None:
        self.encoder = encoder
        self.book = book
        self._pack = pack
        self._lock = threading.Lock()
        self._by_identity: dict[Any, CallableRecord] = {}
        self._by_bytes: dict[tuple[bytes, tuple[int, ...]], CallableRecord] = {}
        self._bytes = 0
        self._count = 0
        self._definitions: dict[int, tuple[bytes, Any]] = {}
        self.forgotten: list[CallableRecord] = []

    def record_of(self, function: Callable[..., Any]) -> CallableRecord:
        """The record for one API call with `function`; pair with `release`. Raises what pickling raises."""
        kind = type(function)
        by_name = kind is FunctionType or kind is BuiltinFunctionType or kind is type
        if by_name:
            record = self._by_identity.get(function)
            if record is not None:
                if record.root is not None:
                    record.needs = self.book.require(record.root)
                return record
        encoded = self.encoder.encode(function)
        if by_name and _is_by_name(encoded, function):
            return self._named(function, encoded)
        return self._unnamed(encoded)

    def _named(self, function: Any, encoded: Encoded) -> CallableRecord:
        with self._lock:
            self._count += 1
            record = CallableRecord(self._count, b"".join(encoded.chunks), None, encoded.needs)
            if encoded.needs:
                record.root = (function.__module__, function.__qualname__.partition(".")[0])
            self._by_identity[function] = record
            while len(self._by_identity) > limits.CALLABLE_CACHE_ENTRIES:
                self.forgotten.append(self._by_identity.pop(next(iter(self._by_identity))))
            return record

    def _unnamed(self, encoded: Encoded) -> CallableRecord:
        payload, stored = self._pack(encoded)
        return self.adopt(payload, encoded.needs, stored)

    def adopt(self, payload: bytes, needs: tuple[int, ...], stored: Any = None) -> CallableRecord:
        """The record for a callable that is pickled already; pair with `release`."""
        key = (payload, needs)
        with self._lock:
            record = self._by_bytes.pop(key, None) if stored is None else None
            if record is None:
                self._count += 1
                record = CallableRecord(self._count, payload, stored, needs)
                self._bytes += len(payload)
            self._by_bytes[key] = record  # moved to the young end
            record.users += 1
            self._evict()
            return record

    def use(self, record: CallableRecord) -> None:
        """One user more; pair with `release`."""
        with self._lock:
            record.users += 1

    def release(self, record: CallableRecord) -> None:
        """The API call is over: every task of it has ended."""
        if record.users:
            with self._lock:
                record.users -= 1
                self._evict()

    def _evict(self) -> None:
        excess = len(self._by_bytes) - limits.CALLABLE_CACHE_ENTRIES
        if excess <= 0 and self._bytes <= limits.CALLABLE_CACHE_BYTES:
            return
        for key, record in list(self._by_bytes.items()):
            if excess <= 0 and self._bytes <= limits.CALLABLE_CACHE_BYTES:
                return
            if record.users == 0:
                del self._by_bytes[key]
                self._bytes -= len(record.payload)
                self.forgotten.append(record)
                excess -= 1

    def forget_definitions(self, ids: list[int]) -> list[Any]:
        """Returns the extents of those that were stored."""
        found = [self._definitions.pop(definition_id, None) for definition_id in ids]
        return [stored for _, stored in filter(None, found)]

    def definition(self, definition_id: int) -> tuple[bytes, Any]:
        """What to send for a definition: (payload, extents or None)."""
        found = self._definitions.get(definition_id)
        if found is None:
            found = self._pack(self.book.bytes_of(definition_id))
            if found[1] is not None:
                self._definitions[definition_id] = found
        return found


def _is_by_name(encoded: Encoded, function: Any) -> bool:
    """Whether the stream holds a name only: as short as a name, and the name leads to the function."""
    import sys

    module = sys.modules.get(getattr(function, "__module__", None) or "")
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function and not encoded.buffers
