"""Large results that stay on the machine where they were made, and how they are made again when that is lost.

What can be made again stays where it was made: the one result of a task that may be retried. Its owner keeps a *recipe*
for it, the task with what it depends on, as long as somebody needs the value and this process does not have it. All
else (values that were put, answers of actors, items of streams) is sent to the owner as it is made, and so is
everything when recipes have become too many. So whatever machine is lost, each value is either here or made again.

A recipe refers to what its task depended on by the recipe of that, if it has one: those values go when nobody refers to
them, and if they are needed again they are made again, before.

Everything here runs on the reactor thread, except `let_stay` and what says so.
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.node import ledger
from scaleout._runtime.node.history import now_ns
from scaleout._runtime.node.ledger import Entry, Envelope
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.core.tasks import Task
    from scaleout._runtime.node.stored import StoredObject

    Owner = Any  # node.owner's, which is put together from this and others

RECIPE_BYTES = 1000
"""What a recipe takes besides its payload, about."""


class Recipe:
    """How a value is made: a task. `entry()` is the object that it was made for, as long as that lives."""

    __slots__ = ("__weakref__", "_lineage", "_size_bytes", "dependencies", "entry", "task")

    def __init__(self, lineage: Lineage, task: Task, entry: Entry) -> None:
        envelope: Envelope | None = task.envelope
        self._lineage = lineage
        self.entry = weakref.ref(entry)
        self.dependencies: tuple[Entry | Recipe, ...] = ()
        self.task = task = task.again(None)
        task.envelope = None
        if envelope is not None:
            self.dependencies = tuple(found.recipe or found for found in envelope.dependencies)
            task.envelope = Envelope((), envelope.references, envelope.returns, envelope.caller)
        kept = sum(found.size_bytes for found in self.dependencies if type(found) is Entry)
        arguments = sum(extent[2] for extent in task.stored or ())
        self._size_bytes = RECIPE_BYTES + len(task.payload) + arguments + kept
        lineage.size_bytes += self._size_bytes
        lineage.callables.use(task.callable)
        if task.stored is not None:
            lineage.objects.hold_now(task.stored)

    def __del__(self) -> None:
        """Any thread."""
        self._lineage.freed.append((self._size_bytes, self.task.callable))
        if self.task.stored is not None:
            self._lineage.objects.release(self.task.stored)


class Lineage:
    """See the module's docstring."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.objects = owner.objects
        self.callables = owner.callables
        self.is_used = bool(owner.keeper.has_places)  # there are other machines
        self.size_bytes = 0  # of all recipes, but for those in `freed`
        self.freed: deque[tuple[int, Any]] = deque()
        self._wanted: weakref.WeakSet[Entry] = weakref.WeakSet()
        self._staying: weakref.WeakSet[Entry] = weakref.WeakSet()
        self._moving: dict[tuple[StoredObject, Any], list[tuple[Entry, Callable[[Entry], object]]]] = {}
        self._leaving: weakref.WeakSet[Any] = weakref.WeakSet()  # machines
        self.remade = 0  # values, so far

    def let_stay(self, task: Task) -> None:
        """Any thread, before the task is submitted: have a large result stay where it is made, if that may be.

        Not if the task has a limit of time or exceptions that are retried, which a recipe knows nothing of.
        """
        retries = task.group.core.max_retries if task.max_retries is None else task.max_retries
        arguments = len(task.payload) + sum(extent[2] for extent in task.stored or ())
        if (
            type(task.sink) is Entry
            and retries
            and not task.group.keeps_order
            and self.size_bytes + arguments < limits.LINEAGE_BYTES
        ):
            task.how |= frames.MAY_STAY

    def stays(self, task: Task, stored: StoredObject, place: Any) -> None:
        """The result of this task stayed where it was made."""
        entry: Entry = task.sink
        if entry.status == ledger.PENDING:  # else it was cancelled in the meantime
            stored.places = (place,)
            self._owner.keeper.mirrors.stay(stored.extents)
            entry.recipe = Recipe(self, task, entry)
            self._staying.add(entry)
            if place in self._leaving or self.size_bytes > limits.LINEAGE_BYTES:
                entry.when_there(partial(self._look, None, _nothing))

    def forget_recipes(self) -> None:
        """Those in `freed`."""
        while self.freed:
            size_bytes, record = self.freed.popleft()
            self.size_bytes -= size_bytes
            self.callables.release(record)

    # -- bringing values here, or from machine to machine ----------------------------------------

    def when_here(self, entry: Entry, function: Callable[[Entry], object]) -> None:
        """Call it with the entry when that has a value and the bytes of it are here, or has none for good."""
        self.when_at(None, entry, function)

    def when_at(self, place: Any, entry: Entry, function: Callable[[Entry], object]) -> None:
        """The same when they are on another machine; or here, if they cannot come there."""
        if entry.status == ledger.PENDING:
            entry.when_there(partial(self._look, place, function))
        elif not entry.places or place in entry.places:
            function(entry)
        else:
            self._move(entry, entry.payload, place, function)

    def _look(self, place: Any, function: Callable[[Entry], object], entry: Entry) -> None:
        self.when_at(place, entry, function)

    def want(self, entries: list[Entry]) -> None:
        """Somebody is about to wait for these: all are brought here, each as soon as it is there."""
        for entry in entries:
            if entry not in self._wanted:  # who asks in a loop leaves nothing behind
                self._wanted.add(entry)
                self.when_here(entry, self._wanted.discard)

    def _move(self, entry: Entry, stored: StoredObject, place: Any, function: Callable[[Entry], object]) -> None:
        waiting = self._moving.get((stored, place))
        if waiting is not None:
            waiting.append((entry, function))
        else:
            self._moving[stored, place] = [(entry, function)]
            moved = partial(self._moved, stored, place)
            self._owner.keeper.mirrors.transfer(place, stored.extents, stored.places, moved)

    def _moved(self, stored: StoredObject, place: Any, is_there: bool) -> None:
        waiting = self._moving.pop((stored, place))
        entry = waiting[0][0]
        if not is_there:
            if place is None and entry.payload is stored:
                places = stored.places
                self._lose([entry])
                for other in places:
                    self._submit_again(other)
            place = None
        elif place is not None and stored.places:
            stored.places = (*stored.places, place)
        elif place is None:
            stored.places = ()
            if entry.payload is stored:
                entry.recipe = None
                self._staying.discard(entry)
        for entry, function in waiting:
            self.when_at(place, entry, function)

    # -- machines that are lost ------------------------------------------------------------------

    def leaves(self, place: Any) -> None:
        """The machine will be gone some time: what stays there is brought here while it can be."""
        self._leaving.add(place)
        for entry in list(self._staying):
            if entry.places and all(each in self._leaving for each in entry.places):
                self.when_here(entry, _nothing)

    def place_lost(self, place: Any) -> None:
        """The machine is gone, its workers are buried: what was only there is made again."""
        lost = []
        for entry in list(self._staying):
            if place in entry.places:
                others = tuple(other for other in entry.places if other is not place)
                if others:
                    entry.payload.places = others
                else:  # to threads that read it, without places it would be here
                    lost.append(entry)
        self._lose(lost)
        self._submit_again(place)

    def _submit_again(self, place: Any) -> None:
        """Tasks that were to run there: some need what was lost."""
        for group in list(self._owner.groups):
            if group.core.placed:
                for task in group.core.place_lost(place):
                    self._owner.clerk.submit(task)

    def _lose(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.lose()
        for entry in entries:
            if entry.status == ledger.PENDING and entry.source is None:
                self._make(entry)

    def _make(self, entry: Entry) -> None:
        """Submit the task of the entry's recipe, after those of what that depends on and nobody has any more."""
        missing = [entry]
        while missing:
            wanted = missing.pop()
            recipe, wanted.recipe = wanted.recipe, None
            self._staying.discard(wanted)
            dependencies = []
            for found in recipe.dependencies:
                if type(found) is Recipe:
                    living = found.entry()
                    if living is None:
                        living = Entry(self._owner.clerk.new_id())
                        living.recipe = found
                        found.entry = weakref.ref(living)
                        missing.append(living)
                    found = living
                dependencies.append(found)
            self._submit(recipe.task, wanted, tuple(dependencies))

    def _submit(self, made_by: Task, entry: Entry, dependencies: tuple[Entry, ...]) -> None:
        self.remade += 1
        task = made_by.again(entry)
        task.submitted_ns = now_ns()
        entry.source = task
        if task.stored is not None:
            self.objects.hold_now(task.stored)
        if dependencies or task.envelope is not None:
            before: Envelope = task.envelope
            task.envelope = Envelope(dependencies, before.references, before.returns, before.caller)
            self._owner.clerk.submit(task)
        else:
            self._owner.clerk.enqueue_plain(task)


def _nothing(entry: Entry) -> None:
    """It is enough that it is here."""
