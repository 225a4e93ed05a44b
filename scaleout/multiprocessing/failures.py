"""From what the runtime reports of a failed call to the exception that Pool raises for it."""

from __future__ import annotations

from scaleout import errors
from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.session import Failure


def exception_of(failure: Failure, first_index: int | None = None) -> BaseException:
    """The exception for a failed call; `first_index` is the position of the chunk's or the call's first item."""
    return _MAKERS[failure.status](failure, first_index)


def _with_remote_traceback(error: BaseException, failure: Failure) -> BaseException:
    from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    error.__cause__ = RemoteTraceback(f'\n"""\n{failure.traceback}"""')
    return error


def _raised(failure: Failure, _: Any) -> BaseException:
    assert failure.error is not None
    return _with_remote_traceback(failure.error, failure)


def _argument_not_pickled(failure: Failure, _: Any) -> BaseException:
    assert failure.error is not None
    return failure.error


def _argument_not_unpickled(failure: Failure, _: Any) -> BaseException:
    error = errors.TaskUnpicklingError(
        f"a worker could not unpickle the function or its arguments: {failure.error_repr}"
    )
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
        return error
    return _with_remote_traceback(error, failure)


def _result_not_pickled(failure: Failure, _: Any) -> BaseException:
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    error = MaybeEncodingError(_Shown(failure.error_repr), _Shown(failure.value_repr))
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
    return error


def _result_not_unpickled(failure: Failure, _: Any) -> BaseException:
    error = errors.ResultUnpicklingError(
        f"the call returned, but its result could not be unpickled here: {session.text_of(failure.error)}"
    )
    error.__cause__ = failure.error
    return error


def _exited(failure: Failure, first_index: int | None) -> BaseException:
    code = failure.code
    exitcode = 0 if code is None else code
    error = errors.WorkerDiedError(
        f"the call raised SystemExit({exitcode!r})", attempts=1, exitcode=exitcode, item_index=first_index
    )
    return _with_remote_traceback(error, failure)


def _died(failure: Failure, first_index: int | None) -> BaseException:
    message, facts = session.story_of_death(failure, first_index)
    kind = errors.OutOfMemoryError if failure.status == session.OUT_OF_MEMORY else errors.WorkerDiedError
    return kind(message, **facts)


def _broken(failure: Failure, _: Any) -> BaseException:
    if failure.facts is not None:
        name, message = session.story_of_refusal(failure)
        refused: BaseException = getattr(errors, name)(message)
        return refused
    error = errors.InitializerError(
        "the pool's initializer failed in several workers in a row"
        + (f": {failure.error_repr}" if failure.error_repr else "; the workers died without a message")
    )
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
    return error


def _closed(failure: Failure, _: Any) -> BaseException:
    if failure.error is None:
        return errors.SessionClosedError("the pool was terminated before this call had a result")
    error = errors.SessionClosedError("the runtime failed before this call had a result")
    error.__cause__ = failure.error
    return error


def _dropped(failure: Failure, _: Any) -> BaseException:
    return errors.CallInterruptedError("Ctrl-C interrupted the wait for this call, so it was given up")


class _Shown:
    """Something that only its repr is left of."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    __str__ = __repr__


_MAKERS = {
    session.TASK_RAISED: _raised,
    session.ARGUMENT_NOT_PICKLED: _argument_not_pickled,
    session.ARGUMENT_NOT_UNPICKLED: _argument_not_unpickled,
    session.RESULT_NOT_PICKLED: _result_not_pickled,
    session.RESULT_NOT_UNPICKLED: _result_not_unpickled,
    session.TASK_EXITED: _exited,
    session.WORKER_DIED: _died,
    session.OUT_OF_MEMORY: _died,
    session.GROUP_BROKEN: _broken,
    session.SESSION_CLOSED: _closed,
    session.DROPPED: _dropped,
}
