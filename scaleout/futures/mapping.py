"""One `map` of an executor: its tasks' results by position, and the iterator that takes them in order."""

from __future__ import annotations

import time
from _thread import allocate_lock
from concurrent.futures import _base
from itertools import islice

from scaleout._runtime.session import CALL_ARGS, STARMAP_ITEMS, Profile, outcome
from scaleout.futures.failures import exception_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from collections.abc import Callable, Iterator

    from scaleout.futures.crew import Crew


class MapCall:
    """The sink of the tasks of one `map`. There is one consumer, as a generator cannot be run by two threads at once."""

    def __init__(
        self, crew: Crew, fn: Callable[..., Any], items: Iterator[Any], chunksize: int, limited: Any, shares: bool
    ) -> None:
        self._crew = crew
        self._items: Iterator[Any] | None = items
        self._chunksize = chunksize
        self._submitted = 0
        self._outcomes: dict[int, tuple[int, Any]] = {}
        self._wanted = 0
        self._lock: Any = None  # the consumer's, while it waits for `_wanted`
        self._record: Any = None
        self._delivered = 0
        self.keeps: Any = None
        self._pickling_error: Exception | SystemExit | None = None
        group = self._group = crew.group
        try:
            self._record = group.prepare(fn)
        except (Exception, SystemExit) as error:  # each of its calls ends with it
            self._pickling_error = error
            return
        how = CALL_ARGS if chunksize == 1 else STARMAP_ITEMS
        profile = None if chunksize == 1 else Profile()
        self._batch = group.batch(self._record, how, self, profile, shares=shares, limited=limited)

    def submit(self, count: int | None) -> None:
        """Submit so many tasks more, or all there are. What the iterables raise, they raise here."""
        if self._items is None:
            return
        crew = self._crew
        try:
            for value in islice(self._tasks(self._items), count):
                if crew.size < crew.max_workers and self._submitted:
                    crew.need_worker()
                if self._pickling_error is not None:
                    self._group.fail(self, self._submitted, self._pickling_error)
                else:
                    self._batch.submit(self._submitted, value)
                self._submitted += 1
                del value
        except KeyboardInterrupt:
            self._items = None
            self._group.drop(self)
            raise
        finally:
            if count is None:
                self._items = None
                if self._pickling_error is None:
                    self._batch.end()
                self._release_if_over()

    def _tasks(self, items: Iterator[Any]) -> Iterator[Any]:
        if self._chunksize == 1:
            yield from items
            return
        while chunk := tuple(islice(items, self._chunksize)):
            yield chunk

    # -- the runtime's side ----------------------------------------------------------------------

    def deliver(self, index: int, status: int, payload: Any) -> None:
        crew = self._crew
        if status or crew.size < crew.max_workers:
            crew.delivered(status)
        self._outcomes[index] = (status, payload)
        self._delivered += 1
        if self._items is None:
            self._release_if_over()
        if index == self._wanted:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    # -- the consumer's side ---------------------------------------------------------------------

    def results(self, deadline: float | None, is_chunked: bool) -> Iterator[Any]:
        """The results in order; what is left is cancelled when the iterator ends early."""
        try:
            while self._wanted < self._submitted:
                if is_chunked:
                    values = self._take(deadline)
                    values.reverse()
                    while values:
                        yield values.pop()
                else:
                    yield self._take(deadline)
        finally:
            self._items = None
            if self._wanted < self._submitted:
                self._group.drop(self, interrupt=False)
            self._release_if_over()

    def _take(self, deadline: float | None) -> Any:
        """The next result; nothing here refers to it afterwards."""
        index = self._wanted
        if index not in self._outcomes:
            self._wait(index, deadline)
        status, payload = self._outcomes.pop(index)
        self._wanted = index + 1
        if self._items is not None:  # there is a buffersize: one is taken, so one more may be ahead
            self._crew.check()
            self.submit(1)
        success, value = outcome(status, payload)
        if success:
            return value
        raise exception_of(value, index * self._chunksize if self._chunksize > 1 else None)

    def _wait(self, index: int, deadline: float | None) -> None:
        self._group.check_process()
        lock = allocate_lock()
        lock.acquire()
        self._lock = lock
        try:
            if index not in self._outcomes:
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if not lock.acquire(True, left) and index not in self._outcomes:
                    raise _base.TimeoutError
        except KeyboardInterrupt:
            self._group.drop(self)
            raise
        finally:
            self._lock = None

    def _release_if_over(self) -> None:
        """Either thread: when the last task has ended, nobody needs the callable any more."""
        if self._delivered >= self._submitted:
            record = self.__dict__.pop("_record", None)
            if record is not None:
                self._group.finished(record)
