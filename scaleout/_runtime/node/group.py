"""The workers behind one Pool or executor, as their owner holds them.

What is decided about a group's tasks and workers, its core decides (`core.dispatch`); what is done about it, the other
modules here do. A group ends its own tasks: it tells their sinks, and lets go what they held.

A *sink* is where results go: an object with `deliver(index, status, payload)`, called on the reactor thread, which must
be quick and must not run user code. `payload` is bytes for OK, `StoredResult` for OK of a large result, a tuple for
failures that the worker described, and for failures that the owner found whatever the status says.

Methods run on the reactor thread. Attributes may be read by any thread; the two that other threads set say so.
"""

from __future__ import annotations

import itertools

from scaleout._runtime.base.latch import Latch
from scaleout._runtime.core.tasks import FINISHED
from scaleout._runtime.node.callbacks import CallbackThread
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.core.dispatch import Group
    from scaleout._runtime.core.mailbox import Mailbox
    from scaleout._runtime.core.tasks import Task
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.peer import Peer


class WorkerGroup:
    """The core's dispatcher and the addressees of its effects. The interface that shims see of it: `session`."""

    def __init__(self, core: Group | Mailbox, hello: dict[str, Any], objects: ObjectTable) -> None:
        self.core: Any = core  # a Mailbox if it is an actor's
        self.initializer: Any = None  # queues the INITIALIZE frames of one worker
        self.hello = hello
        self.numbers = itertools.count(1)
        self.peers: list[Peer] = []
        self.callbacks = CallbackThread()
        self.failure: Any = None  # the last initializer failure, as the worker described it
        self.carrying: list[tuple[Any, ...]] = []  # effects that are being carried out
        self.lent: tuple[Peer, ...] = ()  # workers that submitting threads may talk to themselves
        self.wants_direct = False  # set by submitting threads
        self.follower: Callable[[], Any] = lambda: None  # who wants to know how many CPUs there are, if that changes
        self.keeps_order = False  # its tasks are an actor's calls
        self.shape: Any = ()  # what each of its tasks needs, for a group that shares the node's resources
        self.actor: Any = None  # actors.Fate: what is said of it
        self.last_peer: Peer | None = None  # that died
        self.is_watched = False  # somebody looks whether a direct call stays parked
        self.is_opened = Latch()
        self.is_terminating = False  # a task that comes now is refused
        self.has_ended = Latch()
        self._objects = objects
        self._runtime_failure: BaseException | None = None

    def label_of(self, task: Task) -> str:
        """What errors call it; empty for calls that are known by their items."""
        name = task.name or (task.callable.name if task.submitted_ns else "")
        if not name:
            return ""
        return f"the call {self.actor.options['class_name']}.{name}" if self.keeps_order else f"the task {name}"

    def finish(self, task: Task, status: int, payload: Any) -> None:
        """The task has ended: its sink is told, what it held is let go. (The usual end of a task: `receiver`.)"""
        if task.stored is not None:
            self._objects.drop(task.stored)
        task.sink.deliver(task.index, status, payload)

    def finish_all(self, status: int, payload: Any) -> None:
        """The same for all its tasks: none will run any more."""
        for task in self.core.take_all():
            self.finish(task, status, payload)

    def refuse(self, task: Task) -> None:
        """It comes too late."""
        task.state = FINISHED
        if self.keeps_order and self.core.is_broken:
            self.finish(task, frames.ACTOR_DIED, self.actor.facts())
        elif self.core.is_broken:
            self.finish(task, frames.GROUP_BROKEN, self.failure)
        else:
            self.finish(task, frames.SESSION_CLOSED, self._runtime_failure)

    def abandon(self, failure: BaseException | None) -> None:
        """The runtime has failed: what waits for this group gets an error, as it would wait for ever."""
        self._runtime_failure = failure
        self.is_terminating = True
        self.core.is_closing = True
        lost = [effect[1] for effect in (*self.carrying, *self.core.effects) if effect[0] == "failed"]
        for task in (*self.core.take_all(), *lost):
            self.finish(task, frames.SESSION_CLOSED, failure)
        self.close_initializer()
        self.is_opened.set()
        self.has_ended.set()

    def close_initializer(self) -> None:
        """No worker will need it any more."""
        if self.initializer is not None:
            self.initializer.close()
