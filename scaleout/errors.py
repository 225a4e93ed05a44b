"""Every exception that scaleout itself raises, as one small tree ordered by who must act.

All of them pickle with their attributes. Exceptions of the user's own code are never wrapped: a task that raises
ValueError raises ValueError where its result is asked for. The shims raise the standard library's own exceptions
wherever the module they stand for has one.
"""

from __future__ import annotations


class ScaleoutError(Exception):
    """Base of all errors below. `facts` become attributes."""

    def __init__(self, message: str = "", **facts: object) -> None:
        super().__init__(message)
        self.__dict__.update(facts)


class RemoteTraceback(Exception):
    """The cause of an exception that a task raised: its text is the traceback in the worker."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


# -- the caller must act --------------------------------------------------------------------------


class SettingsError(ScaleoutError, ValueError):
    """A SCALEOUT_* variable has a value that is not accepted."""


class ClusterError(ScaleoutError, ConnectionError):
    """A cluster cannot be started, joined or reached; the message says why, and what to do."""


class TaskUnpicklingError(ScaleoutError):
    """A worker could not rebuild the function or the arguments of a call; the original error is the cause."""


class ResultUnpicklingError(ScaleoutError):
    """A result reached the caller but could not be rebuilt there; the original error is the cause."""


class ResultPicklingError(ScaleoutError):
    """What a task returned or raised cannot be pickled, and why that is so cannot either."""


class InitializerError(ScaleoutError):
    """The initializer of a worker group failed in several workers in a row; no task of the group can run."""


class NestingLimitError(ScaleoutError):
    """Pools inside pools deeper than the limit: most likely a recursion without an end."""


class ProcessLimitError(ScaleoutError):
    """More worker processes at once than SCALEOUT_MAX_PROCESSES allows."""


class StoreFullError(ScaleoutError):
    """An object fits neither into the store's memory budget nor onto the disk it spills to."""


class SessionClosedError(ScaleoutError):
    """The session ended while, or before, this result was awaited."""


class CallInterruptedError(ScaleoutError):
    """The call was given up when Ctrl-C interrupted the wait for it; it will have no result."""


class ForeignSessionError(ScaleoutError):
    """The result belongs to the process that this one was forked from; only that process can wait for it."""


class GetTimeoutError(ScaleoutError, TimeoutError):
    """The value was not there within the timeout of `get`."""


class TaskTimeoutError(ScaleoutError, TimeoutError):
    """The task ran for longer than its `timeout_s`; the worker that ran it was killed."""


class TaskCancelledError(ScaleoutError):
    """The task was cancelled before it had a result."""


class InfeasibleError(ScaleoutError, ValueError):
    """The resources that were asked for are more than there are."""


# -- lost work, after retries ---------------------------------------------------------------------


class WorkerDiedError(ScaleoutError):
    """The worker that ran this item died, and so did every retry.

    Attributes: `attempts` (how often the item was started), `exitcode` (negative: minus the signal's number, None
    if unknown), `item_index` (position in the chunk or iterable of the item that was running, None for single calls).
    """

    attempts: int
    exitcode: int | None
    item_index: int | None


class OutOfMemoryError(WorkerDiedError):
    """The worker was killed for want of memory, and so were those of the retries.

    Attribute: `usage`, the bytes that each worker process held then, by pid; None if the system did the killing.
    """

    usage: dict[int, int] | None


class ActorDiedError(ScaleoutError):
    """The actor is dead: its constructor raised, its process died, it was killed, or it left.

    Attributes: `class_name`, `name` (empty if it has none), `is_restarting` (whether only this call is lost, and the
    actor is started again).
    """

    class_name: str
    name: str
    is_restarting: bool = False


class ObjectLostError(ScaleoutError):
    """An object's bytes are gone or damaged and cannot be made again."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died."""


# -- a bug of ours --------------------------------------------------------------------------------


class InternalError(ScaleoutError):
    """scaleout broke a rule of its own; please report it with the message."""
