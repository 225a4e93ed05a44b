"""From what the runtime reports of a failed call to the exception that an executor's future has."""

from __future__ import annotations

from concurrent.futures import _base

from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.session import Failure


class ExecutorExceptions(session.Exceptions):
    """Those of `scaleout.futures.errors`, which are BrokenProcessPool too."""

    terminated = "the executor's workers were terminated before this call had a result"
    initializer_failed = "a worker of the executor ended, as its initializer failed"

    def __init__(self) -> None:
        super().__init__()
        self.makers[session.TASK_EXITED] = self.raised
        self.makers[session.RESULT_NOT_PICKLED] = self.result_not_pickled
        self.makers[session.TIMED_OUT] = self.timed_out
        self.makers[session.CANCELLED] = self.cancelled

    def classes(self) -> Any:
        from scaleout.futures import errors

        return errors

    def with_remote_traceback(self, error: BaseException, failure: Failure) -> BaseException:
        from concurrent.futures.process import _RemoteTraceback

        if failure.traceback:
            error.__cause__ = _RemoteTraceback(f'\n"""\n{failure.traceback}"""')  # type: ignore[arg-type]
        return error

    def result_not_pickled(self, failure: Failure, first_index: int | None) -> BaseException:
        if failure.error is not None:
            return self.with_remote_traceback(failure.error, failure)
        from pickle import PicklingError

        error = PicklingError(f"{failure.value_repr} could not be pickled: {failure.error_repr}")
        return self.with_remote_traceback(error, failure)

    def timed_out(self, failure: Failure, first_index: int | None) -> BaseException:
        item = "the call" if first_index is None else f"item {first_index}"
        facts = failure.facts
        return _base.TimeoutError(
            f"{item} ran for more than {facts['timeout_s']:g} s; the worker (pid {facts['pid']}) that ran it was killed"
        )

    def cancelled(self, failure: Failure, first_index: int | None) -> BaseException:
        return _base.CancelledError()


exception_of = ExecutorExceptions().exception_of
