"""Worker groups that outlive the `Parallel` call they were started for.

    idle --take--> taken --give_back--> idle --too long idle, too many, close_idle()--> ended
                     +-----spoilt-----> ended

A group is taken by one `Parallel` call at a time, so two threads never share one; a call that finds none idle gets a
new one. A group that is taken is only known here, not held: if its call is lost, as Ctrl-C struck between two steps,
the group goes with it. What is idle is bounded in time and in number of workers. At the interpreter's exit all groups
end; a forked child starts with none.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref

from scaleout._runtime import session
from scaleout.joblib_backend import memmaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout.joblib_backend.recipe import Recipe

IDLE_TIMEOUT_S = 300.0
"""As joblib's loky: long enough for the next cell of a notebook."""

IDLE_WORKERS_PER_CPU = 2
"""More than this are not kept idle, but for those that were used last: threads that take turns find theirs again."""

END_LIMIT_S = 2.0
"""For idle workers to run their own exit functions at the interpreter's exit; then they are killed."""


class WarmGroup:
    """A worker group and what its workers were started with."""

    def __init__(self, recipe: Recipe, group: Any) -> None:
        self.recipe = recipe
        self.group = group
        self.idle_since = 0.0
        self.idle_timeout_s = IDLE_TIMEOUT_S
        self.next_look_at = math.inf  # when its idle time is looked at
        self.lease: object = None  # of the call that has it: who holds another must not touch the group any more


class WarmGroups:
    """All groups of this process. The lock may be taken again by the same thread: a finalizer may give a group back."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._idle: list[WarmGroup] = []  # the one used last at the end
        self._taken: weakref.WeakSet[WarmGroup] = weakref.WeakSet()

    def take(self, recipe: Recipe, size: int) -> WarmGroup:
        """A group of `size` workers that were, or are about to be, started by this recipe."""
        with self._lock:
            for warm in reversed(self._idle):
                if not warm.group.has_ended and warm.recipe.matches(recipe):
                    self._idle.remove(warm)
                    self._hand_out(warm)
                    if warm.group.size != size:
                        warm.group.resize(size)
                    return warm
        warm = WarmGroup(recipe, _open_group(recipe, size))
        with self._lock:
            self._hand_out(warm)
        return warm

    def _hand_out(self, warm: WarmGroup) -> None:
        warm.lease = object()
        self._taken.add(warm)

    def give_back(self, warm: WarmGroup, lease: object, idle_timeout_s: float, is_spoilt: bool) -> None:
        """The call is over, and nothing of it is left in the group."""
        with self._lock:
            if warm.lease is not lease:
                return
            warm.lease = None
            self._taken.discard(warm)
            if is_spoilt or warm.group.has_ended:
                warm.group.close()
                return
            warm.idle_since = time.monotonic()
            warm.idle_timeout_s = idle_timeout_s
            self._watch(warm)
            self._idle.append(warm)
            excess = sum(other.group.size for other in self._idle) - IDLE_WORKERS_PER_CPU * session.cpu_count()
            while excess > 0 and len(self._idle) > 1:
                excess -= self._idle[0].group.size
                self._idle.pop(0).group.close()

    def _watch(self, warm: WarmGroup) -> None:
        """One look is to come, however often the group is taken and given back; an earlier one replaces it."""
        at = warm.idle_since + warm.idle_timeout_s
        if at < warm.next_look_at:
            found = weakref.ref(warm)
            warm.group.call_later(max(0.0, at - time.monotonic()), lambda: self._look_at_idle_time(found(), at))
            warm.next_look_at = at

    def _look_at_idle_time(self, warm: WarmGroup | None, at: float) -> None:
        """On the runtime's thread."""
        if warm is None or at != warm.next_look_at:
            return
        with self._lock:
            warm.next_look_at = math.inf
            if warm not in self._idle:
                return
            if time.monotonic() < warm.idle_since + warm.idle_timeout_s:
                self._watch(warm)
            else:
                self._idle.remove(warm)
                warm.group.close()

    def close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for warm in idle:
            warm.group.close()
        for warm in idle:
            warm.group.join()

    def end(self) -> None:
        """At exit: idle workers leave, others are killed, as nobody can wait for their results any more."""
        with self._lock:
            idle, self._idle = self._idle, []
            taken, self._taken = list(self._taken), weakref.WeakSet()
        for warm in taken:
            warm.lease = None
            _kill(warm.group)
        for warm in idle:
            warm.group.close()
        deadline = time.monotonic() + END_LIMIT_S
        for warm in (*idle, *taken):
            if not warm.group.join(max(0.0, deadline - time.monotonic())):
                _kill(warm.group)
                warm.group.join(END_LIMIT_S)
        if idle or taken:
            session.close_idle()  # no group will come any more, and who dies with an open socket is warned about

    def forget(self) -> None:
        """In a forked child: they are the parent's, and so may be the lock."""
        self._lock = threading.RLock()
        self._idle = []
        for warm in list(self._taken):
            warm.lease = None
        self._taken = weakref.WeakSet()


def _open_group(recipe: Recipe, size: int) -> Any:
    arguments: dict[str, Any] = {}
    if recipe.initializer is not None:
        arguments = {"initializer": recipe.initializer, "initargs": recipe.initargs, "initializer_failures": 1}
    return session.default_session().open_group(
        size,
        max_retries=recipe.max_retries,
        environment=recipe.environment,
        reducers=memmaps.__name__,
        carries_globals=True,
        **arguments,
    )


def _kill(group: Any) -> None:
    group.kill_all()
    group.terminate()


groups = WarmGroups()


def close_idle() -> None:
    """End the workers that wait for the next `Parallel` call, and wait until they are gone."""
    groups.close_idle()


session.at_close_idle.append(groups.close_idle)
atexit.register(groups.end)
os.register_at_fork(after_in_child=groups.forget)
