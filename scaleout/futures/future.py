"""The futures of `ScaleoutExecutor`: genuine `concurrent.futures.Future` objects that cost little while nobody waits.

Ten thousand futures are made and completed before anybody looks at most of them. So the condition and the two lists of
a genuine future are made when something asks for them, and a result stays bytes until somebody wants the value; then it
is unpickled in that thread, never on the runtime's own.

How a completion and a first look agree on who is first, without a lock:

    the runtime    found = setdefault("_genuine", SETTLED);      if found is SETTLED: store the state, release waiters
    a stranger     found = setdefault("_genuine", Condition());  if found is SETTLED: wait until the state is stored

`setdefault` on a dict is atomic. If the runtime comes first, no genuine condition exists while the state changes, and
one that is made later belongs to a future that never changes again. If the stranger comes first, the runtime completes
the future as the base class does, under the condition. `result()` and `exception()` of our own need neither: who waits
there puts a lock of its own on a list *before* it looks at the state a last time, and the runtime stores the state
before it looks at the list.

The runtime's thread never waits for a condition, nor in the event of who waits for several futures: a signal handler's
exception leaves them locked for ever when it strikes at the wrong moment, and `wait` and `as_completed`, which take the
conditions of all their futures one after the other, are long at such a moment.

A call that was made directly (see node.direct) is read by the thread that asks for its result, past the runtime's own.
Whatever else is done with such a future hands the call over to the runtime first.
"""

from __future__ import annotations

import sys
import threading
import time
from _thread import allocate_lock, get_ident
from concurrent.futures import _base
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from functools import partial

from scaleout._runtime import session
from scaleout._runtime.session import OK, Failure, acquire_within, outcome
from scaleout.futures.elsewhere import HOLDS_SECONDS
from scaleout.futures.failures import exception_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from scaleout.futures.crew import Crew

SETTLED: Any = object()
_settling = threading.Lock()
LOST_SECONDS = 0.001
"""The same once a condition was found that is never let go: there are more of them then."""

HOLDS_AT_MOST_SECONDS = 60.0


class _Waiters(list):  # of Any
    """Who waits for several futures. Each gets an event that can be set whatever has struck him."""

    def append(self, waiter: Any) -> None:
        if type(getattr(waiter, "event", None)) is threading.Event:
            waiter.event = session.Latch()  # nobody looks at it before the waiter is with all its futures
        super().append(waiter)


class _MadeOnDemand:
    """An attribute that is made, empty, once somebody asks for it."""

    def __init__(self, kind: type[list[Any]]) -> None:
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: type) -> Any:
        return self if future is None else future.__dict__.setdefault(self._name, self._kind())


class _Unpickled:
    """An attribute that is unpickled once somebody asks for it; None before there is a result."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: type) -> Any:
        if future is None:
            return self
        future._unpickle()
        return future.__dict__.get(self._name)


class ScaleoutFuture(_base.Future[Any] if TYPE_CHECKING else _base.Future):  # type: ignore[misc]
    """The future of one call. One that a program makes itself behaves as the base class does."""

    _state = PENDING
    _crew: Crew | None = None
    _task: Any = None  # what the runtime knows the call by, until it has ended
    _record: Any = None  # the callable, if it must be released in the end
    _call: Any = None  # the direct call whose answer nobody has read yet
    _locks: Any = ()  # of threads that wait in result() or exception()
    _waiters: Any = _MadeOnDemand(_Waiters)
    _done_callbacks: Any = _MadeOnDemand(list)
    _result: Any = _Unpickled()
    _exception: Any = _Unpickled()

    def __init__(self) -> None:
        pass  # see the attributes above

    @property
    def _condition(self) -> Any:
        self._hand_over()
        own = self.__dict__
        found = own.get("_genuine")
        if found is None:
            found = own.setdefault("_genuine", threading.Condition())
        if found is SETTLED:
            while self._state == PENDING:  # the runtime's thread stands between two lines
                time.sleep(0)
            with _settling:
                found = own["_genuine"]
                if found is SETTLED:
                    found = own["_genuine"] = threading.Condition()
        return found

    # -- the runtime's side ----------------------------------------------------------------------

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """The call has ended. Quick, and without code of the user's: on the runtime's thread, or in `result`."""
        own = self.__dict__
        crew: Any = self._crew
        self._task = self._call = None
        record = self._record
        if record is not None:
            self._record = None
            crew.group.finished(record)
        if status or crew.size < crew.max_workers:
            crew.delivered(status)
        if self._state != PENDING:  # completed by hand; or an exception has struck whoever delivered it before
            self._release_locks()
            return
        if status != session.CANCELLED:
            own["_raw"] = (status, payload)
        if own.setdefault("_genuine", SETTLED) is SETTLED:
            self._state = CANCELLED_AND_NOTIFIED if status == session.CANCELLED else FINISHED
            self._release_locks()
        elif status == session.CANCELLED:
            self._settle(partial(self._finish, CANCELLED_AND_NOTIFIED, "add_cancelled"))
        else:
            self._settle(partial(self._finish_pickled, status))

    def _settle(self, finish: Callable[[], None]) -> None:
        """`finish` under the condition: here and now if that is free. Else elsewhere; not in the thread for callbacks,
        one of which may wait for this very future."""
        condition = self._condition
        if condition.acquire(blocking=False):
            self._settle_now(finish, condition)
        else:
            self._crew.elsewhere.put(partial(self._settle_patiently, finish))  # type: ignore[union-attr]

    def _settle_patiently(self, finish: Callable[[], None]) -> None:
        """Where it may take time: whoever has the condition was struck by an exception, or takes many at once."""
        crew: Any = self._crew
        condition = self._condition
        deadline = time.monotonic() + HOLDS_AT_MOST_SECONDS
        is_mine = condition.acquire(timeout=crew.condition_patience_s)
        while not is_mine and _some_thread_may_hold_conditions() and time.monotonic() < deadline:
            is_mine = condition.acquire(timeout=HOLDS_SECONDS)
        if not is_mine:
            crew.condition_patience_s = LOST_SECONDS
        self._settle_now(finish, condition if is_mine else None)

    def _settle_now(self, finish: Callable[[], None], condition: Any) -> None:
        try:
            if self._state in (PENDING, RUNNING):
                finish()
            if condition is not None:
                condition.notify_all()
        finally:
            if condition is not None:
                condition.release()

    def _finish_pickled(self, status: int) -> None:
        """With the value still pickled, if nobody needs to know what it is."""
        if any(getattr(waiter, "stop_on_exception", False) for waiter in self.__dict__.get("_waiters", ())):
            # One waits for the first exception: whether this is one shows when it is unpickled. Failures take the
            # same way, as they must not overtake what came before them.
            self._crew.elsewhere.put(self._finish_unpickled)  # type: ignore[union-attr]
        else:
            self._finish(FINISHED, "add_result" if status == OK else "add_exception")

    def _finish_unpickled(self) -> None:
        tell = "add_result" if self._exception is None else "add_exception"
        self._settle_patiently(partial(self._finish, FINISHED, tell))

    def _finish(self, state: str, tell: str) -> None:
        self._state = state
        for waiter in list(self.__dict__.get("_waiters", ())):
            getattr(waiter, tell)(self)
        self._invoke_callbacks()  # elsewhere, and queued there before anybody wakes up and queues behind them
        self._release_locks()

    def _release_locks(self) -> None:
        locks = self._locks
        while locks:
            locks.pop().release()

    def _invoke_callbacks(self) -> None:
        if self._crew is None:
            super()._invoke_callbacks()
        elif "_done_callbacks" in self.__dict__:
            self._crew.group.put_callback(super()._invoke_callbacks)

    # -- the caller's side -----------------------------------------------------------------------

    def _unpickle(self) -> None:
        """Turn what was delivered into a value or an exception, once; another thread waits until that is done."""
        own = self.__dict__
        raw = own.get("_raw")
        if raw is None:
            return
        me = get_ident()
        by = own.setdefault("_unpickler", me)
        if by is not me:
            if by == me:
                raise RuntimeError("a result was asked for in the midst of being unpickled by the same thread")
            while "_raw" in own:
                time.sleep(0.0005)
            return
        try:
            success, value = outcome(*raw)
            if success:
                own["_result"] = value
            else:
                own["_exception"] = exception_of(value)
        except BaseException:  # Ctrl-C while it was unpickled, of which half may be used up
            own["_exception"] = exception_of(Failure(session.DROPPED))
            raise
        finally:
            own.pop("_raw", None)

    def result(self, timeout: float | None = None) -> Any:
        """The value of the call, or its exception raised.

        `CancelledError` if it was cancelled, `TimeoutError` if it has not ended within `timeout` seconds.
        """
        if self._state != FINISHED:
            self._wait(timeout)
        own = self.__dict__
        if "_raw" in own:
            self._unpickle()
        error = own.get("_exception")
        if error is None:
            return own.get("_result")
        try:
            raise error
        finally:
            del error, own
            self = None  # type: ignore[assignment]  # no cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception of the call, or None if it returned; waits and raises as `result` does."""
        if self._state != FINISHED:
            self._wait(timeout)
        error: BaseException | None = self._exception
        return error

    def _hand_over(self) -> None:
        """Let the runtime read the answer, if nobody does."""
        call = self._call
        if call is not None and self._crew.group.is_here:  # type: ignore[union-attr]
            call.hand_over()

    def _wait(self, timeout: float | None) -> None:
        """Until it has finished."""
        deadline = None if timeout is None else time.monotonic() + timeout
        crew = self._crew
        if self._call is not None:
            if timeout is None:
                crew.group.check_process()  # type: ignore[union-attr]
                if self._read():
                    return
            self._hand_over()
        elif crew is not None:
            crew.awaited()
        while True:
            lock = allocate_lock()
            lock.acquire()
            locks = self.__dict__.setdefault("_locks", [])
            try:
                locks.append(lock)
                state = self._state
                if state == FINISHED:
                    return
                if state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                    raise _base.CancelledError
                if crew is not None and crew.group is not None:
                    crew.group.check_process()
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if not acquire_within(lock, left) and self._state in (PENDING, RUNNING):
                    raise _base.TimeoutError
            except KeyboardInterrupt:
                if crew is not None and crew.group is not None:
                    crew.group.drop(self)
                raise
            finally:
                try:
                    locks.remove(lock)
                except ValueError:
                    pass

    def _read(self) -> bool:
        """Read the answer in this thread; False if that is somebody else's by now."""
        call = self._call
        try:
            answer = call.receive()
            if answer is None:
                return False
            self.deliver(0, *answer)
        except BaseException:  # Ctrl-C: the answer is lost, wherever it was just then
            self._crew.group.post(partial(self.deliver, 0, session.DROPPED, None))  # type: ignore[union-attr]
            raise
        return True

    def cancel(self) -> bool:
        """Cancel the call if no worker has started it; whether it is cancelled."""
        if self._crew is None or self._state != PENDING:
            is_cancelled = super().cancel()
            self._release_locks()
            return is_cancelled
        self._hand_over()
        task = self._task
        if task is not None and self._crew.group.cancel(task):
            try:
                self._wait(2 * HOLDS_SECONDS)  # somebody may have the condition just now
            except (_base.CancelledError, _base.TimeoutError):
                pass
            return True
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def cancelled(self) -> bool:
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether a worker has started the call, and it has not ended. What only waits at a worker can be cancelled."""
        if self._state != PENDING:
            return self._state == RUNNING
        self._hand_over()
        task = self._task
        return task is not None and self._crew is not None and self._crew.group.is_running(task)

    def done(self) -> bool:
        self._hand_over()
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self._release_locks()

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception)
        self._release_locks()

    def __repr__(self) -> str:
        """As the base class; "running" once a worker has started the call."""
        if self._state == PENDING and self.running():
            return f"<Future at {id(self):#x} state=running>"
        return super().__repr__().replace(type(self).__name__, "Future", 1)

    def __await__(self) -> Generator[Any, None, Any]:
        from scaleout.futures.aio import wrap

        return wrap(self).__await__()


def _some_thread_may_hold_conditions() -> bool:
    """Whether one is just now where the standard library takes and lets go conditions of futures; whoever waits there
    is in another file."""
    for frame in sys._current_frames().values():
        found: Any = frame
        while found is not None and found.f_code.co_filename == __file__:  # what it asks of us
            found = found.f_back
        if found is not None and found.f_code.co_filename == _base.__file__:
            return True
    return False


new_future: Callable[[type[ScaleoutFuture]], ScaleoutFuture] = object.__new__
