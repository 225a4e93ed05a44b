"""What a streaming task gives at once, in whatever process."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.base.references import ObjectRef


class StreamOfRefs:
    """What a streaming task gives at once: an iterator over references, each as soon as the task has yielded it.

    Also an asynchronous iterator. If it is dropped before its end, the task is cancelled.
    """

    def __init__(self, client: Any, stream: Any) -> None:
        self._client = client
        self._stream = stream
        self._position = 0
        self._is_over = False

    def __iter__(self) -> StreamOfRefs:
        return self

    def __next__(self) -> ObjectRef:
        if self._is_over:
            raise StopIteration
        ref = self._client.next_of_stream(self._stream, self._position, None)
        if ref is None:
            self._is_over = True
            raise StopIteration
        self._position += 1
        return ref

    def __aiter__(self) -> StreamOfRefs:
        return self

    async def __anext__(self) -> ObjectRef:
        import asyncio

        if self._is_over:
            raise StopAsyncIteration
        loop = asyncio.get_running_loop()
        if hasattr(self._client, "when_next"):
            found = loop.create_future()
            self._client.when_next(self._stream, self._position, lambda ref: _settle_soon(loop, found, ref))
            ref = await found
        else:  # in a worker: a thread waits
            ref = await loop.run_in_executor(None, self._client.next_of_stream, self._stream, self._position, None)
        if ref is None:
            self._is_over = True
            raise StopAsyncIteration
        self._position += 1
        return ref

    def close(self) -> None:
        """Take no more of it: the task is cancelled, an actor's generator ends at its next item."""
        if not self._is_over:
            self._is_over = True
            self._client.drop_stream(self._stream)

    def __repr__(self) -> str:
        return f"<stream of references, {self._position} taken{', at its end' if self._is_over else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("a stream of references cannot be pickled; pass the references that it gives")

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        if not is_finalizing():  # then modules may have lost what they imported
            self.close()


def _settle_soon(loop: Any, future: Any, ref: ObjectRef | None) -> None:
    """In any thread; the loop may be closed by now, the future cancelled."""
    try:
        loop.call_soon_threadsafe(lambda: future.done() or future.set_result(ref))
    except RuntimeError:
        pass
