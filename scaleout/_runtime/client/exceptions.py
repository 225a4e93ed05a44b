"""From a failed call to the exception that is raised for it, as far as the shims agree.

A shim subclasses `Exceptions`: it says where the classes come from, how a remote traceback is attached and what it
calls its worker group, and adds makers for the statuses that it treats in a way of its own. The classes are looked up
only when one is needed: some shims' take long to import.
"""

from __future__ import annotations

from scaleout import errors
from scaleout._runtime.client.stories import story_of_death, story_of_refusal, text_of
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.client.outcomes import Failure

    Maker = Callable[[Failure, int | None], BaseException]


class Exceptions:
    """The part of the mapping that is the same for all shims."""

    terminated = "the workers were terminated before this call had a result"
    initializer_failed = "the initializer of the workers failed"
    initializer_died = ""
    """Follows `initializer_failed` where no message of the initializer's can."""

    def __init__(self) -> None:
        self.makers: dict[int, Maker] = {
            frames.TASK_RAISED: self.raised,
            frames.ARGUMENT_NOT_PICKLED: self.argument_not_pickled,
            frames.ARGUMENT_NOT_UNPICKLED: self.argument_not_unpickled,
            frames.RESULT_NOT_UNPICKLED: self.result_not_unpickled,
            frames.WORKER_DIED: self.died,
            frames.OUT_OF_MEMORY: self.died,
            frames.GROUP_BROKEN: self.group_broken,
            frames.SESSION_CLOSED: self.session_closed,
            frames.DROPPED: self.dropped,
        }

    def exception_of(self, failure: Failure, first_index: int | None = None) -> BaseException:
        """The exception for a failed call; `first_index` is the position of the chunk's or the call's first item."""
        return self.makers[failure.status](failure, first_index)

    def classes(self) -> Any:
        """A module with the names of `scaleout.errors`."""
        return errors

    def with_remote_traceback(self, error: BaseException, failure: Failure) -> BaseException:
        """The error, with the traceback's text as its cause."""
        raise NotImplementedError

    def raised(self, failure: Failure, first_index: int | None) -> BaseException:
        """The user's own exception, from a worker."""
        assert failure.error is not None
        return self.with_remote_traceback(failure.error, failure)

    def argument_not_pickled(self, failure: Failure, first_index: int | None) -> BaseException:
        assert failure.error is not None
        return failure.error

    def argument_not_unpickled(self, failure: Failure, first_index: int | None) -> BaseException:
        error: BaseException = self.classes().TaskUnpicklingError(
            f"a worker could not unpickle the function or its arguments: {failure.error_repr}"
        )
        if failure.error is not None:
            error.__cause__ = self.with_remote_traceback(failure.error, failure)
            return error
        return self.with_remote_traceback(error, failure)

    def result_not_unpickled(self, failure: Failure, first_index: int | None) -> BaseException:
        error: BaseException = self.classes().ResultUnpicklingError(
            f"the call returned, but its result could not be unpickled here: {text_of(failure.error)}"
        )
        error.__cause__ = failure.error
        return error

    def died(self, failure: Failure, first_index: int | None) -> BaseException:
        message, facts = story_of_death(failure, first_index)
        classes = self.classes()
        is_for_memory = failure.status == frames.OUT_OF_MEMORY
        error: BaseException = (classes.OutOfMemoryError if is_for_memory else classes.WorkerDiedError)(
            message, **facts
        )
        return error

    def group_broken(self, failure: Failure, first_index: int | None) -> BaseException:
        error: BaseException
        if failure.facts is not None:
            name, message = story_of_refusal(failure)
            error = getattr(self.classes(), name)(message)
            return error
        said = f": {failure.error_repr}" if failure.error_repr else self.initializer_died
        error = self.classes().InitializerError(self.initializer_failed + said)
        if failure.error is not None:
            error.__cause__ = self.with_remote_traceback(failure.error, failure)
        return error

    def session_closed(self, failure: Failure, first_index: int | None) -> BaseException:
        if failure.error is None:
            terminated: BaseException = self.classes().SessionClosedError(self.terminated)
            return terminated
        error: BaseException = self.classes().SessionClosedError("the runtime failed before this call had a result")
        error.__cause__ = failure.error
        return error

    def dropped(self, failure: Failure, first_index: int | None) -> BaseException:
        return errors.CallInterruptedError("Ctrl-C interrupted the wait for this call, so it was given up")
