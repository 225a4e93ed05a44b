"""References to objects, as user code holds them, and how this process counts those that it was handed.

A reference keeps its object alive by keeping a *hold*. In the process of the owner the hold is the owner's own entry
for the object, so that Python's reference counts are the reference counts. In any other process it is a `Held`: one
per object, shared by all references to it there. When the last of them dies, the owner is told how many *hand-overs*
that settles: every message that hands a reference over counts one, on both sides, so a release and a hand-over that
cross on their way cannot be confused.

A reference inside a value is found by the pickler asking it: whoever encodes a value collects them (`collecting`).
One that is pickled by somebody else is not counted; it works as long as the object lives, and says so when it does not.

Not here: what an object is. `client` is set by the session, and answers what references are asked.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Generator, Iterable
    from typing import Any

OF_WORKER_BITS = 40
"""An object's number is that of the worker that made it, or 0, and this many bits of a count."""

# Never the same twice in a process, as references may outlive the session that they belong to.
object_ids = itertools.count(1)
worker_ids = itertools.count(1)

client: Any = None
"""What this process submits tasks by, see `session.default_client`; None before the first task, actor or object."""

make_client: Callable[[], Any] = None  # type: ignore[assignment]  # set by `session`

find_reference: Callable[[int], Any] = None  # type: ignore[assignment]  # likewise: its name, in pickles, leads there


class _Collector(threading.local):
    references: list[Any] | None = None


_collector = _Collector()


class Resolving(threading.local):
    """In the owner's process: the entries that the value which this thread unpickles refers to, by number."""

    entries: dict[int, Any] | None = None


resolving = Resolving()


def collected(encode: Callable[[Any], Any], value: Any) -> tuple[Any, list[Any]]:
    """(what `encode` makes of the value, the references that it has pickled). Nests: a reducer may submit a task."""
    before = _collector.references
    found: list[Any] = []
    _collector.references = found
    try:
        return encode(value), found
    finally:
        _collector.references = before


class Held:
    """An object of another process's, while this process has references to it. `count`: the hand-overs."""

    __slots__ = ("__weakref__", "count", "id", "_released")

    def __init__(self, object_id: int, released: deque[tuple[int, int]]) -> None:
        self.id = object_id
        self.count = 0
        self._released = released

    def __del__(self) -> None:
        if self.count:
            self._released.append((self.id, self.count))


class Unshared:
    """The hold of a reference whose object its owner does not know yet; what `share` gives takes its place as soon as
    somebody else is to see the reference."""

    __slots__ = ()

    def share(self) -> Held:
        raise NotImplementedError


class HeldTable:
    """Everything that this process was handed and still refers to."""

    def __init__(self) -> None:
        self.released: deque[tuple[int, int]] = deque()
        self._held: dict[int, weakref.ref[Held]] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is something that is, or is about to be, released."""
        return bool(self._held or self.released)

    def handed_over(self, object_ids: Iterable[int]) -> list[Held]:
        """A message came that counts one for each; what is returned keeps them until references are made."""
        with self._lock:
            found = [self._need(object_id) for object_id in object_ids]
            for held in found:
                held.count += 1
        return found

    def made(self, object_id: int) -> Held:
        """A reference that this process makes itself, by submitting something."""
        held = Held(object_id, self.released)
        held.count = 1
        self._held[object_id] = weakref.ref(held)
        return held

    def find(self, object_id: int) -> Held:
        """For a reference that is unpickled here; one that nobody handed over does not count."""
        with self._lock:
            return self._need(object_id)

    def _need(self, object_id: int) -> Held:
        reference = self._held.get(object_id)
        held = reference() if reference is not None else None
        if held is None:
            held = Held(object_id, self.released)
            self._held[object_id] = weakref.ref(held)
        return held

    def take_released(self) -> list[tuple[int, int]]:
        """What is to be told to the owner: (object, hand-overs settled)."""
        released = self.released
        taken = []
        while released:
            entry = released.popleft()
            taken.append(entry)
            reference = self._held.get(entry[0])
            if reference is not None and reference() is None:
                self._held.pop(entry[0], None)
        return taken


class ObjectRef:
    """A reference to the result of a task, or to a value that was `put`: there already, or still to come.

    Pass it as an argument (the task then gets the value, once it is there), put it into lists and dicts (there it stays
    a reference), return it, `await` it. The object lives as long as a reference to it does, in whatever process, or a
    task needs it.

    >>> import scaleout
    >>> ref = scaleout.put([1, 2, 3])
    >>> scaleout.get(ref)
    [1, 2, 3]
    """

    __slots__ = ("__weakref__", "_hold", "_id")

    def __init__(self, object_id: int, hold: Any) -> None:
        self._id = object_id
        self._hold = hold

    def hex(self) -> str:
        """The object's number, as it stands in messages."""
        return f"{self._id:016x}"

    def future(self) -> concurrent.futures.Future[Any]:
        """A `concurrent.futures.Future` of the value: for `wait`, `as_completed`, callbacks."""
        future: concurrent.futures.Future[Any] = need_client().future_of(self)
        return future

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self.future()).__await__()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __reduce__(self) -> Any:
        hold = self._hold
        if isinstance(hold, Unshared):
            self._hold = hold.share()
        collect(self)
        return find_reference, (self._id,)

    def __repr__(self) -> str:
        state = client.describe(self) if client is not None else "of a session that has ended"
        return f"ObjectRef({self.hex()}, {state})"


def collect(reference: Any) -> None:
    """A reference, or something like it, is being pickled."""
    found = _collector.references
    if found is not None:
        found.append(reference)
    else:
        need_client().exported(reference)


def need_client() -> Any:
    """This process's client; made at the first call."""
    return client if client is not None else make_client()


class Dependency:
    """Stands in pickled arguments for a reference that its value replaces: the position among the dependencies."""

    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position = position

    def __reduce__(self) -> Any:
        return Dependency, (self.position,)


def with_values(arguments: Any, values: list[Any]) -> Any:
    """The (args, kwargs) of a call with each top-level `Dependency` replaced."""
    args, kwargs = arguments
    args = [values[value.position] if type(value) is Dependency else value for value in args]
    kwargs = {name: values[value.position] if type(value) is Dependency else value for name, value in kwargs.items()}
    return args, kwargs
