"""What Pool's asynchronous methods return: AsyncResult, MapResult, IMapIterator. Behaviour of CPython 3.13.

All of them are sinks of the runtime: `deliver` is called on the runtime's thread and only notes what came. Unpickling
happens where the value is asked for, or on the callback thread if there is a callback. So a result becomes ready
only after its callback has returned, as in the standard library.

Waiting is one acquire of a lock of the waiter's own, put on a list *before* the last look at the state: whoever
completes the result releases all locks on the list, so no wake-up is lost and no lock is shared.
"""

from __future__ import annotations

import time
import types
from _thread import allocate_lock
from collections import deque

from scaleout._runtime.session import DROPPED, OK, Failure, acquire_within, outcome
from scaleout.errors import ForeignSessionError
from scaleout.multiprocessing.failures import exception_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class ApplyResult:
    """The result of `Pool.apply_async`; `AsyncResult` is another name for it."""

    _record: Any = None
    _is_ready = False
    _raw: Any = None
    _settled: tuple[bool, Any] | None = None
    _waiters: Any = ()  # a list of its own as soon as somebody waits: most results are there when they are asked for

    def __init__(self, pool: Any, callback: Callable[[Any], Any] | None, error_callback: Any) -> None:
        self._pool: Any | None = pool
        self._group = pool._group
        self._callback = callback
        self._error_callback = error_callback
        self._lock = allocate_lock()

    # -- the runtime's side ----------------------------------------------------------------------

    def deliver(self, index: int, status: int, payload: Any) -> None:
        self._raw = (status, payload)
        if self._callback is None and self._error_callback is None:
            self._finish()
        else:
            self._group.put_callback(self._call_back)

    def _finish(self) -> None:
        record, self._record = self._record, None
        if record is not None and record.users:
            self._group.finished(record)
        self._is_ready = True
        self._pool = None
        waiters = self._waiters
        while waiters:
            waiters.pop().release()

    def _call_back(self) -> None:
        try:
            success, value = self._settle()
            callback = self._callback if success else self._error_callback
            self._callback = self._error_callback = None
            if callback is not None:
                callback(value)
        finally:
            self._finish()

    # -- the caller's side -----------------------------------------------------------------------

    def _settle(self) -> tuple[bool, Any]:
        """(success, value or exception); decoded at the first call."""
        with self._lock:
            if self._settled is None:
                try:
                    self._settled = self._decode(self._raw)
                except ForeignSessionError:
                    raise
                except BaseException:  # Ctrl-C while it was unpickled, of which half may be used up
                    self._settled = False, exception_of(Failure(DROPPED))
                    raise
                self._raw = None
            return self._settled

    def _decode(self, raw: Any) -> tuple[bool, Any]:
        found = outcome(*raw)
        return found if found[0] else (False, exception_of(found[1]))

    def ready(self) -> bool:
        """Whether the call has completed."""
        return self._is_ready

    def successful(self) -> bool:
        """Whether it completed without an exception; ValueError if it has not completed."""
        if not self._is_ready:
            raise ValueError(f"{self!r} not ready")
        return self._settle()[0]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is there or `timeout` seconds have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._is_ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._wait_once(left)

    def _wait_once(self, timeout: float | None) -> None:
        """Wait until something happens, at most `timeout` seconds."""
        self._group.check_process()
        lock = allocate_lock()
        lock.acquire()
        waiters = self.__dict__.setdefault("_waiters", [])  # one list, however many threads come at once
        try:
            waiters.append(lock)
            if not self._is_ready:
                acquire_within(lock, -1 if timeout is None else timeout)
        except KeyboardInterrupt:
            self._group.drop(self)
            raise
        finally:
            try:
                waiters.remove(lock)
            except ValueError:
                pass

    def get(self, timeout: float | None = None) -> Any:
        """The value, or the exception of the call raised; `multiprocessing.TimeoutError` after `timeout` seconds."""
        if not self._is_ready:
            self.wait(timeout)
            if not self._is_ready:
                from multiprocessing import TimeoutError

                raise TimeoutError
        success, value = self._settled or self._settle()
        if success:
            return value
        try:
            raise value
        finally:
            del value  # no cycle through the traceback

    __class_getitem__: Any = classmethod(types.GenericAlias)


AsyncResult = ApplyResult


class MapResult(ApplyResult):
    """The result of `Pool.map_async` and `starmap_async`: complete when every chunk is."""

    def __init__(self, pool: Any, chunksize: int, length: int, callback: Any, error_callback: Any) -> None:
        super().__init__(pool, callback, error_callback)
        self._chunksize = chunksize
        self._length = length
        self._chunks: deque[tuple[int, Any]] = deque()  # arrived, not yet unpickled
        self._values: dict[int, tuple[bool, Any]] = {}
        self._first_failure: Any = None
        self._left = 0
        if chunksize <= 0:
            self._settled = (True, [None] * length)
            self._callback = self._error_callback = None
            self._finish()
        else:
            self._left = -(-length // chunksize)

    def deliver(self, index: int, status: int, payload: Any) -> None:
        if status == OK:
            self._chunks.append((index, payload))
        elif self._first_failure is None:
            self._first_failure = (index, status, payload)
        self._left -= 1
        if self._left == 0:
            super().deliver(index, status, payload)
        else:
            waiters = self._waiters
            while waiters:
                waiters.pop().release()

    def get(self, timeout: float | None = None) -> Any:
        """The list of values, or the first exception raised. Chunks are unpickled as they come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._is_ready and self._callback is None:
                if self._chunks:
                    with self._lock:
                        self._decode_chunks()
                    continue
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._wait_once(left)
        except KeyboardInterrupt:
            self._group.drop(self)
            raise
        return super().get(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _decode_chunks(self) -> None:
        while self._chunks:
            index, payload = self._chunks[0]
            try:
                if index not in self._values:
                    self._values[index] = outcome(OK, payload)
            except BaseException:  # Ctrl-C: this chunk may be used up
                self._values.setdefault(index, (False, Failure(DROPPED)))
                raise
            self._chunks.popleft()

    def _decode(self, raw: Any) -> tuple[bool, Any]:
        self._decode_chunks()
        if self._first_failure is not None:
            index, status, payload = self._first_failure
            _, failure = outcome(status, payload)
            return False, exception_of(failure, index * self._chunksize)
        values: list[Any] = []
        for index in range(len(self._values)):
            success, value = self._values.pop(index)
            if not success:
                return False, exception_of(value, index * self._chunksize)
            values.extend(value)
        return True, values


class IMapIterator:
    """The results of `Pool.imap`, in order. `next(timeout)` raises `multiprocessing.TimeoutError`."""

    _feeder: Any = None
    _buffersize: int | None = None

    def __init__(self, pool: Any, record: Any, buffersize: int | None = None) -> None:
        self._pool: Any | None = pool
        self._group = pool._group
        self._record = record
        self._items: deque[tuple[int, int, Any]] = deque()
        self._waiters: list[Any] = []
        self._index = 0
        self._length: int | None = None
        self._feeder: Any = None
        self._buffersize = buffersize

    def __iter__(self) -> IMapIterator:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result; TimeoutError if it is not there within `timeout` seconds."""
        items = self._items
        try:
            index, status, payload = items.popleft()
        except IndexError:
            index, status, payload = self._wait_for_item(timeout)
        if self._feeder is not None:
            self._feeder.taken()
        success, value = outcome(status, payload)
        if success:
            return value
        raise exception_of(value, index)

    __next__ = next

    def _wait_for_item(self, timeout: float | None) -> tuple[int, int, Any]:
        items = self._items
        self._group.check_process()
        while True:
            lock = allocate_lock()
            lock.acquire()
            try:
                self._waiters.append(lock)
                if not items and self._index != self._length:
                    if not acquire_within(lock, -1 if timeout is None else max(0.0, timeout)) and not items:
                        from multiprocessing import TimeoutError

                        raise TimeoutError
            except KeyboardInterrupt:
                if self._feeder is not None:
                    self._feeder.stop()
                self._group.drop(self)
                raise
            finally:
                try:
                    self._waiters.remove(lock)
                except ValueError:
                    pass
            try:
                return items.popleft()
            except IndexError:
                if self._index == self._length:
                    self._pool = None
                    raise StopIteration from None

    # -- the runtime's side ----------------------------------------------------------------------

    def deliver(self, index: int, status: int, payload: Any) -> None:
        raise NotImplementedError

    def set_length(self, length: int) -> None:
        """On the runtime's thread: that many results will have come in all."""
        self._length = length
        self._progress()

    def _progress(self) -> None:
        if self._index == self._length:
            self._pool = None
            record, self._record = self._record, None
            if record is not None:
                self._group.finished(record)
        waiters = self._waiters
        while waiters:
            waiters.pop().release()

    def __del__(self) -> None:
        if self._feeder is not None and self._buffersize is not None:
            self._feeder.stop()


class _Ordered(IMapIterator):
    def __init__(self, pool: Any, record: Any, buffersize: int | None = None) -> None:
        super().__init__(pool, record, buffersize)
        self._early: dict[int, tuple[int, int, Any]] = {}

    def deliver(self, index: int, status: int, payload: Any) -> None:
        if index != self._index:
            self._early[index] = (index, status, payload)
            return
        self._items.append((index, status, payload))
        self._index += 1
        while self._index in self._early:
            self._items.append(self._early.pop(self._index))
            self._index += 1
        if self._waiters or self._index == self._length:
            self._progress()


class IMapUnorderedIterator(IMapIterator):
    """The results of `Pool.imap_unordered`, as they come."""

    def deliver(self, index: int, status: int, payload: Any) -> None:
        self._items.append((index, status, payload))
        self._index += 1
        if self._waiters or self._index == self._length:
            self._progress()


__all__ = ["ApplyResult", "AsyncResult", "Failure", "IMapIterator", "IMapUnorderedIterator", "MapResult"]
