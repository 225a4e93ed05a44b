"""From what the runtime reports of a failed call to the exception that Pool raises for it."""

from __future__ import annotations

import signal

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
    from multiprocessing.pool import RemoteTraceback

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
    from multiprocessing.pool import MaybeEncodingError

    error = MaybeEncodingError(_Shown(failure.error_repr), _Shown(failure.value_repr))
    if failure.error is not None:
        error.__cause__ = _with_remote_traceback(failure.error, failure)
    return error


def _result_not_unpickled(failure: Failure, _: Any) -> BaseException:
    error = errors.ResultUnpicklingError(
        f"the call returned, but its result could not be unpickled here: {_text_of(failure.error)}"
    )
    error.__cause__ = failure.error
    return error


def _text_of(error: BaseException | None) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        return f"{type(error).__name__}, which cannot be shown"


def _exited(failure: Failure, first_index: int | None) -> BaseException:
    code = failure.code
    exitcode = 0 if code is None else code
    error = errors.WorkerDiedError(
        f"the call raised SystemExit({exitcode!r})", attempts=1, exitcode=exitcode, item_index=first_index
    )
    return _with_remote_traceback(error, failure)


def _died(failure: Failure, first_index: int | None) -> BaseException:
    facts = dict(failure.facts)
    pid = facts.pop("pid", None)
    index = facts.get("item_index")
    if first_index is not None:
        index = first_index + (index or 0) if index is not None else first_index
    facts["item_index"] = index
    attempts = facts["attempts"]
    item = "the call" if index is None else f"item {index}"
    return errors.WorkerDiedError(
        f"the worker (pid {pid}) that ran {item} died with {exit_text(facts['exitcode'])}; "
        f"it was started {attempts} time{'s' if attempts != 1 else ''} and every worker that ran it died",
        **facts,
    )


def exit_text(exitcode: int | None) -> str:
    """
    >>> exit_text(-9), exit_text(3), exit_text(None)
    ('signal 9 (SIGKILL)', 'exit code 3', 'an unknown exit status')
    """
    if exitcode is None:
        return "an unknown exit status"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"signal {-exitcode}"


def _broken(failure: Failure, _: Any) -> BaseException:
    if failure.facts is not None and failure.facts[0] == "refused":
        reason = failure.facts[1]
        if reason == "depth":
            return errors.NestingLimitError(
                "a Pool inside a Pool inside ... : more than 5 levels; most likely a recursion without an end"
            )
        if reason == "processes":
            return errors.ProcessLimitError(
                "no worker could be started: the limit of SCALEOUT_MAX_PROCESSES worker processes is reached"
            )
        return errors.ProcessLimitError(f"no worker could be started: {reason}")
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
