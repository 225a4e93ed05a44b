"""What our pickle streams call when they are loaded: functions, cells, classes and a few things that have no pickle.

A function's globals are always the one dict of its module in this process. Objects that refer to themselves (a
recursive closure, a class whose methods name it) are made empty first and filled by a state setter, after the
unpickler has memoized them.
"""

from __future__ import annotations

import importlib
import marshal
import os
import sys
import threading
import weakref
from types import CellType, FunctionType, ModuleType, new_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from functools import _CacheParameters, cached_property
    from typing import Any

NOT_A_DEFINITION = 0

# What a definition that is being loaded has made so far, so that a cycle of definitions can close.
unfinished: dict[int, Any] = {}


def module_named(name: str) -> ModuleType:
    """The module, imported if need be; ModuleNotFoundError if this process has none."""
    module = sys.modules.get(name)
    return module if module is not None else importlib.import_module(name)


made_modules: set[str] = set()
"""Modules that exist only as what an owner sent of them."""


def module_or_new(name: str) -> ModuleType:
    """The module, or an empty one if it cannot be imported here."""
    try:
        return module_named(name)
    except Exception:  # noqa: BLE001 - the module is the user's, and this is why it travels
        return _make_module(name)


def _make_module(name: str) -> ModuleType:
    """Below packages that are as empty if need be: pickle imports a module from its top."""
    parent, _, own_name = name.rpartition(".")
    module = sys.modules[name] = ModuleType(name, "Made by scaleout of what was sent: it cannot be imported here.")
    made_modules.add(name)
    if parent:
        package = sys.modules.get(parent) or _make_module(parent)
        if not hasattr(package, "__path__"):
            package.__path__ = []
        setattr(package, own_name, module)
    return module


def get_path(owner: Any, path: str) -> Any:
    """A method or a nested class of an object that was found."""
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


# -- functions -------------------------------------------------------------------------------------


def make_cell() -> CellType:
    return CellType()


def set_cell(cell: CellType, contents: tuple[Any]) -> None:
    cell.cell_contents = contents[0]


def make_function(
    code: bytes, module_name: str | None, cells: tuple[CellType, ...], definition_id: int
) -> FunctionType:
    """A function without its state. `module_name` None: its globals are its own."""
    if module_name is None:
        globals_: dict[str, Any] = {"__builtins__": __builtins__}
    else:
        # A definition may be the first that comes of a module which is not here; anything else says that it is missing.
        globals_ = (module_or_new if definition_id else module_named)(module_name).__dict__
    function = FunctionType(marshal.loads(code), globals_, None, None, cells or None)
    if definition_id:
        unfinished[definition_id] = function
    return function


def fill_function(function: FunctionType, state: tuple[Any, ...]) -> None:
    attributes, contents, own_globals = state
    if own_globals is not None:
        function.__globals__.update(own_globals)
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            cell.cell_contents = content[0]
    for name, value in attributes.items():
        if name == "__dict__":
            function.__dict__.update(value)
        else:
            setattr(function, name, value)


def make_lru_cache(function: Callable[..., Any], parameters: _CacheParameters) -> Any:
    from functools import lru_cache

    return lru_cache(**parameters)(function)


def make_cached_property(function: Callable[..., Any], name: str | None) -> cached_property[Any]:
    from functools import cached_property

    made: cached_property[Any] = cached_property(function)
    made.attrname = name
    return made


def make_singledispatch(function: Callable[..., Any], definition_id: int) -> Any:
    from functools import singledispatch

    made = singledispatch(function)
    if definition_id:
        unfinished[definition_id] = made
    return made


def fill_singledispatch(function: Any, registry: list[tuple[type, Callable[..., Any]]]) -> None:
    for kind, implementation in registry:
        function.register(kind, implementation)


# -- classes ---------------------------------------------------------------------------------------

_class_by_id: weakref.WeakValueDictionary[bytes, type] = weakref.WeakValueDictionary()
_id_by_class: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()
_received: weakref.WeakSet[type] = weakref.WeakSet()
_class_lock = threading.RLock()


def class_id_of(cls: type) -> bytes:
    """The identity under which a class goes by value, so that it comes back as itself."""
    class_id = _id_by_class.get(cls)
    if class_id is None:
        class_id = _id_by_class.setdefault(cls, os.urandom(12))
        _class_by_id[class_id] = cls
    return class_id


def _known_class(class_id: bytes, make: Callable[[], type]) -> type:
    with _class_lock:
        cls = _class_by_id.get(class_id)
    if cls is None:
        made = make()
        with _class_lock:
            cls = _class_by_id.setdefault(class_id, made)
            if cls is made:
                _id_by_class[made] = class_id
                _received.add(made)
    return cls


def make_class(
    class_id: bytes, metaclass: type, name: str, bases: tuple[type, ...], body: Mapping[str, Any], definition_id: int
) -> type:
    """The class of this identity, or a new one that has only what a class must be created with."""

    def make() -> type:
        return new_class(name, bases, {"metaclass": metaclass}, lambda namespace: namespace.update(body))

    return _begun(_known_class(class_id, make), definition_id)


def make_foreign_class(
    class_id: bytes, maker: Callable[..., type], arguments: tuple[Any, ...], definition_id: int
) -> type:
    """As `make_class`, for kinds of classes (enums, typed dicts) that have a maker of their own."""
    return _begun(_known_class(class_id, lambda: maker(*arguments)), definition_id)


def _begun(cls: type, definition_id: int) -> type:
    """A class whose attributes are still to come. Its methods expect its module, which may not be here yet."""
    if definition_id:
        module_or_new(cls.__module__)
        unfinished[definition_id] = cls
    return cls


def fill_class(cls: Any, state: tuple[dict[str, Any], list[type], dict[str, dict[str, Any]]]) -> None:
    """Give a received class its attributes. One that was born in this process keeps those it has."""
    if cls not in _received:
        return
    attributes, registered, members = state
    for name, value in attributes.items():
        setattr(cls, name, value)
    if "__firstlineno__" in attributes:  # 3.13 drops it at the next assignment
        type.__setattr__(cls, "__firstlineno__", attributes["__firstlineno__"])
    for subclass in registered:
        cls.register(subclass)
    for name, own in members.items():
        cls[name].__dict__.update(own)


def make_typed_dict(name: str, annotations: dict[str, Any], is_total: bool, module_name: str) -> Any:
    from typing import TypedDict

    made: Any = TypedDict(name, annotations, total=is_total)  # type: ignore[misc]
    made.__module__ = module_name
    return made


def make_type_variable(kind: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], module_name: str) -> Any:
    made = kind(*arguments, **keywords)
    made.__module__ = module_name
    return made


def make_new_type(name: str, module_name: str, supertype: Any) -> Any:
    from typing import NewType

    made = NewType(name, supertype)  # type: ignore[misc]
    made.__module__ = module_name
    return made


# -- made anew -------------------------------------------------------------------------------------


def make_local(kind: type) -> Any:
    return kind()


def make_event(is_set: bool) -> threading.Event:
    event = threading.Event()
    if is_set:
        event.set()
    return event


def make_context_var(name: str, default: tuple[Any, ...]) -> Any:
    from contextvars import ContextVar

    return ContextVar(name, default=default[0]) if default else ContextVar(name)


# -- what could not travel -------------------------------------------------------------------------


class Unavailable:
    """Stands for a global that could not be sent. Whatever is done with it raises TypeError and says why and where."""

    def __init__(self, message: str) -> None:
        object.__setattr__(self, "_message", message)

    def __repr__(self) -> str:
        return f"<unavailable: {object.__getattribute__(self, '_message')}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Unavailable, (object.__getattribute__(self, "_message"),)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__reduce_ex__", "__reduce__", "__repr__", "__module__"):
            return object.__getattribute__(self, name)
        return _refuse(self)


def _refuse(self: Unavailable, *arguments: Any, **keywords: Any) -> Any:
    frame = sys._getframe(1)
    if frame.f_code is Unavailable.__getattribute__.__code__ and frame.f_back is not None:
        frame = frame.f_back
    message = object.__getattribute__(self, "_message")
    raise TypeError(f"{message} (used in {frame.f_code.co_name}())")


_ARITHMETIC = "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor".split()
_REFUSED = """
    call bool len iter next reversed contains getitem setitem delitem setattr delattr enter exit aenter aexit await
    aiter anext str bytes format hash index int float complex round trunc floor ceil neg pos abs invert eq ne lt le gt
    ge dir length_hint fspath instancecheck subclasscheck copy deepcopy mro_entries
""".split()
for _name in (*_REFUSED, *(prefix + name for prefix in ("", "r", "i") for name in _ARITHMETIC)):
    setattr(Unavailable, f"__{_name}__", _refuse)
del _name
