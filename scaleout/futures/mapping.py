"""One `map` of an executor: its tasks' results by position, and the iterator that takes them in order."""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock
from collections import deque
from concurrent.futures import _base
from functools import partial
from itertools import islice

from scaleout._runtime.session import CALL_ARGS, STARMAP_ITEMS, Profile, acquire_within, outcome
from scaleout.futures.failures import exception_of
from scaleout.futures.in_workers import run_chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from scaleout.futures.crew import Crew


class MapResults:
    """The sink of the tasks of one `map`. There is one consumer: two threads cannot run one generator at once."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._outcomes: dict[int, tuple[int, Any]] = {}
        self._delivered = 0
        self._wanted = 0
        self._lock: Any = None  # the consumer's, while it waits for `_wanted`
        self._record: Any = None
        self._submitted: int | None = None  # how many there are in all, once that is known

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """On the runtime's thread: a task has ended."""
        crew = self._crew
        if status or crew.size < crew.max_workers:
            crew.delivered(status)
        self._outcomes[index] = (status, payload)
        self._delivered += 1
        if self._delivered == self._submitted:
            self._release()
        if index == self._wanted:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def uses(self, record: Any) -> None:
        """The callable, which is released when the last task has ended."""
        self._record = record

    def all_submitted(self, count: int) -> None:
        self._submitted = count
        if self._delivered == count:
            self._release()

    def _release(self) -> None:
        record = self.__dict__.pop("_record", None)  # atomic: both threads may come here
        if record is not None:
            self._crew.group.finished(record)

    def take(self, index: int, deadline: float | None) -> tuple[int, Any]:
        """What became of a task, when it is there; nothing here refers to it afterwards."""
        outcomes = self._outcomes
        if index not in outcomes:
            self._wait(index, deadline)
        return outcomes.pop(index)

    def _wait(self, index: int, deadline: float | None) -> None:
        outcomes, group = self._outcomes, self._crew.group
        group.check_process()
        lock = allocate_lock()
        lock.acquire()
        self._wanted = index
        self._lock = lock
        try:
            if index not in outcomes:
                left = -1.0 if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
                if not acquire_within(lock, left) and index not in outcomes:
                    raise _base.TimeoutError
        except KeyboardInterrupt:
            group.drop(self)
            raise
        finally:
            self._lock = None


class MapCall:
    """The submitting side. `executor` is kept as long as there are calls to make yet, which is with a buffersize."""

    def __init__(
        self,
        executor: Any,
        fn: Callable[..., Any],
        items: Iterator[Any],
        chunksize: int,
        buffersize: int | None,
        limited: Any,
    ) -> None:
        crew = self._crew = executor._crew
        self._executor = executor if buffersize is not None else None
        self._items: Iterator[Any] = items
        self._chunksize = chunksize
        self._count = 0
        self._is_over = False
        self._results = MapResults(crew)
        self._batch: Any = None
        self._pickling_error: Exception | SystemExit | None = None
        group = self._group = crew.group
        try:
            record = group.prepare(fn)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what pickling raised: each of its calls ends with it
            self._pickling_error = error
        else:
            self._results.uses(record)
            how = CALL_ARGS if chunksize == 1 else STARMAP_ITEMS
            profile = None if chunksize == 1 else Profile()
            shares = buffersize is None
            self._batch = group.batch(record, how, self._results, profile, shares=shares, limited=limited)
        self.submit(buffersize)

    def submit(self, count: int | None) -> None:
        """Submit so many tasks more, or all there are. What the iterables raise, they raise here."""
        crew, batch = self._crew, self._batch
        wanted = None if count is None else self._count + count
        try:
            for value in islice(self._values(), count):
                if crew.size < crew.max_workers and self._count:
                    crew.need_worker()
                if batch is None:
                    self._group.fail(self._results, self._count, self._pickling_error)
                else:
                    batch.submit(self._count, value)
                self._count += 1
                del value
            if wanted is None or self._count < wanted:
                self._end()
        except BaseException as error:
            self._end()
            if isinstance(error, KeyboardInterrupt):
                self._group.drop(self._results)
            raise

    def _values(self) -> Iterator[Any]:
        if self._chunksize == 1:
            yield from self._items
            return
        while chunk := tuple(islice(self._items, self._chunksize)):
            yield chunk

    def _end(self) -> None:
        """No more will be submitted."""
        if not self._is_over:
            self._is_over = True
            self._items = iter(())
            self._executor = None
            if self._batch is not None:
                self._batch.end()
            self._results.all_submitted(self._count)

    def results(self, deadline: float | None) -> Iterator[Any]:
        """The results in order; what is left is cancelled when the iterator ends early."""
        index = 0
        try:
            while index < self._count:
                if self._chunksize == 1:
                    yield self._take(index, deadline)
                else:
                    values = self._take(index, deadline)
                    values.reverse()
                    while values:
                        yield values.pop()
                index += 1
        finally:
            self._end()
            if index < self._count:
                self._group.drop(self._results, interrupt=False)

    def _take(self, index: int, deadline: float | None) -> Any:
        status, payload = self._results.take(index, deadline)
        if not self._is_over:  # there is a buffersize: one is taken, so one more may be ahead
            self._crew.check()
            self.submit(1)
        success, value = outcome(status, payload)
        if success:
            return value
        raise exception_of(value, index * self._chunksize if self._chunksize > 1 else None)


def map_by_submit(
    executor: Any,
    fn: Callable[..., Any],
    items: Iterator[tuple[Any, ...]],
    chunksize: int,
    buffersize: int | None,
    deadline: float | None,
) -> Iterator[Any]:
    """`map` as the standard library makes it, for executors whose `submit` somebody has replaced to see each task, as
    tqdm does."""
    calls: Iterator[Any]
    if chunksize == 1:
        calls = (partial(executor.submit, fn, *args) for args in items)
    else:
        chunks = iter(lambda: list(islice(items, chunksize)), [])
        calls = (partial(executor.submit, run_chunk, fn, chunk) for chunk in chunks)
    futures = deque(call() for call in islice(calls, buffersize))

    def results() -> Iterator[Any]:
        try:
            while futures:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                result = futures.popleft().result(left)
                futures.extend(call() for call in islice(calls, 1))
                if not futures and executor._crew.has_workers:
                    _await_callbacks(executor._crew.group)
                yield from result if chunksize > 1 else (result,)
        finally:
            while futures:
                futures.popleft().cancel()

    return results()


CALLBACKS_WITHIN_S = 1.0
"""A callback that takes longer is no progress bar's."""


def _await_callbacks(group: Any) -> None:
    """Let those run that were due before now: whoever counts by them looks at the sum when the map is over."""
    done = allocate_lock()
    done.acquire()
    group.put_callback(done.release)
    done.acquire(True, CALLBACKS_WITHIN_S)
