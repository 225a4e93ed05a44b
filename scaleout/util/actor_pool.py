"""A pool of equal actors that share out the calls."""

from __future__ import annotations

import time
from collections import deque

from scaleout import api
from scaleout.errors import ActorDiedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


class ActorPool:
    """Gives each value to an actor that is idle: `pool.map(lambda actor, value: actor.work.remote(value), values)`.

    The methods are those of Ray's `ActorPool`. An actor that dies does not come back into the pool, and the value that
    was on it goes to another, at most `max_retries` times. With `refill`, a function without arguments that gives a new
    actor, the pool keeps its size.

    >>> import scaleout
    >>> from scaleout.util import ActorPool
    >>> @scaleout.remote
    ... class Doubler:
    ...     def double(self, value):
    ...         return 2 * value
    >>> pool = ActorPool([Doubler.remote(), Doubler.remote()])
    >>> list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3]))
    [2, 4, 6]
    """

    def __init__(self, actors: Iterable[Any], *, refill: Callable[[], Any] | None = None, max_retries: int = 3) -> None:
        self._idle: deque[Any] = deque(actors)
        self._refill = refill
        self._max_retries = max_retries
        self._pending: deque[_Call] = deque()  # no actor is free for them
        self._running: dict[Any, _Call] = {}  # by reference
        self._calls: dict[int, _Call] = {}  # by position, those whose result nobody has taken
        self._submitted = 0
        self._size = len(self._idle)

    # -- all at once -----------------------------------------------------------------------------

    def map(self, function: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """The results, in the order of the values, each when it is there. What was submitted before is given up."""
        self._forget()
        for value in values:
            self.submit(function, value)
        return self._results(self.get_next)

    def map_unordered(self, function: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """The results, as they come."""
        self._forget()
        for value in values:
            self.submit(function, value)
        return self._results(self.get_next_unordered)

    def _results(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def _forget(self) -> None:
        self._pending.clear()
        self._calls.clear()
        for call in self._running.values():
            call.is_wanted = False

    # -- one by one ------------------------------------------------------------------------------

    def submit(self, function: Callable[[Any, Any], Any], value: Any) -> None:
        """Call `function(actor, value)`, which calls the actor and gives the reference, when an actor is idle."""
        call = _Call(function, value, self._submitted)
        self._calls[call.position] = call
        self._submitted += 1
        self._pending.append(call)
        self._start()

    def has_next(self) -> bool:
        """Whether there are results that nobody has taken."""
        return bool(self._calls)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of the first call whose result nobody has taken; raises what it raised.

        StopIteration if there is none, TimeoutError if it is not there within `timeout` seconds; the call is then
        given up only with `ignore_if_timedout`.
        """
        if not self._calls:
            raise StopIteration("there are no results that nobody has taken")
        return self._take(self._calls[min(self._calls)], timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The same for whichever result comes first."""
        if not self._calls:
            raise StopIteration("there are no results that nobody has taken")
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            done = next((call for call in self._calls.values() if call.is_done), None)
            if done is not None:
                return self._take(done, timeout, ignore_if_timedout)
            self._wait_for_any(timeout, deadline)

    def _take(self, call: _Call, timeout: float | None, ignore_if_timedout: bool) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not call.is_done:
            try:
                self._wait_for_any(timeout, deadline)
            except TimeoutError:
                if ignore_if_timedout:
                    call.is_wanted = False
                    self._calls.pop(call.position, None)
                raise
        del self._calls[call.position]
        if call.error is not None:
            raise call.error
        return call.value

    # -- actors ----------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether an actor is idle, and nothing waits for one."""
        return bool(self._idle) and not self._pending

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if there is none."""
        if not self.has_free():
            return None
        self._size -= 1
        return self._idle.popleft()

    def push(self, actor: Any) -> None:
        """Put an actor into the pool. ValueError if it is there."""
        if actor in self._idle or any(call.actor == actor for call in self._running.values()):
            raise ValueError(f"{actor!r} is in the pool already")
        self._size += 1
        self._idle.append(actor)
        self._start()

    # -- inside ----------------------------------------------------------------------------------

    def _start(self) -> None:
        while self._pending and self._idle:
            call = self._pending.popleft()
            call.actor = self._idle.popleft()
            try:
                call.ref = call.function(call.actor, call.item)
            except BaseException:
                self._idle.appendleft(call.actor)
                self._calls.pop(call.position, None)
                raise
            self._running[call.ref] = call

    def _wait_for_any(self, timeout: float | None, deadline: float | None) -> None:
        """Until a call has ended; what an actor's death has undone goes to another."""
        if not self._running:
            raise ActorDiedError("no actor is left in the pool", class_name="", name="")
        refs = list(self._running)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _ = api.wait(refs, num_returns=1, timeout=left)
        if not ready:
            raise TimeoutError(f"no result within {timeout:g} s")
        for ref in ready:
            self._end(self._running.pop(ref))

    def _end(self, call: _Call) -> None:
        actor, call.actor = call.actor, None
        try:
            call.value = api.get(call.ref)
        except ActorDiedError as error:
            self._size -= 1
            if self._refill is not None:
                self.push(self._refill())
            call.attempts += 1
            if call.is_wanted and call.attempts <= self._max_retries and self._size:
                self._pending.appendleft(call)
                self._start()
                return
            call.error = error
        except BaseException as error:  # noqa: BLE001 - the actor's own, raised when it is asked for
            call.error = error
            self._idle.append(actor)
        else:
            self._idle.append(actor)
        call.is_done = True
        call.ref = None
        self._start()


class _Call:
    """One value on its way."""

    __slots__ = ("actor", "attempts", "error", "function", "is_done", "is_wanted", "item", "position", "ref", "value")

    def __init__(self, function: Callable[[Any, Any], Any], item: Any, position: int) -> None:
        self.function = function
        self.item = item
        self.position = position
        self.actor: Any = None
        self.ref: Any = None
        self.attempts = 0
        self.is_done = False
        self.is_wanted = True
        self.value: Any = None
        self.error: BaseException | None = None
