"""The joblib backend "scaleout": what joblib asks of a backend, as its own backend of processes (loky) answers it.

Follows joblib 1.6. Where it does otherwise than loky, `docs/joblib.md` says so.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import warnings
from multiprocessing import current_process

import joblib.parallel
from joblib.parallel import (
    AutoBatchingMixin,
    BatchCompletionCallBack,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from scaleout._runtime.session import cpu_count, is_inline
from scaleout.joblib_backend.recipe import Recipe, thread_limits
from scaleout.joblib_backend.warm import IDLE_TIMEOUT_S
from scaleout.joblib_backend.workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from scaleout.joblib_backend.batches import SubmittedBatch

NAME = "scaleout"

JOBLIB_LOOKS_EVERY_S = 0.01

_claiming = threading.Lock()


class ScaleoutBackend(AutoBatchingMixin, ParallelBackendBase):
    """See `scaleout.joblib_backend`. Takes, as arguments of `parallel_config` or of `Parallel`:

    `initializer` and `initargs` (run in each worker when it starts), `idle_worker_timeout` (for how many seconds idle
    workers are kept for the next call, default 300), `max_retries` (how often a batch is started again after its worker
    died, default SCALEOUT_MAX_RETRIES), and of `parallel_config` alone `inner_max_num_threads`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    # A tenth of what joblib has for other backends: handing a batch over costs a fraction of it here, and the shorter
    # the batches, the less one worker has to do at the end while the others have nothing left.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.2

    _workers: Workers | None = None
    _user: Any = None  # the Parallel that has this instance, from `configure` to `terminate`

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **arguments: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **arguments)
        self.parallel: Any = None
        self._idle_timeout_s = IDLE_TIMEOUT_S

    def __reduce__(self) -> Any:
        return _looked_up, (self.nesting_level, self.inner_max_num_threads, self.backend_kwargs)

    # -- the life of a Parallel call -----------------------------------------------------------------

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **arguments: Any,
    ) -> int:
        """Have workers ready for `parallel`; how many."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        with _claiming:
            is_taken = self._user is not None and self._user is not parallel
            if not is_taken:
                self._user = parallel
        if is_taken:
            # One instance serves all of a `parallel_config`; joblib does not say which call it means afterwards.
            other = _looked_up(self.nesting_level, self.inner_max_num_threads, self.backend_kwargs)
            raise FallbackToBackend(other)
        self.parallel = parallel
        try:
            self._end_workers()
            self._start_workers(n_jobs, **{**self.backend_kwargs, **arguments})
        except BaseException:
            self._user = None
            raise
        return n_jobs

    def _start_workers(
        self,
        n_jobs: int,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        idle_worker_timeout: float | None = None,
        max_retries: int | None = None,
        **of_loky: Any,
    ) -> None:
        """What is left, memory maps above all, has no meaning here; like loky, this ignores what it does not know."""
        if "timeout" in of_loky:
            raise ValueError("the parameter 'timeout' is not supported: idle_worker_timeout says what it said")
        self._idle_timeout_s = IDLE_TIMEOUT_S if idle_worker_timeout is None else idle_worker_timeout
        limits = thread_limits(n_jobs, self.inner_max_num_threads)
        recipe = Recipe(initializer, initargs, limits, max_retries)
        self._workers = Workers(recipe, n_jobs, self._waiting_batches, _end_parallel)

    def terminate(self) -> None:
        """The call is over; its workers wait for the next one."""
        self._end_workers()
        self.reset_batch_stats()
        self._user = None

    def _end_workers(self) -> None:
        workers = self._workers
        if workers is not None:
            workers.release(self._idle_timeout_s)
            self._workers = None  # last: if an exception strikes before, we come here again

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """The call has failed, or nobody wants its results."""
        is_here = self._workers is not None and self._workers.abort()
        self._end_workers()
        if is_here and hasattr(self.parallel, "_ready_batches"):
            # Else joblib 1.6 runs them as part of the next call of the same Parallel. Not emptied but replaced: if
            # Ctrl-C struck within a method of the queue, its lock may be locked for ever.
            self.parallel._ready_batches = queue.Queue()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)

    # -- batches -------------------------------------------------------------------------------------

    def submit(
        self, func: Callable[[], Any], callback: Callable[[SubmittedBatch], None] | None = None
    ) -> SubmittedBatch:
        """Start a batch."""
        assert self._workers is not None
        return self._workers.submit(func, callback)

    apply_async = submit  # before joblib 1.5

    def _waiting_batches(self) -> list[Any]:
        """What joblib has cut from the user's iterator together with the batch that it submits now."""
        ready = getattr(self.parallel, "_ready_batches", None)
        return list(ready.queue) if ready is not None else []

    def retrieve_result_callback(self, out: SubmittedBatch) -> Any:
        """The results of a batch; raises what its first failing call raised."""
        return out.result()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Around the loop in which joblib looks for results, every 10 ms. A list is waited for before it is entered;
        who wants one result at a time, or within a time, gets into it at the first result."""
        workers, parallel = self._workers, self.parallel
        if workers is not None:
            if parallel.return_generator or parallel.timeout is not None:
                workers.wait(for_all=False, timeout_s=JOBLIB_LOOKS_EVERY_S)
            else:
                workers.wait(for_all=True)
        yield

    # -- how many ------------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers there will be; 1 means none: the calls then run one by one in the calling thread."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or joblib.parallel.mp is None or is_inline():  # JOBLIB_MULTIPROCESSING=0, SCALEOUT_INLINE=1
            return 1
        if current_process().daemon:
            if n_jobs != 1:
                warnings.warn(
                    "scaleout-backed parallel loops cannot be called in a daemonic process, setting n_jobs=1",
                    stacklevel=3,
                )
            return 1
        if n_jobs < 0:
            return max(cpu_count() + 1 + n_jobs, 1)
        return n_jobs


def _looked_up(
    nesting_level: int | None, inner_max_num_threads: int | None, arguments: dict[str, Any]
) -> ParallelBackendBase:
    """The backend that goes by our name here: what a pickled one becomes elsewhere."""
    return joblib.parallel.BACKENDS[NAME](
        nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **arguments
    )


def _end_parallel(callback: Any, error: BaseException) -> None:
    """Something escaped joblib's callback, on which the whole call depends: let the call end with it, as with an
    exception of the user's iterator, which joblib itself enters in this way."""
    parallel = callback.parallel
    tracker = BatchCompletionCallBack(0, 1, parallel)
    parallel._register_new_job(tracker)
    tracker._register_outcome({"result": error, "status": joblib.parallel.TASK_ERROR})
