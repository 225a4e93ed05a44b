"""The workers of one `Parallel` call.

    submit (joblib's thread) --> worker --> arrival (the runtime's thread) --> joblib's callback (the callback thread)

joblib's callback takes the results, pulls the user's iterator on and submits the next batch: all of that is the user's
code, which never runs on the runtime's own thread.
"""

from __future__ import annotations

import weakref
from _thread import allocate_lock
from collections import deque

from scaleout._runtime.session import CALL_ITEM, GROUP_BROKEN, SESSION_CLOSED, Profile, acquire_within, this_process
from scaleout.errors import ForeignSessionError
from scaleout.joblib_backend.batches import SubmittedBatch, run_batch
from scaleout.joblib_backend.warm import groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout.joblib_backend.recipe import Recipe


KEPT_CALLS_PER_JOB = 2
"""As many calls per worker joblib has under way by default: what is shared takes at most twice the memory of those."""


class Workers:
    """See the module's docstring.

    `waiting_batches()` are those that joblib has made and not submitted yet. `callback_failed(callback, error)` is told
    what escapes one of joblib's callbacks.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_jobs: int,
        waiting_batches: Callable[[], Iterable[Any]],
        callback_failed: Callable[[Any, BaseException], None],
    ) -> None:
        self._warm = groups.take(recipe, n_jobs)
        self._lease = self._warm.lease
        self._group = self._warm.group
        self._waiting_batches = waiting_batches
        self._callback_failed = callback_failed
        self._record = self._group.prepare(run_batch)
        self._profile = Profile()
        self._buffers = self._group.compared_buffers(KEPT_CALLS_PER_JOB * n_jobs)
        self._contemporaries: list[Any] = []
        self._moment = object()
        self._pid = this_process.pid
        self._submitted = 0  # counted by the threads that submit, of which joblib lets in one at a time
        self._called_back = 0  # counted by the callback thread
        self._arrived: deque[SubmittedBatch] = deque()
        self._is_drain_asked = False
        self._is_over = False
        self._is_dropped = False
        self._is_spoilt = False
        self._has_failed = False
        self._waiting: tuple[Any, bool] | None = None  # the lock of a thread in `wait`, and whether for all

    def submit(self, batch: Callable[[], Any], callback: Callable[[SubmittedBatch], None] | None) -> SubmittedBatch:
        """Start a batch. `callback` is called with what is returned here, when it has ended."""
        if self._pid != this_process.pid:
            raise ForeignSessionError("this Parallel belongs to the process that was forked from; make a new one here")
        submitted = SubmittedBatch(callback, self._batch_arrived)
        self._submitted += 1
        self._buffers.next_call(self._moment_of(batch))
        try:
            self._group.submit(self._record, CALL_ITEM, batch, submitted, 0, self._profile, self._buffers.place_of)
        except SystemExit as error:  # of a reducer of the user's
            self._group.fail(submitted, 0, error)
        if self._is_over:  # another thread has aborted the call in the meantime, and may not have seen this batch
            self._group.drop(submitted)
        return submitted

    def _moment_of(self, batch: Any) -> object:
        """The same for batches that joblib made before it submitted the first of them."""
        if all(reference() is not batch for reference in self._contemporaries):
            self._contemporaries = [weakref.ref(other) for other in self._waiting_batches()]
            self._moment = object()
        return self._moment

    def _batch_arrived(self, submitted: SubmittedBatch, status: int) -> None:
        """On the runtime's thread."""
        if status in (GROUP_BROKEN, SESSION_CLOSED):
            self._is_spoilt = True
        if self._is_over:
            return
        self._arrived.append(submitted)
        if not self._is_drain_asked:
            self._is_drain_asked = True
            self._group.put_callback(self._call_back)

    def _call_back(self) -> None:
        """On the callback thread. The mark goes first: what arrives from now on asks again."""
        self._is_drain_asked = False
        arrived = self._arrived
        for _ in range(len(arrived)):
            submitted = arrived.popleft()
            callback, submitted.callback = submitted.callback, None
            if callback is not None and not self._is_over:
                try:
                    callback(submitted)
                except BaseException as error:  # noqa: BLE001 - the user's iterator, or output that is closed
                    submitted.has_failed = True
                    if not self._is_over:
                        self._callback_failed(callback, error)
            self._called_back += 1
            self._has_failed = self._has_failed or submitted.has_failed
            waiting = self._waiting
            if waiting is not None and self._has_come(waiting[1]):
                self._waiting = None
                waiting[0].release()

    def wait(self, for_all: bool, timeout_s: float = -1) -> None:
        """Until a batch has been called back, or all that were submitted, or one that failed."""
        lock = allocate_lock()
        lock.acquire()
        self._waiting = (lock, for_all)
        if not self._has_come(for_all):
            acquire_within(lock, timeout_s)
        self._waiting = None

    def _has_come(self, for_all: bool) -> bool:
        return self._has_failed or self._called_back >= (self._submitted if for_all else 1)

    def abort(self) -> bool:
        """Nobody wants the results any more. Workers that run something of it are killed, the others stay. False if
        they are not this call's any more: the interpreter exits, and modules may be gone."""
        self._is_over = True
        is_here = self._warm.lease is self._lease
        if is_here:
            self._group.drop_all(kill=True)
        self._is_dropped = True
        return is_here

    def release(self, idle_timeout_s: float) -> None:
        """The call is over. May be called again, by whom an exception struck in the midst of it."""
        if self._warm.lease is not self._lease:
            return  # the group is another call's, or it has ended, as the interpreter exits
        if not self._is_dropped and self._called_back < self._submitted:
            self.abort()
        self._is_over = True
        self._buffers.release()
        groups.give_back(self._warm, self._lease, idle_timeout_s, self._is_spoilt)
