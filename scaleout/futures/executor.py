"""`ScaleoutExecutor`: the arguments, methods and exceptions of both standard executors, as of CPython 3.14."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Executor

from scaleout._runtime.session import CALL_ARGS, CALL_ARGS_KWARGS, WorkerProcess, cpu_count
from scaleout.futures.crew import Crew
from scaleout.futures.future import ScaleoutFuture, new_future
from scaleout.futures.mapping import MapCall, map_by_submit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Limited = tuple[float | None, int | None] | None  # timeout_s, max_retries

MAX_WINDOWS_WORKERS = 61


class ScaleoutExecutor(Executor):
    """Runs calls in worker processes; the place of ThreadPoolExecutor or ProcessPoolExecutor.

    Arguments, all optional: `max_workers` (default: the CPUs; they start as they are needed), `mp_context` (accepted;
    workers are always started clean), `initializer` and `initargs` (run in each worker), `max_tasks_per_child`,
    `thread_name_prefix` (accepted; it may also stand second, as for ThreadPoolExecutor), and `max_retries`: how often a
    call is started again after the worker that ran it died (default: SCALEOUT_MAX_RETRIES, 3). So a call may run more
    than once; with 0 it runs at most once.

    >>> with ScaleoutExecutor(2) as executor:
    ...     executor.submit(pow, 2, 5).result(), list(executor.map(abs, [-1, 2, -3]))
    (32, [1, 2, 3])
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        thread_name_prefix: str = "",
        max_retries: int | None = None,
    ) -> None:
        if isinstance(mp_context, str):  # ThreadPoolExecutor's second argument
            thread_name_prefix, mp_context = mp_context, None
        has_no_size = max_workers is None
        if max_workers is None:
            max_workers = cpu_count()
            if sys.platform == "win32":
                max_workers = min(MAX_WINDOWS_WORKERS, max_workers)
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        elif sys.platform == "win32" and max_workers > MAX_WINDOWS_WORKERS:
            raise ValueError(f"max_workers must be <= {MAX_WINDOWS_WORKERS}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        _check_max_retries(max_retries)
        self._max_workers = max_workers
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._max_tasks_per_child = max_tasks_per_child
        self._thread_name_prefix = thread_name_prefix
        self._given_context = mp_context
        self._crew = Crew(max_workers, initializer, self._initargs, max_tasks_per_child, max_retries, has_no_size)

    # -- calls -------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ScaleoutFuture:
        """Start `fn(*args, **kwargs)` in a worker; its future. What pickling raises is an exception of the future."""
        return submit(self._crew, fn, args, kwargs, None)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """An iterator over `fn(*items)` for the items of the iterables, in order.

        `timeout`: seconds from this call on within which a result must be there, else `TimeoutError`. `chunksize`:
        items per task. `buffersize`: how many tasks are ahead of the consumer (default: all; 3.14).
        """
        if "submit" in self.__dict__ or type(self).submit is not ScaleoutExecutor.submit:
            return map_calls(self, fn, iterables, timeout, chunksize, buffersize, None, map_by_submit)
        return map_calls(self, fn, iterables, timeout, chunksize, buffersize, None)

    def options(self, *, timeout_s: float | None = None, max_retries: int | None = None) -> ExecutorView:
        """This executor with limits for each call that is made through what is returned.

        `timeout_s`: a call that has been running for so long ends with `TimeoutError`; its worker is killed, which no
        other call notices. The time runs from the start of the call in its worker. `max_retries`: as for the executor.

        >>> import time
        >>> with ScaleoutExecutor(1) as executor:
        ...     executor.options(timeout_s=0.05).submit(time.sleep, 60).exception()  # doctest: +ELLIPSIS
        TimeoutError('the call ran for more than 0.05 s; the worker (pid ...) that ran it was killed')
        """
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be None or a number greater than 0, not {timeout_s!r}")
        _check_max_retries(max_retries)
        return ExecutorView(self, timeout_s, max_retries)

    # -- the end -----------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. With `wait`, return when all are done and the workers have ended.

        With `cancel_futures`, what no worker has started is cancelled.
        """
        crew = self._crew
        crew.refuse()
        if cancel_futures and crew.has_workers:
            crew.group.cancel_pending()
        crew.close()
        if wait:
            crew.join()

    def terminate_workers(self) -> None:
        """Cancel what has not been started, send SIGTERM to the workers, and take no more calls (3.14).

        Calls that are running end with a `BrokenProcessPool`.
        """
        self._end_workers(is_kill=False)

    def kill_workers(self) -> None:
        """As `terminate_workers`, with SIGKILL (3.14)."""
        self._end_workers(is_kill=True)

    def _end_workers(self, is_kill: bool) -> None:
        crew = self._crew
        self.shutdown(wait=False, cancel_futures=True)
        if crew.has_workers:
            if is_kill:
                crew.group.kill_all()
            crew.group.terminate()

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None:
            crew.close()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if exc_type is KeyboardInterrupt and self._crew.has_workers:
            self._crew.group.drop_all()  # Ctrl-C: nobody waits for these
        self.shutdown(wait=True)

    # -- what programs look at ---------------------------------------------------------------------

    @property
    def _processes(self) -> dict[int, WorkerProcess]:
        """The worker processes by their pid."""
        group = self._crew.group
        if not self._crew.has_workers:
            return {}
        workers = [WorkerProcess(group, peer) for peer in group.serving_workers]
        return {worker.pid: worker for worker in workers if worker.pid is not None}

    @property
    def _broken(self) -> bool | str:
        """False, or why the executor takes no more calls."""
        return self._crew.broken

    @property
    def _shutdown(self) -> bool:
        return self._crew.is_shut_down

    _shutdown_thread = _shutdown

    @property
    def _mp_context(self) -> Any:
        if self._given_context is not None:
            return self._given_context
        from multiprocessing import get_context

        return get_context("spawn")

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}>"


class ExecutorView(Executor):
    """An executor whose calls have limits: see `ScaleoutExecutor.options`. Shutting it down shuts the executor down."""

    def __init__(self, executor: ScaleoutExecutor, timeout_s: float | None, max_retries: int | None) -> None:
        self._executor = executor
        self._max_workers = executor._max_workers
        self._limited = (timeout_s, max_retries)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ScaleoutFuture:
        """As the executor's, within the limits."""
        return submit(self._executor._crew, fn, args, kwargs, self._limited)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """As the executor's, each task (a chunk) within the limits."""
        return map_calls(self._executor, fn, iterables, timeout, chunksize, buffersize, self._limited)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


def submit(crew: Crew, fn: Callable[..., Any], args: Any, kwargs: Any, limited: Limited) -> ScaleoutFuture:
    if crew.refusal is not None:
        raise crew.refusal()
    if crew.size < crew.max_workers:
        crew.need_worker()
    group = crew.group
    future = new_future(ScaleoutFuture)
    future._crew = crew
    try:
        record = group.prepare(fn)
        if record.users:
            future._record = record
        if kwargs:
            task = group.task_of(record, CALL_ARGS_KWARGS, (args, kwargs), future)
        else:
            task = group.task_of(record, CALL_ARGS, args, future)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what pickling raised
        group.fail(future, 0, error)
        return future
    future._task = task
    if limited is not None:
        group.start_limited(task, limited)
        return future
    crew.submitted += 1
    future._call = call = group.direct_call(task)
    if call is None:
        group.start(task)
    elif not call.send(is_parked=True):
        future._call = None
        group.start(task)
    return future


def map_calls(
    executor: ScaleoutExecutor,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    limited: Limited,
    by_submit: Callable[..., Iterator[Any]] | None = None,
) -> Iterator[Any]:
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None:
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
    deadline = None if timeout is None else time.monotonic() + timeout
    items = zip(*iterables, strict=False)
    if by_submit is not None:
        return by_submit(executor, fn, items, chunksize, buffersize, deadline)
    crew = executor._crew
    crew.check()
    if crew.size < crew.max_workers:
        crew.need_worker()
    return MapCall(executor, fn, items, chunksize, buffersize, limited).results(deadline)


def _check_max_retries(max_retries: int | None) -> None:
    if max_retries is not None and (not isinstance(max_retries, int) or max_retries < 0):
        raise ValueError(f"max_retries must be None or an int of at least 0, not {max_retries!r}")
