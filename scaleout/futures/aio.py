"""Executors in asyncio programs: awaiting futures, and a `map` that is an async iterator.

    future = executor.submit(f, x)
    value = await future                  # or asyncio.wrap_future(future), loop.run_in_executor(executor, f, x)
    async for value in aio.map(executor, f, items): ...

What arrives together wakes the loop once: the runtime's callback thread puts completed futures on a list of the loop's,
and only the first on an empty list calls `call_soon_threadsafe`. Values are unpickled there too, not in the loop.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
    from concurrent.futures import Future
    from typing import Any

AHEAD_PER_WORKER = 16
"""Calls of a `map` that are under way at most, by default: workers are kept busy, and memory stays bounded."""

_arrivals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Arrivals] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Arrivals:
    """The completed futures that one loop has not looked at yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._ready: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_called = False

    def put(self, awaited: asyncio.Future[Any], future: Future[Any]) -> None:
        """Any thread, usually the callback thread."""
        if not future.cancelled():
            future.exception()  # unpickle here
        self._ready.append((awaited, future))
        if not self._is_called:
            self._is_called = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # it is closed: nobody awaits any of these
                self._ready.clear()

    def _take(self) -> None:
        """In the loop. The mark goes first: what is put from now on calls again."""
        self._is_called = False
        ready = self._ready
        while ready:
            _copy(*ready.popleft())


def wrap(future: Future[Any], loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Future[Any]:
    """As `asyncio.wrap_future`: an awaitable. Cancelling it cancels the call if no worker has started it."""
    if loop is None:
        loop = asyncio.get_running_loop()
    with _lock:
        arrivals = _arrivals.get(loop)
        if arrivals is None:
            arrivals = _arrivals[loop] = Arrivals(loop)
    awaited = loop.create_future()
    awaited.add_done_callback(partial(_pass_on_cancellation, future))
    future.add_done_callback(partial(arrivals.put, awaited))
    return awaited


def _pass_on_cancellation(future: Future[Any], awaited: asyncio.Future[Any]) -> None:
    if awaited.cancelled():
        future.cancel()


def _copy(awaited: asyncio.Future[Any], future: Future[Any]) -> None:
    if awaited.done():
        return
    if future.cancelled():
        awaited.cancel()
        return
    error = future.exception()
    if error is None:
        awaited.set_result(future.result())
    elif isinstance(error, StopIteration):  # which a coroutine cannot raise
        replaced = RuntimeError("the call raised StopIteration")
        replaced.__cause__ = error
        awaited.set_exception(replaced)
    else:
        awaited.set_exception(error)


async def map(
    executor: Any,
    fn: Callable[..., Any],
    *iterables: Iterable[Any] | AsyncIterable[Any],
    buffersize: int | None = None,
) -> AsyncIterator[Any]:
    """`fn(*items)` for the items of the iterables (async ones too), in order.

    At most `buffersize` calls are ahead of the consumer (default: 16 for each worker there may be). What is left when
    the iterator is closed is cancelled.
    """
    if buffersize is None:
        buffersize = AHEAD_PER_WORKER * executor._max_workers
    elif not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    elif buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    pending: deque[asyncio.Future[Any]] = deque()
    try:
        async for arguments in _zipped(iterables):
            pending.append(wrap(executor.submit(fn, *arguments)))
            if len(pending) >= buffersize:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for awaited in pending:
            awaited.cancel()


async def _zipped(iterables: tuple[Any, ...]) -> AsyncIterator[tuple[Any, ...]]:
    if not any(hasattr(iterable, "__aiter__") for iterable in iterables):
        for arguments in zip(*iterables, strict=False):
            yield arguments
        return
    iterators = [aiter(i) if hasattr(i, "__aiter__") else iter(i) for i in iterables]
    while True:
        row = []
        for iterator in iterators:
            try:
                row.append(await anext(iterator) if hasattr(iterator, "__anext__") else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(row)


__all__ = ["map", "wrap"]
