"""SCALEOUT_INLINE=1: a session that runs every call at once in the thread that submits it.

For debuggers and coverage: no process, no thread, no pickling. Same interface as `client.embedded`; what a call
prints, raises or changes is seen where it was submitted from.
"""

from __future__ import annotations

from scaleout._runtime.client.batch import Batch
from scaleout._runtime.client.outcomes import Direct
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.base.settings import Settings


class InlineSession:
    """A session without a runtime."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_closed = False
        self.is_in_use = False  # there is nothing that could be

    @property
    def num_cpus(self) -> int:
        return int(self.settings.num_cpus)

    def open_group(
        self,
        size: int,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        **of_workers: Any,
    ) -> InlineGroup:
        """Runs the initializer here and now; its exception is the caller's. What else can be asked of workers means
        nothing here: the environment, too, stays this process's."""
        if initializer is not None:
            initializer(*initargs)
        return InlineGroup(size)

    def close(self) -> None:
        self.is_closed = True

    def close_idle(self) -> None:
        pass

    dump_stacks = before_fork = forget = close_idle


class InlineCallable:
    """A function, not pickled."""

    users = 0

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class InlineGroup:
    """The calling thread in the place of workers."""

    workers: tuple[Any, ...] = ()
    serving_workers = workers
    has_ended = False

    def __init__(self, size: int) -> None:
        self.size = size

    def prepare(self, function: Callable[..., Any]) -> InlineCallable:
        return InlineCallable(function)

    def finished(self, record: InlineCallable) -> None:
        pass

    def submit(
        self,
        record: InlineCallable,
        how: int,
        value: Any,
        sink: Any,
        index: int,
        profile: Any = None,
        share: Any = None,
        limited: Any = None,
    ) -> None:
        """Run the call, deliver its outcome."""
        try:
            result = CALL[how](record.function, value)
        except (KeyboardInterrupt, SystemExit):
            raise  # it is the user's own thread
        except BaseException as error:
            sink.deliver(index, frames.ARGUMENT_NOT_PICKLED, error)  # as it is: there is no remote traceback
        else:
            sink.deliver(index, frames.OK, Direct(result))

    def task_of(self, record: InlineCallable, how: int, value: Any, sink: Any) -> tuple[Any, ...]:
        return record, how, value, sink, 0

    def start(self, task: tuple[Any, ...]) -> None:
        self.submit(*task)

    def start_limited(self, task: tuple[Any, ...], limited: Any) -> None:
        self.submit(*task)

    def direct_call(self, task: tuple[Any, ...]) -> None:
        return None

    def follow_cluster(self, method: Any) -> None:
        pass

    def want_direct(self, is_wanted: bool = True) -> None:
        pass

    def batch(
        self, record: InlineCallable, how: int, sink: Any, profile: Any, *, shares: bool, limited: Any = None
    ) -> Batch:
        return Batch(self, record, how, sink, profile)

    def fail(self, sink: Any, index: int, error: BaseException) -> None:
        sink.deliver(index, frames.ARGUMENT_NOT_PICKLED, error)

    def post(self, function: Callable[[], None]) -> None:
        function()

    put_callback = post

    def drop(self, sink: Any, interrupt: bool = True) -> None:
        pass

    def drop_all(self, kill: bool = False) -> None:
        pass

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        pass  # nothing is kept warm

    def cancel(self, task: Any) -> bool:
        return False  # it ran when it was submitted

    is_running = cancel

    def resize(self, size: int) -> None:
        self.size = size

    cancel_pending = drop_all

    kill_all = drop_all

    def check_process(self) -> None:
        pass

    def close(self) -> None:
        self.has_ended = True

    terminate = close

    def join(self, timeout_s: float | None = None) -> bool:
        return True


CALL: dict[int, Callable[[Any, Any], Any]] = {
    frames.CALL_ARGS: lambda function, value: function(*value),
    frames.CALL_ARGS_KWARGS: lambda function, value: function(*value[0], **value[1]),
    frames.CALL_ITEM: lambda function, value: function(value),
    frames.MAP_ITEMS: lambda function, value: [function(item) for item in value],
    frames.STARMAP_ITEMS: lambda function, value: [function(*item) for item in value],
}
