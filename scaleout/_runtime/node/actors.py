"""The actors of an owner: who holds them, what they are called, and what is said when they are dead.

A *record* lives as long as somebody holds a handle, exactly as an `Entry` does (see `ledger`); when the last one is
gone, the actor ends after the calls that were made. A detached actor is held by its name.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial

from scaleout._runtime.base import this_process
from scaleout._runtime.base.signals import exit_text
from scaleout._runtime.core.mailbox import DEAD, Mailbox
from scaleout._runtime.core.tasks import Profile, Task
from scaleout._runtime.node.group import WorkerGroup
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.node.callables import CallableRecord

    Owner = Any  # node.owner's, which is put together from this and others


class Fate:
    """What is said of an actor, also when nobody holds it any more. `options` are those of `session.actor_options`."""

    __slots__ = ("cause", "death", "group", "options")

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.group: WorkerGroup = None  # type: ignore[assignment]
        self.death = ""
        self.cause: Any = None  # what its constructor raised, as its worker described it

    def facts(self, message: str = "", is_restarting: bool = False) -> dict[str, Any]:
        """The payload of a call that fails with it."""
        class_name, name = self.options["class_name"], self.options["name"]
        label = f"the actor {class_name}" + (f" named {name!r}" if name else "")
        return {
            "message": f"{label} {message or self.death or 'is dead'}",
            "class": class_name,
            "name": name,
            "cause": self.cause,
            "is_restarting": is_restarting,
        }

    keeps_objects = False

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """The sink of its constructor's call. On the reactor thread."""
        self.begun("constructor", status, payload)

    def begun(self, by: str, status: int, payload: Any) -> None:
        """What starts the actor has ended; if it failed, the actor is dead."""
        if status == frames.OK or self.group.core.state == DEAD:
            return
        if not self.death:
            self.death = f"is dead: its {by} raised an exception"
        if isinstance(payload, tuple):
            self.cause = payload
        self.group.core.creation_failed()


class Restored:
    """The sink of the call that brings the last checkpoint back."""

    keeps_objects = False

    def __init__(self, fate: Fate) -> None:
        self._fate = fate

    def deliver(self, index: int, status: int, payload: Any) -> None:
        self._fate.begun("load_checkpoint", status, payload)


class ActorRecord:
    """One actor, as long as somebody holds a handle."""

    __slots__ = ("__weakref__", "_owner", "_pid", "fate", "group", "id")

    contained: tuple[Any, ...] = ()

    def __init__(self, actor_id: int, options: dict[str, Any], owner: Owner) -> None:
        self.id = actor_id
        self.fate = Fate(options)
        self._owner = owner
        self._pid = this_process.pid
        self.group: WorkerGroup = None  # type: ignore[assignment]

    @property
    def options(self) -> dict[str, Any]:
        return self.fate.options

    @property
    def death(self) -> str:
        """How it came to be dead; empty while it is not."""
        return self.fate.death

    def __del__(self) -> None:
        if this_process is None or partial is None:  # the interpreter exits, and modules are gone
            return
        if self._pid == this_process.pid and self.group is not None and not self._owner.reactor.is_over:
            self._owner.reactor.post(partial(self._owner.close_group, self.group))


class Actors:
    """See the module's docstring. Methods may be called in any thread, unless they say otherwise."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._lock = threading.Lock()
        self._named: weakref.WeakValueDictionary[tuple[str, str], ActorRecord] = weakref.WeakValueDictionary()
        self._detached: set[ActorRecord] = set()
        self.all: weakref.WeakSet[ActorRecord] = weakref.WeakSet()

    def create(
        self, record: ActorRecord, hello: dict[str, Any], callable_record: CallableRecord, arguments: Any
    ) -> WorkerGroup | None:
        """Start an actor; `arguments`: (how, payload, needs, extents, envelope) of its constructor's call. None if its
        name is taken."""
        options = record.options
        owner = self._owner
        how, payload, needs, stored, envelope = arguments
        creation = Task(None, callable_record, how, payload, needs, stored, record.fate, 0, Profile())
        creation.envelope = envelope
        creation.max_retries = -1
        if owner.slots is not None:
            owner.slots.check(options["shape"])
        core = Mailbox(
            creation,
            restarts=options["max_restarts"],
            task_retries=options["max_task_retries"],
            keeps_log=options["keeps_log"],
            window=options["window"],
            is_concurrent=options["of_worker"]["is_async"] or options["of_worker"]["concurrency"] > 1,
        )
        group = WorkerGroup(core, {**hello, "actor": options["of_worker"]}, owner.objects)
        creation.group = group
        group.keeps_order = True
        group.shape = options["shape"]
        group.actor = record.fate
        record.fate.group = group
        name = options["name"]
        if name:
            with self._lock:
                if self.find(options["namespace"], name) is not None:
                    return None
                self._named[options["namespace"], name] = record
                if options["is_detached"]:
                    self._detached.add(record)
        record.group = group
        self.all.add(record)
        if group.shape:
            core.size = 0
            owner.reactor.post(partial(self._await_resources, group))
        if envelope is not None and envelope.dependencies:
            owner.reactor.post(partial(owner.clerk.await_constructor, creation))
        owner.announce_group(group)
        return group

    def _await_resources(self, group: WorkerGroup) -> None:
        """On the reactor thread."""
        if self._owner.slots is not None:
            self._owner.slots.actors.append(group)

    def find(self, namespace: str, name: str) -> ActorRecord | None:
        """The living actor of this name."""
        found = self._named.get((namespace, name))
        if found is None or found.death or found.group is None or found.group.core.state == DEAD:
            return None
        return found

    def names(self) -> list[tuple[str, str]]:
        return sorted(key for key in list(self._named) if self.find(*key) is not None)

    def kill(self, record: ActorRecord, may_restart: bool) -> None:
        """Its name is free at once, and what this thread calls later comes after that."""
        if not record.death and not may_restart:
            record.fate.death = "is dead: it was killed by scaleout.kill"
        record.group.lent = ()
        self._owner.reactor.post(partial(record.group.core.killed, may_restart))

    # -- on the reactor thread: effects of a mailbox -----------------------------------------------

    def dead(self, group: WorkerGroup, tasks: list[Task]) -> None:
        fate = group.actor
        if not fate.death:
            fate.death = f"is dead: {self._story(group)}"
        self._detached = {record for record in self._detached if record.fate is not fate}
        facts = fate.facts()
        for task in tasks:
            group.finish(task, frames.ACTOR_DIED, facts)
        slots = self._owner.slots
        if slots is not None and group in slots.actors:
            slots.actors.remove(group)
        self._owner.reactor.post(partial(self._owner.close_group, group))

    def lost(self, group: WorkerGroup, tasks: list[Task]) -> None:
        """Calls that had begun when the process died, of an actor that is started again."""
        facts = self.facts_of_lost_call(group)
        for task in tasks:
            group.finish(task, frames.ACTOR_DIED, facts)

    def facts_of_lost_call(self, group: WorkerGroup) -> dict[str, Any]:
        """What its caller is told."""
        fate: Fate = group.actor
        if group.core.state == DEAD:
            return fate.facts()
        story = f"died while it ran this call, and is started again; {self._story(group)}"
        return fate.facts(story, is_restarting=True)

    def _story(self, group: WorkerGroup) -> str:
        if group.failure is not None and group.failure[0] == "refused":
            return f"no process could be started for it: {group.failure[1]}"
        peer = group.last_peer
        if peer is None:
            return "it ended"
        return f"its process (pid {peer.pid}) ended with {exit_text(peer.exitcode)}"
