"""The objects of an owner: results of tasks that are there or still to come, and values that were put.

An *entry* lives as long as somebody needs the object, and that is exactly as long as Python keeps it: references in
this process hold it, a worker that was handed references holds it through `Holdings`, a task holds what it depends on,
an object what references its value contains. With the last of them it dies, and its ranges go back. So the reference
counts of the owner are Python's own; only what other processes hold is counted, by hand-overs (see
`base.references`).

    PENDING --deliver--> a status of wire.frames, for good
       ^------lose------ OK, of a value that was on another machine alone: it is made again

Everything here runs on the reactor thread unless it says "any thread".
"""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock

from scaleout._runtime.base.latch import acquire_within
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

PENDING = -1

_making_locks = threading.Lock()


class Entry:
    """One object. `payload` is bytes, a StoredObject, or what describes a failure (see `client.outcomes`)."""

    __slots__ = (
        "__weakref__",
        "call",
        "contained",
        "dependents",
        "id",
        "locks",
        "payload",
        "recipe",
        "source",
        "status",
    )

    keeps_objects = True

    def __init__(self, object_id: int) -> None:
        self.id = object_id
        self.status = PENDING
        self.payload: Any = None
        self.contained: tuple[Any, ...] = ()  # what its value refers to: entries, records of actors
        self.locks: Any = ()  # of threads that wait
        self.dependents: Any = ()  # called when it is there
        self.source: Any = None  # the task that makes it, until it has ended
        self.recipe: Any = None  # how its value is made again, if that may be lost: see node.lineage
        self.call: Any = None  # a direct call (see node.direct) whose answer nobody has read yet

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """It is there, or never will be. Also the interface of a task's sink."""
        self.settle(status, payload)
        if self.dependents:
            self.tell()

    def settle(self, status: int, payload: Any) -> None:
        """Any thread: the same, without telling those that are called on the reactor thread: post `tell` if there are
        any by now. (Who comes later tells itself.)"""
        if self.status != PENDING:
            return  # cancelled, or the task ran again
        self.source = self.call = None
        self.payload = payload
        self.status = status
        locks = self.locks
        while locks:
            locks.pop().release()

    def lose(self) -> None:
        """Its value is gone, and will be made again. Any thread that reads `payload` and then `status` sees that."""
        self.status = PENDING
        self.payload = None
        self.contained = ()

    @property
    def places(self) -> tuple[Any, ...]:
        """The machines that have its value, if this one has not."""
        return places_of(self.payload)

    def tell(self) -> None:
        dependents, self.dependents = self.dependents, ()
        for function in dependents:
            function(self)

    def when_there(self, function: Callable[[Entry], None]) -> None:
        """Call it with the entry; at once if it is there."""
        if self.dependents == ():
            self.dependents = [function]
        else:
            self.dependents.append(function)
        if self.status != PENDING:
            self.tell()

    def no_longer(self, function: Callable[[Entry], None]) -> None:
        """Whoever waits for many things has seen enough."""
        if self.dependents:
            try:
                self.dependents.remove(function)
            except ValueError:
                pass

    def wait(self, deadline: float | None, check: Callable[[], None]) -> bool:
        """Any thread: until it is there; False if the deadline comes first. `check()` may raise, before each wait."""
        while self.status == PENDING:
            lock = allocate_lock()
            lock.acquire()
            if type(self.locks) is tuple:
                with _making_locks:
                    if type(self.locks) is tuple:
                        self.locks = []
            locks = self.locks
            try:
                locks.append(lock)
                if self.status != PENDING:
                    break
                check()
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if not acquire_within(lock, left):
                    return self.status != PENDING
            finally:
                try:
                    locks.remove(lock)
                except ValueError:
                    pass
        return True

    @property
    def size_bytes(self) -> int:
        """Of the value, pickled."""
        payload = self.payload
        if self.status != frames.OK:
            return 0
        return len(payload) if type(payload) is bytes else int(payload.size_bytes)


def places_of(payload: Any) -> tuple[Any, ...]:
    """See `Entry.places`."""
    places: tuple[Any, ...] = getattr(payload, "places", ())
    return places


class Envelope:
    """What a task has beyond a plain call: values it depends on, references in its arguments, several results."""

    __slots__ = ("caller", "dependencies", "references", "returns", "waiting")

    def __init__(
        self, dependencies: tuple[Entry, ...], references: tuple[Any, ...], returns: int = 1, caller: Any = 0
    ) -> None:
        self.dependencies = dependencies
        self.references = references
        self.returns = returns
        self.caller = (
            caller  # the worker that it comes from, 0: this process; with a channel of its calls, if it has one
        )
        self.waiting = 0  # dependencies that are not there yet

    def failed_dependency(self) -> Entry | None:
        """The first that will never have a value: the task does not run then, and fails as it did."""
        for entry in self.dependencies:
            if entry.status not in (PENDING, frames.OK):
                return entry
        return None


class Holdings:
    """What one worker was handed references to, and how often."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def hand_over(self, entries: Iterable[Any]) -> list[int]:
        """A message that says so is about to be sent; their numbers, for it."""
        held = self._entries
        ids = []
        for entry in entries:
            found = held.get(entry.id)
            if found is None:
                held[entry.id] = [entry, 1]
            else:
                found[1] += 1
            ids.append(entry.id)
        return ids

    def find(self, object_id: int) -> Any:
        """An entry, an actor's record, or a stream; None if the worker was not handed it."""
        found = self._entries.get(object_id)
        return None if found is None else found[0]

    def settle(self, object_id: int, count: int) -> None:
        """The worker has no references left from so many hand-overs."""
        found = self._entries.get(object_id)
        if found is not None:
            found[1] -= count
            if found[1] <= 0:
                del self._entries[object_id]

    def clear(self) -> None:
        """The worker is dead."""
        self._entries.clear()


class SeveralResults:
    """The sink of a task with a fixed number of results: items come one by one, then the end.

    A task that runs again may send items again: the first counts.
    """

    __slots__ = ("entries",)

    keeps_objects = True

    def __init__(self, entries: tuple[Entry, ...]) -> None:
        self.entries = entries

    @property
    def source(self) -> Any:
        """The task that makes them."""
        return next((entry.source for entry in self.entries if entry.source is not None), None)

    @source.setter
    def source(self, task: Any) -> None:
        for entry in self.entries:
            if entry.status == PENDING:
                entry.source = task

    def item(self, position: int, status: int, payload: Any, contained: tuple[Entry, ...]) -> None:
        entry = self.entries[position]
        if entry.status == PENDING:
            entry.contained = contained
            entry.deliver(0, status, payload)

    def deliver(self, index: int, status: int, payload: Any) -> None:
        for entry in self.entries:
            if status != frames.OK or entry.status == PENDING:
                entry.deliver(0, status, payload)


class Stream:
    """The sink of a task that streams: `next_entry` of the consumer's side gets an entry per item, and the end.

    `on_taken(count)` is told how far the consumer is, so that the task may go on.
    """

    __slots__ = ("_end", "_entries", "_made", "_new_id", "_taken", "id", "on_taken", "source", "__weakref__")

    keeps_objects = True

    def __init__(self, new_id: Callable[[], int]) -> None:
        self.id = 0
        self._entries: dict[int, Entry] = {}  # by position, those that are not taken yet
        self._made = 0
        self._taken = 0
        self._new_id = new_id
        self._end: tuple[int, Any] | None = None
        self.on_taken: Callable[[int], None] | None = None
        self.source: Any = None

    def _entry_at(self, position: int) -> Entry | None:
        """The entry for a position, made when either side first comes to it; None beyond the end."""
        while self._made <= position:
            if self._end is not None:
                return None
            self._entries[self._made] = Entry(self._new_id())
            self._made += 1
        return self._entries.get(position)

    def take(self, position: int) -> Entry | None:
        """The consumer comes to this position: its entry, which may be pending; None if the stream has ended before."""
        entry = self._entry_at(position)
        if entry is not None:
            self._entries.pop(position, None)
            self._taken = max(self._taken, position + 1)
            if entry.status == PENDING:
                self._entries[position] = entry  # to be filled; the consumer has it already
            if self.on_taken is not None:
                self.on_taken(self._taken)
        return entry

    def item(self, position: int, status: int, payload: Any, contained: tuple[Entry, ...]) -> None:
        if position < self._taken and self.on_taken is not None and self.source is not None:
            self.on_taken(self._taken)  # if the task runs again, its worker does not know how far the consumer is
        entry = self._entry_at(position) if position >= self._taken or position in self._entries else None
        if entry is not None and entry.status == PENDING:
            if position < self._taken:
                self._entries.pop(position, None)
            entry.contained = contained
            entry.deliver(0, status, payload)

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """The task has ended: what the consumer waits for beyond the last item is the end, or the failure."""
        self.source = None
        self._end = (status, payload)
        for position in sorted(self._entries):
            entry = self._entries[position]
            if entry.status == PENDING:
                if status == frames.OK:
                    entry.deliver(0, frames.STREAM_ENDED, None)
                else:
                    entry.deliver(0, status, payload)
                    status = frames.OK  # told once; what follows is the end
        if status != frames.OK:  # nobody waits: the next one who comes is told
            self._end = None
            last = self._entry_at(self._made)
            self._end = (frames.OK, None)
            if last is not None:
                last.deliver(0, status, payload)
        else:
            self._end = (frames.OK, None)


class StreamHold:
    """A stream whose consumer is in a worker: as long as the worker holds this, somebody may take more of it."""

    __slots__ = ("__weakref__", "id", "on_dropped", "stream")

    def __init__(self, stream_id: int, new_id: Callable[[], int]) -> None:
        self.id = stream_id
        self.stream = Stream(new_id)
        self.stream.id = stream_id
        self.on_dropped: Callable[[Stream], None] | None = None

    def __del__(self) -> None:
        if self.on_dropped is not None:
            self.on_dropped(self.stream)
