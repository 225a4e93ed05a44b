"""The owner's side of `__main__`: what stands behind the names that cross by name.

A *definition* is one global of a by-value module (`__main__`, and modules that workers cannot import), pickled once
and sent to a worker before the first payload that needs it. A payload's needs are the transitive ids: the global
itself, what the code in it reads when it runs (bound to its name before), and what it holds (loaded before it).

Rebinding is found by comparing with `is`; a definition's value is therefore kept alive until it is superseded. Nothing
counts references: a `Needs` holds the definitions it names, the book holds the newest of each name, and one that nobody
holds any more dies and leaves its id in `forgotten`.
"""

from __future__ import annotations

import builtins
import copyreg
import itertools
import operator
import sys
import threading
import weakref
from collections import deque
from types import BuiltinFunctionType, FunctionType, ModuleType

from scaleout._runtime.pickling import rebuild, reducers
from scaleout._runtime.pickling.by_value import SYSTEM_MODULES, ByValuePickler, dump_by_value, name_of
from scaleout._runtime.pickling.names import NamesInStreams, module_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from scaleout._runtime.pickling.by_value import Key
    from scaleout._runtime.pickling.stream import Encoded, Stream

MAX_UNIONS = 256
"""Cached combinations of names; each is a tuple of ids, and programs use few."""

_MISSING = object()
_BUILTINS = vars(builtins)


class Definition:
    """A global as last shipped. `reads` are the names its code uses; `holds` the definitions its stream refers to."""

    __slots__ = ("__weakref__", "_forgotten", "encoded", "error", "holds", "id", "key", "reads", "value")

    encoded: Encoded

    def __init__(self, definition_id: int, key: Key, value: Any, forgotten: deque[int]) -> None:
        self.id = definition_id
        self.key = key
        self.value = value
        self.error: Exception | None = None
        self.reads: tuple[Key, ...] = ()
        self.holds: tuple[Definition, ...] = ()
        self._forgotten = forgotten

    def __del__(self) -> None:
        self._forgotten.append(self.id)


class Needs(tuple[int, ...]):
    """Ids of definitions, in the order to send and bind them. Of two for the same name the later one is to be bound."""

    held: dict[int, Definition]
    bound: dict[Key, Definition]

    @classmethod
    def of(cls, held: dict[int, Definition], bound: dict[Key, Definition]) -> Needs:
        last = {definition.id for definition in bound.values()}
        needs = cls((*(held_id for held_id in held if held_id not in last), *sorted(last)))
        needs.held = held
        needs.bound = bound
        return needs


class _Closure:
    """A name's needs, and what must still hold for them to be true."""

    __slots__ = ("builtins", "checks", "error", "module", "names_count", "needs")

    def __init__(self, root: Key, bound: dict[Key, Definition], held: dict[int, Definition], absent: list[Key]) -> None:
        self.module = sys.modules.get(root[0])
        self.error = bound[root].error
        self.needs = Needs.of(held, bound)
        self.checks = [(_dict_of(key[0]), key[1], definition.value) for key, definition in bound.items()]
        self.checks += [(_dict_of(key[0]), key[1], _MISSING) for key in absent if key[1] not in _BUILTINS]
        # A builtin may be shadowed by a global later: looked for only when its module has more names than before.
        self.builtins = [key for key in absent if key[1] in _BUILTINS]
        self.names_count = len(_dict_of(root[0]))

    def holds_true(self) -> bool:
        for names, name, value in self.checks:
            if names.get(name, _MISSING) is not value:
                return False
        module = self.module
        if module is not None and len(module.__dict__) != self.names_count:
            count = len(module.__dict__)
            if any(name in _dict_of(module_name) for module_name, name in self.builtins):
                return False
            self.names_count = count
        return True


def _dict_of(module_name: str) -> dict[str, Any]:
    return sys.modules if module_name == SYSTEM_MODULES else module_dict(module_name)


class DefinitionBook(NamesInStreams):
    """All definitions of one owner. Any thread may ask; user reducers may ask again from within."""

    takes_nameless = True

    def __init__(self, first_id: int = 1) -> None:
        super().__init__()
        self.forgotten: deque[int] = deque()
        """Ids that no payload can need any more: workers may drop them. Who tells them so takes them out (popleft)."""
        self._ids = itertools.count(first_id)
        self._lock = threading.RLock()
        self._definitions: dict[Key, Definition] = {}
        self._closures: dict[Key, _Closure] = {}
        self._unions: dict[tuple[Key, ...], tuple[list[Needs], Needs]] = {}
        self._by_id: weakref.WeakValueDictionary[int, Definition] = weakref.WeakValueDictionary()

    def require(self, key: Key, is_strict: bool = True) -> Needs:
        """What a worker must have to find this name, (module, global); ships again what was rebound.

        Raises AttributeError if there is no such global, and what pickling raises if it cannot be sent. Not strict:
        it is then replaced by a placeholder that raises when it is used.
        """
        closure = self._closures.get(key)
        if closure is None or closure.module is not sys.modules.get(key[0]) or not closure.holds_true():
            closure = self._refresh(key, is_strict)
        if closure.error is not None and is_strict:
            raise closure.error.with_traceback(None)
        return closure.needs

    def bytes_of(self, definition_id: int) -> Encoded:
        """A definition's stream and buffers. KeyError once it is forgotten."""
        return self._by_id[definition_id].encoded

    def join(self, *parts: tuple[int, ...]) -> Needs:
        """The needs of several payloads as one, which keeps their definitions as they did: a plain sum would not."""
        return self._union([], [part for part in parts if isinstance(part, Needs)])

    def needs_of_names(self, keys: Iterable[Key]) -> tuple[int, ...]:
        """The needs of a payload that a worker has pickled, by the names of ours in it."""
        return self._union([], [self.require(key, is_strict=False) for key in keys if key[1] in _dict_of(key[0])])

    def add_by_value_module(self, name: str) -> None:
        """From now on the names of this module travel like `__main__`'s."""
        with self._lock:
            if name in self.by_value_modules:
                return
            mark = name.encode()
            self.by_value_modules.add(name)
            self._key_by_head = {}
            # Code that reads the module must be looked at again; data is sent again only if it refers to the module.
            self._definitions = {
                key: definition
                for key, definition in self._definitions.items()
                if not isinstance(definition.value, (FunctionType, type, ModuleType))
                and not any(mark in chunk for chunk in definition.encoded.chunks)
            }
            self._closures = {}
            self._unions = {}

    # -- what the encoder asks -------------------------------------------------------------------------

    def keeps(self, module_name: str, name: str, value: Any) -> bool:
        return True

    def needs_of_stream(self, stream: bytes, reads: Iterable[Key] = ()) -> tuple[int, ...]:
        """The needs of all names of by-value modules in a stream, and of names that by-value code in it reads."""
        if not reads:
            key = self.only_key(stream)
            if key is not None:
                return self.require(key) if key else ()
        keys = self.keys_in(stream)
        if keys is None:
            # Some of these are only words in the data: what cannot be sent of them must not fail the payload.
            keys = [key for module in sorted(self.by_value_modules) for key in _keys_that_occur(stream, module)]
            parts = [self.require(key, is_strict=False) for key in keys]
        else:
            parts = [self.require(key) for key in keys]
        for key in reads:
            if key[1] in _dict_of(key[0]):
                keys.append(key)
                parts.append(self.require(key, is_strict=False))
        if len(parts) <= 1:
            return parts[0] if parts else ()
        cached = self._unions.get(tuple(keys))
        if cached is not None and all(map(operator.is_, cached[0], parts)):
            return cached[1]
        return self._union(keys, parts)

    def needs_after_miss(self, stream: bytes, module_name: str) -> tuple[int, ...]:
        """The needs of every name of a missing module, or one below it, that occurs in a stream at all.

        The modules travel by value from now on.
        """
        keys = []
        for name in list(sys.modules):
            if (name == module_name or name.startswith(module_name + ".")) and name.encode() in stream:
                self.add_by_value_module(name)
                keys += [(name, attribute) for attribute in list(_dict_of(name)) if attribute.encode() in stream]
        return self._union([], [self.require(key, is_strict=False) for key in keys])

    def _union(self, keys: Sequence[Key], parts: list[Needs]) -> Needs:
        held: dict[int, Definition] = {}
        bound: dict[Key, Definition] = {}
        for part in parts:
            held.update(part.held)
            bound.update(part.bound)
        union = Needs.of(held, bound)
        if keys:
            if len(self._unions) >= MAX_UNIONS:
                self._unions.clear()
            self._unions[tuple(keys)] = (parts, union)
        return union

    # -- making definitions ----------------------------------------------------------------------------

    def _refresh(self, root: Key, is_strict: bool) -> _Closure:
        """Look at everything below a name again. Nothing of it is kept unless all of it succeeds."""
        with self._lock:
            build = _Build(self)
            closure = build.closure_of(root, is_strict)
            self._by_id.update({definition.id: definition for definition in build.made.values()})
            self._definitions.update(build.made)
            self._closures[root] = closure
            return closure


class _Build:
    """The making of what is missing for one name. Made anew for each, so that an exception leaves nothing half done."""

    def __init__(self, book: DefinitionBook) -> None:
        self.book = book
        self.made: dict[Key, Definition] = {}
        self._under_way: list[Definition] = []
        self._shared: dict[int, Key] | None = None
        table = reducers.registered()
        self._extra = reducers.extra_reducers(table) if table else {}

    def closure_of(self, root: Key, is_strict: bool) -> _Closure:
        bound: dict[Key, Definition] = {}
        held: dict[int, Definition] = {}
        absent: list[Key] = []
        found = self.definition(root, is_strict)
        if found is None:
            raise AttributeError(f"module {root[0]!r} has no attribute {root[1]!r}")
        bound[root] = found
        pending = [found]
        while pending:
            definition = pending.pop()
            for key in definition.reads:
                if key not in bound:
                    found = self.definition(key)
                    if found is None:
                        absent.append(key)
                    else:
                        bound[key] = found
                        pending.append(found)
            for other in definition.holds:
                if other.id not in held:
                    held[other.id] = other
                    pending.append(other)
        return _Closure(root, bound, held, absent)

    def definition(self, key: Key, is_strict: bool = False) -> Definition | None:
        """The present definition of a name, None if there is none. Strict: what keeps it from being made is raised."""
        value = _dict_of(key[0]).get(key[1], _MISSING)
        if value is _MISSING:
            return None
        known = self.made.get(key) or self.book._definitions.get(key)
        if known is None or known.value is not value:
            known = self._make(key, value, is_strict)
        return known

    def _make(self, key: Key, value: Any, is_strict: bool) -> Definition:
        definition = Definition(next(self.book._ids), key, value, self.book.forgotten)
        self.made[key] = definition
        holds: dict[int, Definition] = {}
        root = value if self.shared.get(id(value)) == key else _MISSING

        def resolve(other_key: Key) -> int | None:
            other = self.definition(other_key)
            if other is None or self._would_be_endless(other):
                return None
            holds[other.id] = other
            return other.id

        def make(stream: Stream, with_cloudpickle: bool) -> ByValuePickler:
            return _DefinitionPickler(stream, self, with_cloudpickle, root, definition.id, resolve)

        self._under_way.append(definition)
        try:
            stream, pickler = dump_by_value(make, (*key, value))
        except Exception as error:
            if is_strict:
                raise
            definition.error = error
            stream, pickler = dump_by_value(make, (*key, _placeholder(key, value, error)))
            holds.clear()
        finally:
            self._under_way.pop()
        definition.encoded = stream.finish(())
        definition.reads = tuple(pickler.reads)
        definition.holds = tuple(holds.values())
        return definition

    def is_under_way(self, key: Key) -> bool:
        return any(definition.key == key for definition in self._under_way)

    def _would_be_endless(self, other: Definition) -> bool:
        """Whether a cycle closes here without a function or class: only those can be made before they are filled."""
        if other not in self._under_way:
            return False
        cycle = self._under_way[self._under_way.index(other) :]
        return not any(isinstance(definition.value, (FunctionType, type)) for definition in cycle)

    @property
    def shared(self) -> dict[int, Key]:
        """By identity, the globals that are one object wherever they are held: `SENTINEL` as a default and by name."""
        if self._shared is None:
            self._shared = {}
            for module_name in self.book.by_value_modules:
                for name, value in list(_dict_of(module_name).items()):
                    if self._has_identity(value) and (id(value) not in self._shared or _is_called(value, name)):
                        self._shared[id(value)] = (module_name, name)
        return self._shared

    def _has_identity(self, value: Any) -> bool:
        kind = type(value)
        if kind in _WITHOUT_IDENTITY:
            return False
        if kind is FunctionType or issubclass(kind, type):
            named = name_of(value)
            return named is None or named[0] in self.book.by_value_modules
        return True


class _DefinitionPickler(ByValuePickler):
    """One definition: the root by value, other globals by their ids, locks and their like made anew."""

    def __init__(
        self,
        stream: Stream,
        build: _Build,
        with_cloudpickle: bool,
        root: Any,
        root_id: int,
        resolve: Callable[[Key], int | None],
    ) -> None:
        self._build = build
        self._shared = build.shared
        self._root = root
        self._root_id = root_id
        self._resolve = resolve
        super().__init__(stream, build.book, build._extra, with_cloudpickle)

    def persistent_id(self, obj: Any) -> int | None:
        key = self._shared.get(id(obj))
        return None if key is None or obj is self._root else self._resolve(key)

    def definition_id_of(self, obj: Any) -> int:
        return self._root_id if obj is self._root else rebuild.NOT_A_DEFINITION

    def reduce_named(self, obj: Any, module_name: str, qualname: str) -> Any:
        if module_name not in self.policy.by_value_modules:
            return NotImplemented
        name, _, path = qualname.partition(".")
        if obj is self._root or not path or self._build.is_under_way((module_name, name)):
            return None
        return rebuild.get_path, (_dict_of(module_name)[name], path)

    def reduce_anew(self, obj: Any) -> Any:
        kind = type(obj)
        reduce = _ANEW.get(f"{kind.__module__}.{kind.__qualname__}")
        if reduce is not None:
            return reduce(obj)
        if issubclass(kind, threading.local):
            return rebuild.make_local, (kind,)
        if obj is self._root and _reduces_itself(kind) and kind not in self.dispatch_table:
            reduced = obj.__reduce__()
            if isinstance(reduced, str):  # it goes by its name, and here it is that name which is made
                return copyreg.__newobj__, (kind,), getattr(obj, "__dict__", None)  # type: ignore[attr-defined]
        return None


def _context_var(variable: Any) -> tuple[Any, ...]:
    context = sys.modules["contextvars"].Context()
    try:
        default: tuple[Any, ...] = (context.run(variable.get),)
    except LookupError:
        default = ()
    return rebuild.make_context_var, (variable.name, default)


_ANEW: dict[str, Callable[[Any], Any]] = {
    "_thread.lock": lambda lock: (threading.Lock, ()),
    "_thread.RLock": lambda lock: (threading.RLock, ()),
    "threading._RLock": lambda lock: (threading.RLock, ()),
    "threading.Event": lambda event: (rebuild.make_event, (event.is_set(),)),
    "threading.Condition": lambda condition: (threading.Condition, ()),
    "threading.Semaphore": lambda semaphore: (threading.Semaphore, (semaphore._value,)),
    "threading.BoundedSemaphore": lambda semaphore: (threading.BoundedSemaphore, (semaphore._initial_value,)),
    "_contextvars.ContextVar": _context_var,
    "contextvars.ContextVar": _context_var,
    "builtins.ContextVar": _context_var,
}

_WITHOUT_IDENTITY = frozenset(
    (int, float, complex, str, bytes, bool, tuple, frozenset, range, slice)
    + (type(None), type(...), type(NotImplemented), ModuleType, BuiltinFunctionType)
)


def _placeholder(key: Key, value: Any, error: Exception) -> rebuild.Unavailable:
    kind = type(value)
    text = (
        f"the global {key[1]!r} of {key[0]} (a {kind.__module__}.{kind.__qualname__}) could not be sent to this worker"
        f": {type(error).__name__}: {error}"
    )
    if isinstance(error, RuntimeError) and "inheritance" in text:
        text += "; pass it as an initializer argument"
    return rebuild.Unavailable(text)


def _reduces_itself(kind: Any) -> bool:
    return kind.__reduce__ is not object.__reduce__


def _is_called(value: Any, name: str) -> bool:
    return isinstance(value, (FunctionType, type)) and value.__qualname__ == name


def _keys_that_occur(stream: bytes, module_name: str) -> list[Key]:
    """The functions, classes and the like of a module whose names occur anywhere in a stream that has its name."""
    keys: list[Key] = []
    if module_name.encode() in stream:
        for name, value in list(_dict_of(module_name).items()):
            if name.encode() in stream:
                try:
                    if getattr(value, "__module__", None) == module_name:
                        keys.append((module_name, name))
                except Exception:  # noqa: BLE001 - a __getattr__ of the user's
                    pass
    return keys
