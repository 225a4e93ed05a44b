"""From a failed task to the exception that `scaleout.get` raises for it."""

from __future__ import annotations

from scaleout import errors
from scaleout._runtime.client.exceptions import Exceptions
from scaleout._runtime.client.outcomes import outcome
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from scaleout._runtime.client.outcomes import Failure


class TaskExceptions(Exceptions):
    """The classes of `scaleout.errors`; a task's own exceptions come as they are, the remote traceback as cause."""

    terminated = "the session ended before this task had a result"
    initializer_failed = "no worker could be started"

    def __init__(self) -> None:
        super().__init__()
        self.makers[frames.TASK_EXITED] = self.exited
        self.makers[frames.RESULT_NOT_PICKLED] = self.result_not_pickled
        self.makers[frames.CANCELLED] = self.cancelled
        self.makers[frames.TIMED_OUT] = self.timed_out
        self.makers[frames.LOST] = self.lost
        self.makers[frames.ACTOR_DIED] = self.actor_died
        self.makers[frames.INFEASIBLE] = self.infeasible

    def with_remote_traceback(self, error: BaseException, failure: Failure) -> BaseException:
        if failure.traceback:
            error.__cause__ = errors.RemoteTraceback(failure.traceback)
        return error

    def exited(self, failure: Failure, first_index: int | None) -> BaseException:
        code = failure.code if failure.code is not None else 0
        error = errors.WorkerDiedError(
            f"the task raised SystemExit({code})", attempts=1, exitcode=code, item_index=None
        )
        return self.with_remote_traceback(error, failure)

    def result_not_pickled(self, failure: Failure, first_index: int | None) -> BaseException:
        error = failure.error or errors.ResultPicklingError(
            f"{failure.value_repr} could not be pickled: {failure.error_repr}"
        )
        return self.with_remote_traceback(error, failure)

    def cancelled(self, failure: Failure, first_index: int | None) -> BaseException:
        return errors.TaskCancelledError("the task was cancelled")

    def timed_out(self, failure: Failure, first_index: int | None) -> BaseException:
        limit_s, label = failure.facts["timeout_s"], failure.facts["label"] or "the task"
        return errors.TaskTimeoutError(f"{label} ran for longer than its timeout_s of {limit_s:g} s, and was killed")

    def lost(self, failure: Failure, first_index: int | None) -> BaseException:
        return errors.ObjectLostError(
            "the object is gone: nothing that scaleout knows of referred to it any more. A reference that was pickled "
            "by hand, or passed to a Pool or an executor, does not keep its object"
        )

    def infeasible(self, failure: Failure, first_index: int | None) -> BaseException:
        return errors.InfeasibleError(failure.facts["message"])

    def actor_died(self, failure: Failure, first_index: int | None) -> BaseException:
        facts = failure.facts
        error = errors.ActorDiedError(
            facts["message"], class_name=facts["class"], name=facts["name"], is_restarting=facts["is_restarting"]
        )
        if facts["cause"] is not None:
            cause = outcome(frames.TASK_RAISED, facts["cause"])[1]
            if cause.error is not None:
                error.__cause__ = self.with_remote_traceback(cause.error, cause)
            else:
                error.__cause__ = errors.RemoteTraceback(cause.traceback)
        return error


task_exceptions = TaskExceptions()
