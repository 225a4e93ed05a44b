"""What has been sent over a connection and may be lost with it: kept until the other side has confirmed it, to go again
over the next connection. Pure.

Both sides count the bytes of a stream, which outlives the connections that carry it. After a new one is made each
side says how far it has received, and the other goes on from there: nothing is lost, and nothing comes twice.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Unconfirmed:
    """See the module's docstring. Offsets are counts of bytes since the stream began."""

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._start = 0  # where the first of them begins
        self.end = 0

    @property
    def size_bytes(self) -> int:
        """What is not confirmed."""
        return self.end - self._start

    def sent(self, data: memoryview) -> None:
        if len(data):
            self._chunks.append(data)
            self.end += len(data)

    def confirmed(self, offset: int) -> None:
        """The other side has all before this."""
        chunks = self._chunks
        while chunks and self._start + len(chunks[0]) <= offset:
            self._start += len(chunks.popleft())
        if chunks and offset > self._start:
            chunks[0] = chunks[0][offset - self._start :]
            self._start = offset

    def may_be(self, offset: int) -> bool:
        """Whether the other side can have all before this and nothing more."""
        return self._start <= offset <= self.end

    def take_back(self, offset: int) -> Sequence[memoryview]:
        """The other side has all before this and nothing more: what is to be sent again, and counts as not sent.
        ValueError if it cannot be so."""
        if not self.may_be(offset):
            raise ValueError(f"the other side has {offset} bytes, and {self._start} to {self.end} are here")
        self.confirmed(offset)
        again = list(self._chunks)
        self._chunks.clear()
        self._start = self.end = offset
        return again
