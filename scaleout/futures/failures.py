"""From what the runtime reports of a failed call to the exception that an executor's future has."""

from __future__ import annotations

from concurrent.futures import _base

from scaleout._runtime import session
from scaleout.errors import CallInterruptedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.session import Failure


def exception_of(failure: Failure, first_index: int | None = None) -> BaseException:
    """The exception for a failed call; `first_index` is the position of the chunk's or the call's first item."""
    return _MAKERS[failure.status](failure, first_index)


def _with_remote_traceback(error: BaseException, failure: Failure) -> BaseException:
    from concurrent.futures.process import _RemoteTraceback

    if failure.traceback:
        error.__cause__ = _RemoteTraceback(f'\n"""\n{failure.traceback}"""')  # type: ignore[arg-type]
    return error


def _raised(failure: Failure, _: Any) -> BaseException:
    assert failure.error is not None
    return _with_remote_traceback(failure.error, failure)


def _argument_not_pickled(failure: Failure, _: Any) -> BaseException:
    assert failure.error is not None
    return failure.error


def _argument_not_unpickled(failure: Failure, _: Any) -> BaseException:
    from scaleout.futures.errors import TaskUnpicklingError

    error = TaskUnpicklingError(f"a worker could not unpickle the function or its arguments: {failure.error_repr}")
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
        return error
    return _with_remote_traceback(error, failure)


def _result_not_pickled(failure: Failure, _: Any) -> BaseException:
    if failure.error is not None:
        return _with_remote_traceback(failure.error, failure)
    from pickle import PicklingError

    error = PicklingError(f"{failure.value_repr} could not be pickled: {failure.error_repr}")
    return _with_remote_traceback(error, failure)


def _result_not_unpickled(failure: Failure, _: Any) -> BaseException:
    from scaleout.futures.errors import ResultUnpicklingError

    error = ResultUnpicklingError(
        f"the call returned, but its result could not be unpickled here: {session.text_of(failure.error)}"
    )
    error.__cause__ = failure.error
    return error


def _died(failure: Failure, first_index: int | None) -> BaseException:
    from scaleout.futures import errors

    kind = errors.OutOfMemoryError if failure.status == session.OUT_OF_MEMORY else errors.WorkerDiedError
    message, facts = session.story_of_death(failure, first_index)
    return kind(message, **facts)


def _timed_out(failure: Failure, first_index: int | None) -> BaseException:
    item = "the call" if first_index is None else f"item {first_index}"
    facts = failure.facts
    return _base.TimeoutError(
        f"{item} ran for more than {facts['timeout_s']:g} s; the worker (pid {facts['pid']}) that ran it was killed"
    )


def _broken(failure: Failure, _: Any) -> BaseException:
    from scaleout.futures import errors

    if failure.facts is not None:
        name, message = session.story_of_refusal(failure)
        kind: type[BaseException] = getattr(errors, name)
        return kind(message)
    said = f": {failure.error_repr}" if failure.error_repr else ""
    error = errors.InitializerError(f"a worker of the executor ended, as its initializer failed{said}")
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
    return error


def _closed(failure: Failure, _: Any) -> BaseException:
    from scaleout.futures.errors import SessionClosedError

    if failure.error is None:
        return SessionClosedError("the executor's workers were terminated before this call had a result")
    error = SessionClosedError("the runtime failed before this call had a result")
    error.__cause__ = failure.error
    return error


def _dropped(failure: Failure, _: Any) -> BaseException:
    return CallInterruptedError("Ctrl-C interrupted the wait for this call, so it was given up")


def _cancelled(failure: Failure, _: Any) -> BaseException:
    return _base.CancelledError()


_MAKERS = {
    session.TASK_RAISED: _raised,
    session.TASK_EXITED: _raised,
    session.ARGUMENT_NOT_PICKLED: _argument_not_pickled,
    session.ARGUMENT_NOT_UNPICKLED: _argument_not_unpickled,
    session.RESULT_NOT_PICKLED: _result_not_pickled,
    session.RESULT_NOT_UNPICKLED: _result_not_unpickled,
    session.WORKER_DIED: _died,
    session.OUT_OF_MEMORY: _died,
    session.TIMED_OUT: _timed_out,
    session.GROUP_BROKEN: _broken,
    session.SESSION_CLOSED: _closed,
    session.DROPPED: _dropped,
    session.CANCELLED: _cancelled,
}
