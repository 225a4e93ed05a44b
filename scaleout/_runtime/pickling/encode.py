"""Values to bytes: the hot path of every submission and every result.

The plain C pickler first; what it writes is final unless it fails or the stream holds the name of a by-value module.
Then the names in the stream are looked up in the book, and only what has no name takes the slow pickler (by_value.py).

Picklers are pooled. A list is the pool: pop and append are atomic, so a thread or a reducer that comes back in the
middle simply takes another one, and an interrupt loses one at most. A pickler whose stream was large is dropped,
because its memo stays large and would have to be cleared each time.
"""

from __future__ import annotations

import copyreg
import pickle

from scaleout._runtime.pickling import by_value, reducers
from scaleout._runtime.pickling.by_value import LACKS_A_NAME, ByValuePickler
from scaleout._runtime.pickling.flat import MANY_ITEMS, encode_flat
from scaleout._runtime.pickling.names import STACK_GLOBAL, join_frames
from scaleout._runtime.pickling.stream import OUT_OF_BAND_BYTES, Encoded, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    from scaleout._runtime.pickling.by_value import Policy

    class Book(Policy, Protocol):
        takes_nameless: bool
        """Whether the receiver takes functions and classes that have no name, by value."""

        def needs_of_stream(self, stream: bytes, reads: Iterable[tuple[str, str]] = ()) -> tuple[int, ...] | None:
            """What must be loaded before this stream; None: a name in it is not there for the receiver."""

        def may_name(self, chunks: list[bytes]) -> bool:
            """Whether `needs_of_stream` could find anything in a stream of several chunks."""


__all__ = ["OUT_OF_BAND_BYTES", "Encoded", "Encoder", "Hint"]

POOLED_STREAM_BYTES = 16 * 1024
"""After a larger stream its pickler is not used again."""

MAX_POOLED = 8
"""More picklers than this are needed only by as many threads at the same instant."""

_NOTHING: tuple[Any, ...] = ()


class Hint:
    """Shared by the payloads of one API call: once one needed the slow pickler, the others go to it at once."""

    __slots__ = ("is_by_value",)

    def __init__(self) -> None:
        self.is_by_value = False


class Encoder:
    """Pickles for one kind of receiver: a DefinitionBook for workers, a namespace's `results` for the owner."""

    def __init__(
        self, book: Book, own: Callable[[], reducers.Reducers] | None = None, carries_globals: bool = False
    ) -> None:
        """`own` gives reducers that only this encoder has; asked for when the first value is encoded. With
        `carries_globals`, see `ByValuePickler`."""
        self._book = book
        self._own = own
        self._carries_globals = carries_globals
        self._pool: list[tuple[Any, ...]] = []
        self._registered: Any = None
        self._seen: Any = None
        self._extra: dict[Any, Any] = {}
        self._table: dict[Any, Any] | None = None
        self._copyreg_seen: Any = None
        self._has_reduction = False

    def encode(self, obj: Any, hint: Hint | None = None) -> Encoded:
        """The pickled value. Raises what pickling raises, with a note that names the variable at fault."""
        if self._registered != self._seen or self._table is not None or not self._has_reduction:
            self._watch_reducers()
        if hint is not None and hint.is_by_value:
            return self._encode_by_value(obj, hint)
        first = obj[0] if type(obj) is tuple and obj else obj  # arguments of a call, or a result
        if type(first) is list and len(first) >= MANY_ITEMS:
            encoded = encode_flat(obj)
            if encoded is not None:
                return encoded
        pool = self._pool
        try:
            entry = pool.pop()
        except IndexError:
            entry = self._new_pickler()
        dump, clear_memo, chunks, buffers, stream = entry
        try:
            dump(obj)
        except LACKS_A_NAME:
            if not self._book.takes_nameless:
                raise
            chunks.clear()  # half written, and with it the pickler
        if len(chunks) != 1 or buffers:
            if not chunks:
                return self._encode_by_value(obj, hint)
            return self._finish(stream, obj, hint)
        data = chunks.pop()
        clear_memo()
        size = len(data)
        if size <= POOLED_STREAM_BYTES and len(pool) < MAX_POOLED:
            pool.append(entry)
        if STACK_GLOBAL in data:  # a byte is found four times as fast as a name
            needs = self._book.needs_of_stream(data)
            if needs is None:
                return self._encode_by_value(obj, hint)
            return Encoded([data], size, _NOTHING, needs)
        return Encoded([data], size, _NOTHING, _NOTHING)

    def encode_for_spawn(self, obj: Any, popen: Any) -> Encoded:
        """As `encode`, while `popen` is multiprocessing's spawning process: what passes only to a child passes too.

        The reducers call `popen.duplicate_for_child(fd)` and `popen.DupFd(fd)`; the caller sends what they collect.
        """
        from multiprocessing import context, reduction

        previous = context.get_spawning_popen()
        try:  # first: a Ctrl-C that strikes as the call below returns must not leave it set
            context.set_spawning_popen(popen)  # of this thread
            extra = dict(reduction.ForkingPickler._extra_reducers)  # type: ignore[attr-defined]
            encoded = self._encode_with(extra, obj)
        finally:
            context.set_spawning_popen(previous)
        return encoded

    def needs_after_miss(self, stream: bytes, module_name: str) -> tuple[int, ...]:
        """A worker could not find a name of this module: what to send it so that it can load the same stream.

        Only with a DefinitionBook. From now on the module travels by value.
        """
        book: Any = self._book
        needs: tuple[int, ...] = book.needs_after_miss(stream, module_name)
        return needs

    # -- the rare paths --------------------------------------------------------------------------------

    def _finish(self, stream: Stream, obj: Any, hint: Hint | None) -> Encoded:
        """A stream of several chunks, or with buffers. Its pickler goes, and with it what its memo holds."""
        needs: tuple[int, ...] | None = _NOTHING
        if self._book.may_name(stream.chunks):
            needs = self._book.needs_of_stream(join_frames(stream.chunks))
            if needs is None:
                return self._encode_by_value(obj, hint)
        return stream.finish(needs or _NOTHING)

    def _encode_by_value(self, obj: Any, hint: Hint | None) -> Encoded:
        encoded = self._encode_with(self._extra, obj)
        if hint is not None:
            hint.is_by_value = True
        return encoded

    def _encode_with(self, extra: dict[Any, Any], obj: Any) -> Encoded:
        def make(stream: Stream, with_cloudpickle: bool) -> ByValuePickler:
            pickler = ByValuePickler(stream, self._book, extra, with_cloudpickle)
            pickler.carries_globals = self._carries_globals
            return pickler

        stream, pickler = by_value.dump_by_value(make, obj)
        reads = pickler.reads
        frames = join_frames(stream.chunks)
        needs = self._book.needs_of_stream(frames, reads)
        return stream.finish(needs or _NOTHING)

    def _new_pickler(self) -> tuple[Any, ...]:
        stream = Stream()
        pickler = pickle.Pickler(stream, 5, buffer_callback=stream.keep_buffer)
        if self._table is not None:
            pickler.dispatch_table = self._table
        return pickler.dump, pickler.clear_memo, stream.chunks, stream.buffers, stream

    def _watch_reducers(self) -> None:
        """Called while the registered reducers may differ from what the pooled picklers have."""
        if not self._has_reduction:
            self._registered = reducers.registered()
            self._has_reduction = self._registered is not None
            if not self._has_reduction:
                return
        if self._registered != self._seen:
            self._seen = dict(self._registered)
            self._extra = reducers.extra_reducers(self._seen)
            if self._own is not None:
                self._extra.update(self._own())
        elif self._table is None or copyreg.dispatch_table == self._copyreg_seen:
            return
        # Without reducers of ForkingPickler the C pickler looks into copyreg's own table, faster than into ours.
        self._copyreg_seen = dict(copyreg.dispatch_table)
        self._table = reducers.merged(self._extra) if self._extra else None
        self._pool = []
