"""From what the runtime reports of a failed call to the exception that Pool raises for it."""

from __future__ import annotations

from scaleout import errors
from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from scaleout._runtime.session import Failure


class PoolExceptions(session.Exceptions):
    """The standard library's exceptions where multiprocessing has some."""

    terminated = "the pool was terminated before this call had a result"
    initializer_failed = "the pool's initializer failed in several workers in a row"
    initializer_died = "; the workers died without a message"

    def __init__(self) -> None:
        super().__init__()
        self.makers[session.TASK_EXITED] = self.exited
        self.makers[session.RESULT_NOT_PICKLED] = self.result_not_pickled

    def with_remote_traceback(self, error: BaseException, failure: Failure) -> BaseException:
        from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

        error.__cause__ = RemoteTraceback(f'\n"""\n{failure.traceback}"""')
        return error

    def exited(self, failure: Failure, first_index: int | None) -> BaseException:
        exitcode = 0 if failure.code is None else failure.code
        error = errors.WorkerDiedError(
            f"the call raised SystemExit({exitcode!r})", attempts=1, exitcode=exitcode, item_index=first_index
        )
        return self.with_remote_traceback(error, failure)

    def result_not_pickled(self, failure: Failure, first_index: int | None) -> BaseException:
        from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

        error = MaybeEncodingError(_Shown(failure.error_repr), _Shown(failure.value_repr))
        if failure.error is not None:
            error.__cause__ = self.with_remote_traceback(failure.error, failure)
        return error


class _Shown:
    """Something that only its repr is left of."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    __str__ = __repr__


exception_of = PoolExceptions().exception_of
