"""A queue between tasks, actors and the driver: `queue.Queue`'s interface over an actor."""

from __future__ import annotations

import queue

from scaleout import actors, api, remoting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

Empty = queue.Empty
Full = queue.Full


class Queue:
    """A first-in, first-out queue that may be passed to tasks and actors; items are pickled.

    `put`, `get`, `qsize`, `empty`, `full` and the `_nowait` twins are those of the standard library's `queue.Queue`,
    and raise its `Empty` and `Full`. `put_async` and `get_async` are for coroutines; `put_nowait_batch` and
    `get_nowait_batch` move several items at once, all or none. `actor_options` are those of the actor behind it.

    >>> from scaleout.util import Queue
    >>> queue = Queue(maxsize=10)
    >>> queue.put("first")
    >>> queue.get()
    'first'
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor = remoting.remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __reduce__(self) -> Any:
        return _of_actor, (self.maxsize, self.actor)

    def __len__(self) -> int:
        return self.qsize()

    def qsize(self) -> int:
        """How many items are in it."""
        return api.get(self.actor.qsize.remote())

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        return 0 < self.maxsize <= self.qsize()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item in; waits for room, at most `timeout` seconds. `Full` if there is none."""
        if not api.get(self.actor.put.remote(item, _limit(block, timeout))):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item out; waits for one, at most `timeout` seconds. `Empty` if there is none."""
        found = api.get(self.actor.get.remote(_limit(block, timeout)))
        if not found:
            raise Empty
        return found[0]

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put` for coroutines."""
        if not await self.actor.put.remote(item, _limit(block, timeout)):
            raise Full

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get` for coroutines."""
        found = await self.actor.get.remote(_limit(block, timeout))
        if not found:
            raise Empty
        return found[0]

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """All items, or none and `Full`."""
        batch = list(items)
        if not api.get(self.actor.put_batch.remote(batch)):
            raise Full(f"there is no room for {len(batch)} items")

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """So many items, or none and `Empty`."""
        if not isinstance(num_items, int) or num_items < 0:
            raise ValueError(f"num_items is a number of items, not {num_items!r}")
        found = api.get(self.actor.get_batch.remote(num_items))
        if found is None:
            raise Empty(f"there are fewer than {num_items} items")
        return found

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue; what is in it is lost. With `force`, also what is under way."""
        if not force:
            ended = self.actor.qsize.remote()
            api.wait([ended], timeout=grace_period_s)
        actors.kill(self.actor)


def _limit(block: bool, timeout: float | None) -> float | None:
    if not block:
        return 0.0
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


def _of_actor(maxsize: int, actor: Any) -> Queue:
    found = Queue.__new__(Queue)
    found.maxsize = maxsize
    found.actor = actor
    return found


class _QueueActor:
    """The items, in an event loop, so that those who wait cost nothing."""

    def __init__(self, maxsize: int) -> None:
        import asyncio

        self._queue: Any = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def put(self, item: Any, limit_s: float | None) -> bool:
        import asyncio

        if limit_s == 0.0:
            try:
                self._queue.put_nowait(item)
            except asyncio.QueueFull:
                return False
            return True
        try:
            await asyncio.wait_for(self._queue.put(item), limit_s)
        except (asyncio.TimeoutError, TimeoutError):
            return False
        return True

    async def get(self, limit_s: float | None) -> tuple[Any, ...]:
        import asyncio

        if limit_s == 0.0:
            try:
                return (self._queue.get_nowait(),)
            except asyncio.QueueEmpty:
                return ()
        try:
            return (await asyncio.wait_for(self._queue.get(), limit_s),)
        except (asyncio.TimeoutError, TimeoutError):
            return ()

    async def put_batch(self, items: list[Any]) -> bool:
        maxsize = self._queue.maxsize
        if maxsize > 0 and self._queue.qsize() + len(items) > maxsize:
            return False
        for item in items:
            self._queue.put_nowait(item)
        return True

    async def get_batch(self, count: int) -> list[Any] | None:
        if self._queue.qsize() < count:
            return None
        return [self._queue.get_nowait() for _ in range(count)]
