"""`multiprocessing.pool` on scaleout: Pool with the methods, defaults and exceptions of CPython 3.13.

What it adds: functions need not be importable, a worker's death costs a retry instead of a hang, large arrays cross
through shared memory, `imap(..., buffersize=)` of 3.15, and `max_retries`.
"""

from __future__ import annotations

import sys
import warnings
from _thread import get_ident
from functools import partial

from scaleout._runtime.session import (
    CALL_ARGS,
    CALL_ARGS_KWARGS,
    CALL_ITEM,
    EAGER_ITEMS,
    FEED_TASKS,
    MAP_ITEMS,
    STARMAP_ITEMS,
    Profile,
    cpu_count,
    default_session,
    outcome,
    this_process,
)
from scaleout.multiprocessing.failures import exception_of
from scaleout.multiprocessing.feeder import Feeder, chunks_of
from scaleout.multiprocessing.results import (
    ApplyResult,
    AsyncResult,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
    _Ordered,
)
from scaleout.multiprocessing.workers import PoolWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"


class Pool:
    """A group of worker processes that run calls.

    Arguments: those of `multiprocessing.Pool`, and `max_retries`, how often an item is started again after the
    worker that ran it died (default: SCALEOUT_MAX_RETRIES, 3). So an item may run more than once; with 0 it runs at
    most once.

    >>> with Pool(2) as pool:
    ...     pool.map(abs, [-1, 2, -3])
    [1, 2, 3]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        max_retries: int | None = None,
    ) -> None:
        self._state = INIT
        self._pid = this_process.pid
        has_no_size = processes is None
        if processes is None:
            processes = cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_retries is not None and (not isinstance(max_retries, int) or max_retries < 0):
            raise ValueError(f"max_retries must be None or an int of at least 0, not {max_retries!r}")
        self._ctx = context
        self._processes = processes
        self._initializer = initializer
        self._initargs = initargs
        self._maxtasksperchild = maxtasksperchild
        self._feeders: list[Feeder] = []
        self._last_caller = 0  # the thread that made the last call of `apply`
        self._group = default_session().open_group(
            processes,
            initializer=initializer,
            initargs=initargs,
            tasks_per_worker=maxtasksperchild,
            max_retries=max_retries,
            takes_nameless=False,  # as the standard library, and its test suite
        )
        if has_no_size:
            self._group.follow_cluster(self._group.resize)
        from multiprocessing import util

        self._at_exit = util.Finalize(None, _end_group, args=(self._group,), exitpriority=15)
        self._state = RUN

    # -- calls -----------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: dict[str, Any] = {}) -> Any:  # noqa: B006
        """`func(*args, **kwds)` in a worker; its value, or its exception raised."""
        self._check_running()
        group = self._group
        record = group.prepare(func)
        result = ApplyResult(self, None, None)
        result._record = record
        try:
            if kwds:
                task = group.task_of(record, CALL_ARGS_KWARGS, (args, kwds), result)
            else:
                task = group.task_of(record, CALL_ARGS, args, result)
        except BaseException:
            group.finished(record)
            raise
        call = group.direct_call(task)
        if call is not None and call.send(is_parked=False):
            answer = call.receive()
            if answer is not None:
                group.finished(record)
                success, value = outcome(*answer)
                if success:
                    return value
                try:
                    raise exception_of(value)
                finally:
                    del value
        else:
            caller = get_ident()
            group.want_direct(caller == self._last_caller)
            self._last_caller = caller
            group.start(task)
        return result.get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] = {},  # noqa: B006
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> ApplyResult:
        """Start `func(*args, **kwds)`. Exactly one of the callbacks is called, in a thread of the runtime's."""
        self._check_running()
        result = ApplyResult(self, callback, error_callback)
        group = self._group
        try:
            record = group.prepare(func)
        except Exception as error:
            group.fail(result, 0, error)
            return result
        result._record = record
        if kwds:
            group.submit(record, CALL_ARGS_KWARGS, (args, kwds), result, 0)
        else:
            group.submit(record, CALL_ARGS, args, result, 0)
        return result

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`[func(item) for item in iterable]`, run in chunks of `chunksize` items (default: four chunks a worker)."""
        result: list[Any] = self._map_async(func, iterable, MAP_ITEMS, chunksize).get()
        return result

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """`[func(*item) for item in iterable]`."""
        result: list[Any] = self._map_async(func, iterable, STARMAP_ITEMS, chunksize).get()
        return result

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """`map` that returns at once."""
        return self._map_async(func, iterable, MAP_ITEMS, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> MapResult:
        """`starmap` that returns at once."""
        return self._map_async(func, iterable, STARMAP_ITEMS, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        how: int,
        chunksize: int | None = None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> MapResult:
        self._check_running()
        items: Any = iterable if hasattr(iterable, "__len__") else list(iterable)
        length = len(items)
        if chunksize is None:
            chunksize, extra = divmod(length, self._processes * 4)
            if extra:
                chunksize += 1
        if length == 0:
            chunksize = 0
        result = MapResult(self, chunksize, length, callback, error_callback)
        if chunksize <= 0:
            return result
        group = self._group
        try:
            record = group.prepare(func)
        except Exception as error:
            for index in range(result._left):
                group.fail(result, index, error)
            return result
        result._record = record
        profile = Profile()
        count = result._left
        batch = group.batch(record, how, result, profile, shares=True)
        index = 0
        try:
            for chunk in chunks_of(items, chunksize):
                batch.submit(index, chunk)
                index += 1
        except Exception as error:  # the iterable's own
            group.fail(result, index, error)
            index += 1
        except BaseException:  # Ctrl-C: nobody will ever ask for what was submitted so far
            batch.end()
            group.drop(result)
            raise
        batch.end()
        for missing in range(index, count):  # a __len__ that promised more than there was
            group.fail(result, missing, RuntimeError(f"{type(items).__name__} ended before its len()"))
        return result

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, buffersize: int | None = None
    ) -> Iterator[Any]:
        """The results in order, as an iterator. `buffersize` bounds how many tasks are ahead of the consumer."""
        return self._imap(_Ordered, func, iterable, chunksize, buffersize)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, buffersize: int | None = None
    ) -> Iterator[Any]:
        """The results as they come, as an iterator."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, buffersize)

    def _imap(
        self,
        kind: type[IMapIterator],
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
    ) -> Iterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        group = self._group
        try:
            record = group.prepare(func)
        except Exception as error:
            result = kind(self, None)
            group.fail(result, 0, error)
            group.post(partial(result.set_length, 1))
            return result
        result = kind(self, record, buffersize)
        size = None if chunksize == 1 else chunksize
        how = CALL_ITEM if size is None else MAP_ITEMS
        submit = group.batch(record, how, result, Profile() if size else None, shares=False).submit
        if buffersize is None and type(iterable) in (list, tuple, range) and len(iterable) <= EAGER_ITEMS:  # type: ignore[arg-type]
            count = 0
            try:
                for chunk in chunks_of(iterable, size):
                    submit(count, chunk)
                    count += 1
            except BaseException:  # Ctrl-C: nobody will ever ask for what was submitted so far
                group.drop(result)
                raise
            group.post(partial(result.set_length, count))
        else:
            self._feed(result, iterable, size, submit, buffersize)
        if size is None:
            return result
        return (item for chunk in result for item in chunk)

    def _feed(
        self, result: IMapIterator, iterable: Iterable[Any], size: int | None, submit: Any, buffersize: int | None
    ) -> None:
        group = self._group

        def end(count: int, error: BaseException | None) -> None:
            if error is not None:
                group.fail(result, count, error)
                count += 1
            group.post(partial(result.set_length, count))
            if feeder.is_stopped:
                group.drop(result)  # also what was on its way here when it was stopped
            self._feeders.remove(feeder)
            if self._state == CLOSE and not self._feeders:
                group.close()

        feeder = Feeder(iterable, size, submit, end, buffersize or FEED_TASKS)
        result._feeder = feeder
        try:
            self._feeders.append(feeder)
            feeder.thread.start()
        except BaseException:  # Ctrl-C, or no thread is to be had
            feeder.stop()
            if feeder.thread.ident is None:
                if feeder in self._feeders:
                    self._feeders.remove(feeder)
                feeder.give_up()
            raise

    # -- state -----------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._pid != this_process.pid:
            from scaleout.errors import ForeignSessionError

            raise ForeignSessionError("this Pool belongs to the process that was forked from; make a new one here")

    @property
    def _pool(self) -> list[PoolWorker]:
        """The worker processes, as other libraries expect to find them."""
        if self._state == INIT:
            return []
        return [PoolWorker(self._group, peer) for peer in self._group.workers]

    def _repopulate_pool(self) -> None:
        """Replacing workers needs no help; here because programs call it."""

    def close(self) -> None:
        """No more calls; the workers end when those that were made are done."""
        if self._state in (RUN, CLOSE):  # again if Ctrl-C came in between
            self._state = CLOSE
            if not self._feeders:
                self._group.close()

    def terminate(self) -> None:
        """Stop the workers at once. Results that are not there yet become SessionClosedError."""
        self._state = TERMINATE
        for feeder in list(self._feeders):
            feeder.stop()
        if self._pid == this_process.pid:
            self._group.terminate()
            try:
                self._group.join()
            except KeyboardInterrupt:  # another one: no time is left to those that do not end by themselves
                self._group.kill_all()
                raise
            self._at_exit.cancel()

    def join(self) -> None:
        """Wait until the workers have ended; ValueError before `close` or `terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        try:
            for feeder in list(self._feeders):
                feeder.join()
            if self._state == CLOSE:
                self._group.close()
            self._group.join()
        except KeyboardInterrupt:
            for feeder in list(self._feeders):
                feeder.stop()
            self._group.drop_all()
            raise
        self._at_exit.cancel()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.terminate()

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # Globals as defaults: this may run when the module's own are gone.
    def __del__(
        self,
        _warn: Any = warnings.warn,
        _run: str = RUN,
        _init: str = INIT,
        _process: Any = this_process,
        _is_finalizing: Any = sys.is_finalizing,
    ) -> None:
        group = getattr(self, "_group", None)
        if group is None or self._pid != _process.pid:
            return  # it never came to be, or belongs to the process that this one was forked from
        if not group.has_ended:
            group.terminate()
            if self._state != _init and not _is_finalizing():
                self._at_exit.cancel()
        if self._state == _run:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)


def _end_group(group: Any) -> None:
    """At the interpreter's exit: an open pool is terminated."""
    group.terminate()
    group.join()


def __getattr__(name: str) -> Any:
    """The names of `multiprocessing.pool` that are not ours: ThreadPool, RemoteTraceback, MaybeEncodingError, ..."""
    if name.startswith("__"):  # every `from ... import` asks for `__path__`, and that module takes as long as a Pool
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from multiprocessing import pool

    return getattr(pool, name)


__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool", "ThreadPool"]  # noqa: F822 - by __getattr__
