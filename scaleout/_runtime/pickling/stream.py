"""What pickling gives, and the file-like object that the C pickler writes to."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

OUT_OF_BAND_BYTES = 64 * 1024
"""A buffer of at least this size leaves the stream: below it a copy is cheaper than a place in a segment."""


class Encoded:
    """A pickled value.

    `chunks` joined are the stream (for a small value exactly one bytes object), `size_bytes` its length. `buffers`
    are contiguous memoryviews of at least OUT_OF_BAND_BYTES that left it; `view.obj` is the object that exports it.
    Both may alias the caller's objects (an array, a large bytearray) until they are copied out, which the submitting
    thread must do. `needs` are the definitions that must be in place before the stream is loaded; whoever keeps the
    stream keeps this very object, which keeps them from being forgotten.
    """

    __slots__ = ("buffers", "chunks", "needs", "size_bytes")

    def __init__(
        self, chunks: list[Any], size_bytes: int, buffers: Sequence[memoryview], needs: tuple[int, ...]
    ) -> None:
        self.chunks = chunks
        self.size_bytes = size_bytes
        self.buffers = buffers
        self.needs = needs


class Stream:
    """What a pickler writes to. Its `write` is `chunks.append`, so a large bytes object is kept, not copied."""

    __slots__ = ("buffers", "chunks", "keep_buffer", "write")

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.buffers: list[memoryview] = []
        self.write = self.chunks.append
        self.keep_buffer = _buffer_callback(self.buffers.append)

    def finish(self, needs: tuple[int, ...]) -> Encoded:
        """The result; the stream must not be written to after this."""
        return Encoded(self.chunks, sum(map(len, self.chunks)), self.buffers, needs)


def _buffer_callback(append: Callable[[memoryview], None]) -> Callable[[Any], bool]:
    def stays_in_band(buffer: Any) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True
        append(view)
        return False

    return stays_in_band
