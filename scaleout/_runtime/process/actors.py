"""Actors in their workers: the calls of a plain one run in the main thread, like tasks; here is what the others need.

threads   the main thread reads, decodes in order, and hands each call to a pool of threads
async     the main thread runs an event loop, which also reads; each call of an `async def` method is a task of it
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Worker = Any  # process.worker's, which hosts what is here


def create_actor(worker: Worker, cls: Any, arguments: Any, how: int) -> None:
    """The constructor's call."""
    args, kwargs = arguments
    worker.context.actor = cls(*args, **kwargs)


def call_method(worker: Worker, name: str, arguments: Any, how: int) -> Any:
    args, kwargs = arguments
    return getattr(worker.context.actor, name)(*args, **kwargs)


def restore_actor(worker: Worker, name: str, arguments: Any, how: int) -> None:
    """Back to what was saved."""
    getattr(worker.context.actor, name)(arguments)


class Checkpoints:
    """Saves the actor after every so many calls, by its method `save_checkpoint`."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._calls = 0

    def called(self, worker: Worker) -> None:
        """A method has returned, and its result was sent."""
        self._calls += 1
        if self._calls < self._every:
            return
        self._calls = 0
        try:
            flag, body = worker.pack(worker.context.actor.save_checkpoint())
        except Exception:  # noqa: BLE001 - user code: the actor is none the worse, its log only goes on
            sys.excepthook(*sys.exc_info())
            return
        worker.send(frame(frames.CHECKPOINT, body, flag=flag))


class ThreadedActor:
    """Runs calls in threads, at most so many at once, begun in their order."""

    def __init__(self, worker: Worker, concurrency: int) -> None:
        self._worker = worker
        self._queue: deque[Any] = deque()
        self._ready = threading.Semaphore(0)
        for number in range(concurrency):
            threading.Thread(target=self._run, name=f"scaleout-actor-{number}", daemon=True).start()

    def start(self, sequence: int, run: Callable[[], tuple[int, bytes]]) -> None:
        self._queue.append((sequence, run))
        self._ready.release()

    def cancel(self, sequence: int) -> None:
        """A thread cannot be interrupted: what has begun goes on."""

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            sequence, run = self._queue.popleft()
            self._worker.answer(sequence, *run())
            del run
            self._worker.need_requests().report_released()


class AsyncActor:
    """The event loop of an actor with `async def` methods. It runs in the main thread for the rest of its life."""

    def __init__(self, worker: Worker, concurrency: int) -> None:
        import asyncio

        self._worker = worker
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        self._slots: Any = None
        self._tasks: dict[int, Any] = {}  # by the call's number
        self._is_tidy_armed = False
        self._taken: Any = None  # what generators wait for that are ahead of their consumers

    def run(self) -> None:
        """Read, and start what comes, until the owner is gone."""
        import asyncio

        asyncio.set_event_loop(self._loop)
        self._slots = asyncio.Semaphore(self._concurrency)
        requests = self._worker.need_requests()
        requests.on_work = self._wake
        requests.on_taken = self._wake
        self._loop.add_reader(self._worker.link.fileno(), self._read)
        self._loop.call_soon(self._work)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def _wake(self) -> None:
        """Any thread."""
        self._loop.call_soon_threadsafe(self._work)

    def _read(self) -> None:
        self._worker.need_requests().read_if_free()
        self._work()

    def _work(self) -> None:
        worker = self._worker
        if self._taken is not None:
            taken, self._taken = self._taken, None
            taken.set_result(None)
        while worker.queue:
            entry = worker.queue.popleft()
            if entry[0] == frames.TASK:
                worker.execute(*entry[1:])
            else:
                worker.obey(*entry)
        if worker.has_exit and not self._tasks:
            self._loop.stop()

    def start(self, sequence: int, run: Any) -> None:
        """`run` is a coroutine function that gives (status, body)."""
        task = self._loop.create_task(self._answer(sequence, run))
        self._tasks[sequence] = task
        task.add_done_callback(partial(self._done, sequence))

    def cancel(self, sequence: int) -> None:
        """Nobody wants the result of this call."""
        task = self._tasks.get(sequence)
        if task is not None:
            task.cancel()

    async def something_taken(self) -> None:
        """Until the consumer of some stream has gone on."""
        import asyncio

        if self._taken is None:
            self._taken = self._loop.create_future()
        await asyncio.shield(self._taken)

    def _done(self, sequence: int, task: Any) -> None:
        del self._tasks[sequence]
        requests = self._worker.need_requests()
        requests.report_released()
        if not self._tasks and not self._is_tidy_armed and (requests.on_idle() or requests.held):
            self._is_tidy_armed = True
            self._loop.call_later(limits.HELD_IDLE_SECONDS, self._tidy)
        if self._worker.has_exit:
            self._work()

    def _tidy(self) -> None:
        """See `Requests.wait_for_work`."""
        self._is_tidy_armed = False
        if not self._tasks:
            gc.collect()
            requests = self._worker.need_requests()
            is_unsettled = requests.on_idle()
            requests.report_released()
            if is_unsettled:
                self._is_tidy_armed = True
                self._loop.call_later(limits.HELD_IDLE_SECONDS, self._tidy)

    async def _answer(self, sequence: int, run: Any) -> None:
        import asyncio

        try:
            async with self._slots:
                status, body = await run()
        except asyncio.CancelledError as error:  # before it had begun
            status, body = self._worker.failed(error)
        self._worker.answer(sequence, status, body)
