"""Tasks that run again when they raise: `retry_exceptions`."""

from __future__ import annotations

import pickle
from functools import partial

from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.core.tasks import Task

    Owner = Any  # node.owner's, which is put together from this and others


class Retrying:
    """The sink of such a task: passes on everything but the failures that are retried.

    `kinds`: True for all exceptions, or classes; pickled, if a worker has named them.
    """

    keeps_objects = True

    def __init__(self, owner: Owner, task: Task, kinds: Any, timeout_s: float | None) -> None:
        self._owner = owner
        self._sink = task.sink
        self._kinds = kinds
        self._timeout_s = timeout_s
        self._left = task.group.core.max_retries if task.max_retries is None else task.max_retries
        self._payload = task.stored
        if task.stored is not None:
            owner.objects.hold(task.stored)
        self._task: Task | None = task  # None: it has ended

    @property
    def id(self) -> int:
        return int(getattr(self._sink, "id", 0))

    @property
    def contained(self) -> Any:
        return self._sink.contained

    @contained.setter
    def contained(self, entries: Any) -> None:
        self._sink.contained = entries

    def item(self, *arguments: Any) -> None:
        self._sink.item(*arguments)

    def deliver(self, index: int, status: int, payload: Any) -> None:
        if status == frames.TASK_RAISED and self._left > 0:
            self._owner.errands.put(partial(self._look, status, payload))
        else:
            self._end(status, payload)

    def _look(self, status: int, payload: Any) -> None:
        """On a thread for users' code: what was raised?"""
        is_retried = False
        try:
            kinds = pickle.loads(self._kinds) if type(self._kinds) is bytes else self._kinds
            is_retried = kinds is True or isinstance(_loaded(payload[0]), kinds)
        except BaseException:  # noqa: BLE001 - the user's code: then it is none that is known
            pass
        self._owner.reactor.post(self._again if is_retried else partial(self._end, status, payload))

    def _again(self) -> None:
        if self._task is None:
            return  # it was cancelled in the meantime
        owner = self._owner
        self._left -= 1
        task = self._task.again(self)
        if task.stored is not None:
            owner.objects.hold_now(task.stored)
        self._task = task
        self._sink.source = task
        if self._timeout_s is not None:
            owner.canceller.limit(task, self._timeout_s)
        if task.envelope is not None:
            owner.clerk.submit(task)
        else:
            owner.clerk.enqueue_plain(task)

    def cancel(self) -> None:
        """Nobody wants it, and it is just being decided whether it runs again."""
        self._end(frames.CANCELLED, None)

    def _end(self, status: int, payload: Any) -> None:
        if self._task is None:
            return
        if self._payload is not None:
            self._owner.objects.drop(self._payload)
            self._payload = None
        self._task = None
        self._sink.deliver(0, status, payload)


def _loaded(pickled: Any) -> Any:
    """The exception of a failure; None if it could not be pickled."""
    if pickled is None:
        return None
    return pickle.loads(pickled) if type(pickled) is bytes else pickled.load()
