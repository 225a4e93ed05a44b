"""What stands behind an executor and outlives it: the worker group, its size, and why it takes no more calls.

Futures and iterators hold the crew, never the executor. So an executor that is dropped finishes its calls, and then its
workers end. At the interpreter's exit every crew that is still there does the same, and is waited for; but if it is
Ctrl-C that ends the program, what is left is given up.
"""

from __future__ import annotations

import os
import sys
import threading

from scaleout._runtime.session import (
    GROUP_BROKEN,
    OK,
    RESULT_NOT_PICKLED,
    TASK_EXITED,
    TASK_RAISED,
    close_idle,
    default_session,
)
from scaleout.futures.elsewhere import HOLDS_SECONDS, Elsewhere
from scaleout.futures.in_workers import run_initializer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"
BROKEN = "A child process terminated abruptly, the process pool is not usable anymore"

FROM_WORKERS = frozenset({OK, TASK_RAISED, TASK_EXITED, RESULT_NOT_PICKLED})

_crews: dict[Crew, None] = {}  # those that have workers
_is_exiting = False


class Crew:
    """See the module's docstring."""

    def __init__(
        self,
        max_workers: int,
        initializer: Callable[..., Any] | None,
        initargs: Any,
        max_tasks_per_child: int | None,
        max_retries: int | None,
        follows_cluster: bool = False,
    ) -> None:
        self.max_workers = max_workers
        self._follows_cluster = follows_cluster
        self.size = 0
        self.group: Any = None
        self.elsewhere = Elsewhere()
        self.condition_patience_s = HOLDS_SECONDS  # until one is found that is never let go
        self.refusal: Callable[[], BaseException] | None = None
        self.broken: bool | str = False
        self.is_shut_down = False
        self._initializer = initializer
        self._initargs = initargs
        self._max_tasks_per_child = max_tasks_per_child
        self._max_retries = max_retries
        self._results = 0  # from workers, while there are fewer than there may be; the runtime's thread counts
        self._taken = 0  # of these, how many have stood for an idle worker
        self._lock = threading.RLock()
        self.submitted = 0  # roughly: threads may overtake one another
        self._submitted_when_awaited = 0

    def check(self) -> None:
        """Raise if no call can be made."""
        if self.refusal is not None:
            raise self.refusal()

    # -- growing -----------------------------------------------------------------------------------

    def need_worker(self) -> None:
        """A call is about to be made: start one worker more if there may be more and none is known to be idle."""
        with self._lock:
            if self.refusal is not None:
                raise self.refusal()
            if self._taken < self._results:
                self._taken += 1
            elif self.size < self.max_workers:
                if self.group is None:
                    self._open()
                else:
                    self.group.resize(self.size + 1)
                self.size += 1

    def _open(self) -> None:
        if _is_exiting:
            raise RuntimeError(AFTER_EXIT)
        initializer = self._initializer
        arguments: dict[str, Any] = {}
        if initializer is not None:
            arguments["initializer"] = run_initializer
            arguments["initargs"] = (initializer, self._initargs)
            arguments["initializer_failures"] = 1
        group = default_session().open_group(
            1,
            tasks_per_worker=self._max_tasks_per_child,
            max_retries=self._max_retries,
            **arguments,
        )
        if self._follows_cluster:
            group.follow_cluster(self._cluster_has)
        for crew in [crew for crew in list(_crews) if crew.group.has_ended]:
            _crews.pop(crew, None)
        self.group = group
        _crews[self] = None

    def _cluster_has(self, cpus: int) -> None:
        """On the runtime's thread: so many CPUs, from now on. If all workers that there might be had been needed, more
        are; else they start as they are needed."""
        are_all_there = self.size >= self.max_workers
        self.max_workers = cpus
        if are_all_there or self.size > cpus:
            self.size = cpus
            self.group.resize(cpus)

    def awaited(self) -> None:
        """A thread begins to wait for a call. If one call is made and awaited after the other, make them directly."""
        if self.submitted == self._submitted_when_awaited + 1:
            self.group.want_direct()
        self._submitted_when_awaited = self.submitted

    # -- what the runtime tells -------------------------------------------------------------------

    def delivered(self, status: int) -> None:
        """On the runtime's thread: a call has ended."""
        if self.size < self.max_workers and status in FROM_WORKERS:
            self._results += 1
        if status == GROUP_BROKEN and not self.broken:
            self.broken = BROKEN
            self.refusal = self._broken_error

    def _broken_error(self) -> BaseException:
        from concurrent.futures.process import BrokenProcessPool

        return BrokenProcessPool(self.broken)

    # -- the end ----------------------------------------------------------------------------------

    def refuse(self, message: str = AFTER_SHUTDOWN) -> None:
        """Take no more calls."""
        with self._lock:
            self.is_shut_down = True
            if self.refusal is None:
                self.refusal = lambda: RuntimeError(message)

    def close(self, message: str = AFTER_SHUTDOWN) -> None:
        """Take no more calls; the workers end when those that were made are done."""
        self.refuse(message)
        if self.has_workers:
            self.group.close()

    @property
    def has_workers(self) -> bool:
        """Whether there are workers here to be ended: they are another process's if this one was forked."""
        return self.group is not None and not self.group.has_ended and self.refusal is not _foreign

    def join(self) -> None:
        """Wait until the workers have ended."""
        group = self.group
        if group is not None and self.refusal is not _foreign:
            try:
                group.join()
            except KeyboardInterrupt:
                group.drop_all()
                raise
            _crews.pop(self, None)


def _finish_all() -> None:
    """At the interpreter's exit, before threads are no longer to be had: finish what was submitted."""
    global _is_exiting
    _is_exiting = True
    crews = list(_crews)
    is_interrupted = _is_ended_by_ctrl_c()
    for crew in crews:
        crew.close(AFTER_EXIT)
        if is_interrupted and crew.has_workers:
            crew.group.drop_all()
    for crew in crews:
        crew.join()
    close_idle()


def _is_ended_by_ctrl_c() -> bool:
    """Whether the exception that nobody caught is KeyboardInterrupt; at a prompt it may be one of long ago."""
    return isinstance(getattr(sys, "last_value", None), KeyboardInterrupt) and not hasattr(sys, "ps1")


def _after_fork_in_child() -> None:
    for crew in list(_crews):
        crew.refusal = _foreign
    _crews.clear()


def _foreign() -> BaseException:
    from scaleout.errors import ForeignSessionError

    return ForeignSessionError("this executor belongs to the process that was forked from; make a new one here")


threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork_in_child)
