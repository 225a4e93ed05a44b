"""From what the runtime reports of a failed batch to the exception that ends the `Parallel` call."""

from __future__ import annotations

from pickle import PicklingError

from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.session import Failure


class JoblibExceptions(session.Exceptions):
    """Those of `scaleout.joblib_backend.errors`, which are loky's BrokenProcessPool too."""

    initializer_failed = "a worker ended, as its initializer failed"

    def __init__(self) -> None:
        super().__init__()
        self.makers[session.TASK_EXITED] = self.raised
        self.makers[session.RESULT_NOT_PICKLED] = self.result_not_pickled

    def classes(self) -> Any:
        from scaleout.joblib_backend import errors  # loky, which needs not be there while nothing goes wrong

        return errors

    def with_remote_traceback(self, error: BaseException, failure: Failure) -> BaseException:
        from concurrent.futures.process import _RemoteTraceback

        if failure.traceback:
            error.__cause__ = _RemoteTraceback(f'\n"""\n{failure.traceback}"""')  # type: ignore[arg-type]
        return error

    def result_not_pickled(self, failure: Failure, first_index: int | None) -> BaseException:
        error = failure.error or PicklingError(f"{failure.value_repr} could not be pickled: {failure.error_repr}")
        return self.with_remote_traceback(error, failure)


exception_of = JoblibExceptions().exception_of
