"""A worker's side of `__main__`: one module per process that definitions are bound in.

A definition that refers to one which has not come yet waits for it; with the last of a cycle all are loaded. The first
shipment of a name leaves alone what the worker's module already has under it (an initializer may have set it); a later
one replaces it. Ids grow with time, so a definition that comes late never replaces a newer one.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType

from scaleout._runtime.pickling import rebuild
from scaleout._runtime.pickling.names import NamesInStreams, module_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Key = tuple[str, str]

_CANNOT_GET = r"Can't get attribute '([^']+)' on <module '([^']+)'"


def main_info() -> dict[str, Any]:
    """What a worker's `__main__` must look like; plain enough for marshal."""
    main = sys.modules["__main__"]
    info: dict[str, Any] = {}
    for name in ("__file__", "__package__", "__doc__"):
        value = getattr(main, name, None)
        if value is None or type(value) is str:
            if hasattr(main, name):
                info[name] = value
    spec = getattr(main, "__spec__", None)
    if spec is not None and type(spec.name) is str:
        origin = spec.origin if type(spec.origin) is str else None
        info["spec"] = (spec.name, origin, spec.submodule_search_locations is not None)
    return info


class _NotYet(Exception):
    """A definition refers to one that has not come, or is being loaded itself."""


class Namespace:
    """Definitions by id, and where they are bound. Ids come from one owner."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: dict[int, tuple[Any, list[Any]]] = {}
        self._loading: set[int] = set()
        self._values: dict[int, Any] = {}
        self._keys: dict[int, Key] = {}
        self._bound: dict[Key, int] = {}
        self._active: tuple[int, ...] = ()
        self._first_main: ModuleType | None = None
        self.results = ResultBook(self)
        """The book for an Encoder of what goes back to the owner."""
        self.requests = RequestBook(self)
        """The same for what tasks ask of it: functions without a name are always taken."""
        self.requests.by_value_modules = self.results.by_value_modules

    def setup_main(self, info: dict[str, Any]) -> None:
        """Make this process's `__main__` look like the owner's, as `main_info()` described it there."""
        main = ModuleType("__main__")
        for name, value in info.items():
            if name != "spec":
                setattr(main, name, value)
        if "spec" in info:
            name, origin, is_package = info["spec"]
            main.__spec__ = ModuleSpec(name, None, origin=origin, is_package=is_package)
        main.__builtins__ = sys.modules["builtins"]  # type: ignore[attr-defined]
        self._first_main = sys.modules.get("__main__")  # code of it may still run
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main

    def define(self, definition_id: int, data: Any, buffers: Iterable[Any] = ()) -> None:
        """Load a definition and bind it. Raises what loading raises; it may then be given again."""
        with self._lock:
            if definition_id in self._values:
                return
            self._waiting[definition_id] = (data, list(buffers))
            try:
                self._load_waiting()
            except BaseException:
                self._waiting.pop(definition_id, None)
                raise

    def activate(self, needs: tuple[int, ...]) -> None:
        """Bind exactly these definitions, as of when the payload that needs them was made; cheap if nothing changed.

        Optional: without it the newest definition of a name is the one that is bound.
        """
        if needs == self._active:
            return
        with self._lock:
            # Of two for one name the older is there because something holds it, not to be bound.
            wanted = {self._keys[definition_id]: definition_id for definition_id in sorted(needs)}
            for key, definition_id in wanted.items():
                if self._bound.get(key) != definition_id:
                    self._bind(key, definition_id, self._values[definition_id])
            self._active = needs

    def forget(self, definition_ids: Iterable[int]) -> None:
        """The owner needs these no more (`DefinitionBook.forgotten`)."""
        with self._lock:
            for definition_id in definition_ids:
                self._values.pop(definition_id, None)
                self._waiting.pop(definition_id, None)
                self._keys.pop(definition_id, None)

    def missing_name(self, error: BaseException) -> tuple[str, str] | None:
        """(module, name) if a stream named something that is not here; name "" if it is the module. Else None."""
        if isinstance(error, ModuleNotFoundError):
            return (error.name, "") if error.name else None
        if type(error) is AttributeError:
            import re

            found = re.match(_CANNOT_GET, str(error))
            if found is not None:
                return found[2], found[1].partition(".")[0]
        return None

    # -- loading ---------------------------------------------------------------------------------------

    def _load_waiting(self) -> None:
        """Load all that can be: a cycle may load from one of its members and not from another."""
        has_progress = True
        while has_progress:
            has_progress = False
            for definition_id in list(self._waiting):
                if definition_id in self._waiting:
                    try:
                        self._load(definition_id)
                        has_progress = True
                    except _NotYet:
                        pass

    def _load(self, definition_id: int) -> Any:
        if definition_id in self._values:
            return self._values[definition_id]
        if definition_id in rebuild.unfinished:
            return rebuild.unfinished[definition_id]
        if definition_id not in self._waiting or definition_id in self._loading:
            raise _NotYet
        data, buffers = self._waiting[definition_id]
        self._loading.add(definition_id)
        try:
            unpickler = _DefinitionUnpickler(io.BytesIO(data), buffers=buffers)
            unpickler.namespace = self
            module_name, name, value = unpickler.load()
        finally:
            self._loading.discard(definition_id)
            rebuild.unfinished.pop(definition_id, None)
        key = (module_name, name)
        self._values[definition_id] = value
        self._keys[definition_id] = key
        self._waiting.pop(definition_id, None)
        if definition_id > self._bound.get(key, 0):
            self._bind(key, definition_id, value)
        return value

    def _bind(self, key: Key, definition_id: int, value: Any) -> None:
        module_name, name = key
        if module_name:  # else it was an import
            names = rebuild.module_or_new(module_name).__dict__
            if module_name in rebuild.made_modules and module_name not in self.results.by_value_modules:
                self.results.add(module_name)
            if key in self._bound or name not in names:
                names[name] = value
        self._bound[key] = definition_id
        self._active = ()


class _DefinitionUnpickler(pickle.Unpickler):
    namespace: Namespace

    def persistent_load(self, definition_id: int) -> Any:
        return self.namespace._load(definition_id)


class ResultBook(NamesInStreams):
    """What the owner finds by name: what it sent. The book of the Encoder for results."""

    takes_nameless = True

    def __init__(self, namespace: Namespace) -> None:
        super().__init__()
        self._bound = namespace._bound
        self._values = namespace._values

    def add(self, module_name: str) -> None:
        """A module was made of what the owner sent: what else is in it is not known there."""
        self.by_value_modules.add(module_name)
        self._key_by_head.clear()

    def keeps(self, module_name: str, name: str, value: Any) -> bool:
        """Whether the owner's module has this under this name too."""
        definition_id = self._bound.get((module_name, name))
        return definition_id is not None and self._values.get(definition_id) is value

    def needs_of_stream(self, stream: bytes, reads: Iterable[Key] = ()) -> tuple[int, ...] | None:
        key = self.only_key(stream)
        if key is not None:
            keys: list[Key] | None = [key] if key else []
        else:
            keys = self.keys_in(stream)
        if keys is None or not all(self.keeps(*key, module_dict(key[0]).get(key[1])) for key in keys):
            return None
        return ()


class RequestBook(ResultBook):
    """The same for what goes to another worker by way of the owner, who must know which of its names it needs: they are
    the needs."""

    takes_nameless = True

    def needs_of_stream(self, stream: bytes, reads: Iterable[Key] = ()) -> tuple[Any, ...] | None:
        key = self.only_key(stream)
        keys = self.keys_in(stream) if key is None else [key] if key else []
        if keys is None or not all(self.keeps(*key, module_dict(key[0]).get(key[1])) for key in keys):
            return None
        kept = [key for key in reads if self.keeps(*key, module_dict(key[0]).get(key[1]))]
        return tuple(dict.fromkeys([*keys, *kept]))
