"""The second pickler: for streams the plain one cannot make, or whose names the receiver lacks.

A function or class that its module still knows under its name goes by that name. One without a name (a lambda, a
closure, a local class) goes by value: a function as its code, whose globals become the ONE dict of its module where it
is loaded; the names of a by-value module that it reads are noted in `reads`, for they must be there when it runs.
cloudpickle is asked only for what this module does not know (`NeedsCloudpickle`, and whatever pickle refuses).
"""

from __future__ import annotations

import functools
import marshal
import pickle
import sys
import types
from types import CellType, FunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType, ModuleType

from scaleout._runtime.pickling import explain, rebuild, reducers
from scaleout._runtime.pickling.names import attribute_names, global_names
from scaleout._runtime.pickling.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Key = tuple[str, str]

    class Policy(Protocol):
        """What a pickler must know of the receiver."""

        by_value_modules: set[str]

        def keeps(self, module_name: str, name: str, value: Any) -> bool:
            """Whether a thing that this process finds under a name of a by-value module is there for the receiver."""


LACKS_A_NAME = (pickle.PicklingError, AttributeError, TypeError)
"""What the C pickler raises for a thing that has no name; anything else comes from user code and is final."""

SYSTEM_MODULES = ""
"""Instead of a module's name in a key: the name is that of a submodule that must be imported."""

_HEAP_TYPE = 1 << 9


class NeedsCloudpickle(Exception):
    """Only cloudpickle knows how to take this apart."""


def name_of(obj: Any) -> tuple[str, str] | None:
    """(module, qualified name) under which the object is found in this process, if it is."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    found: Any = sys.modules.get(module_name) if isinstance(module_name, str) else None
    if found is None or not isinstance(qualname, str):
        return None
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            return None
    return (module_name, qualname) if found is obj else None  # type: ignore[return-value]


def dump_by_value(make: Callable[[Stream, bool], ByValuePickler], obj: Any) -> tuple[Stream, ByValuePickler]:
    """Pickle with what `make` gives; with cloudpickle's help if it is needed. Errors name the variable at fault."""
    for with_cloudpickle in (False, True) if "cloudpickle" not in sys.modules else (True,):
        stream = Stream()
        pickler = make(stream, with_cloudpickle)
        try:
            pickler.dump(obj)
        except NeedsCloudpickle:
            continue
        except Exception as error:
            if not with_cloudpickle and isinstance(error, LACKS_A_NAME):
                continue
            explain.add_place(error, obj, pickler.last)
            raise
        return stream, pickler
    raise AssertionError("cloudpickle was asked for twice")


class ByValuePickler(pickle.Pickler):
    """One dump. `last` is the object it was busy with when it failed. With `carries_globals`, a function that goes by
    value brings along what its code reads of a module that the receiver can import: as it stands here and now."""

    carries_globals = False

    def __init__(self, stream: Stream, policy: Policy, extra: dict[Any, Any], with_cloudpickle: bool) -> None:
        super().__init__(stream, 5, buffer_callback=stream.keep_buffer)
        self.policy = policy
        self.with_cloudpickle = with_cloudpickle
        self.reads: dict[Key, None] = {}
        self.last: Any = None
        self._own_cells: set[int] = set()
        table = reducers.merged(extra)
        if with_cloudpickle:
            from scaleout._runtime.pickling import cloud

            table = {**cloud.reducers(), **table}
        self.dispatch_table = table

    # -- what a definition (see definitions.py) does otherwise -----------------------------------------

    def definition_id_of(self, obj: Any) -> int:
        """The id under which an unfinished object can be asked for while it is loaded; 0 if it need not be."""
        return rebuild.NOT_A_DEFINITION

    def reduce_named(self, obj: Any, module_name: str, qualname: str) -> Any:
        """How to pickle what has a name; None: by value."""
        if module_name in self.policy.by_value_modules:
            name = qualname.partition(".")[0]
            if not self.policy.keeps(module_name, name, sys.modules[module_name].__dict__.get(name)):
                return None
        return NotImplemented

    def reduce_anew(self, obj: Any) -> Any:
        """For what is made anew rather than copied; None: nothing special."""
        return None

    # -- pickle's hook ---------------------------------------------------------------------------------

    def reducer_override(self, obj: Any) -> Any:
        self.last = obj
        kind = type(obj)
        if kind is FunctionType:
            return self._reduce_function(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        reduce = _SPECIAL.get(kind)
        if reduce is not None:
            return reduce(self, obj)
        if kind.__module__ == "typing" or kind.__module__ == "builtins":
            typed = self._reduce_typing(obj, kind)
            if typed is not None:
                return typed
        elif kind.__module__ == "dataclasses":
            for name, value in sys.modules["dataclasses"].__dict__.items():
                if value is obj:  # MISSING and its like are compared by identity
                    return getattr, (sys.modules["dataclasses"], name)
        anew = self.reduce_anew(obj)
        return NotImplemented if anew is None else anew

    # -- functions -------------------------------------------------------------------------------------

    def _reduce_function(self, function: FunctionType) -> Any:
        named = name_of(function)
        if named is not None:
            reduced = self.reduce_named(function, *named)
            if reduced is not None:
                return reduced
        registry = getattr(function, "registry", None)
        if isinstance(registry, MappingProxyType) and hasattr(function, "dispatch") and object in registry:
            return self._reduce_singledispatch(function, registry)
        code = function.__code__
        globals_ = function.__globals__
        module_name = globals_.get("__name__")
        module = sys.modules.get(module_name) if isinstance(module_name, str) else None
        own_globals = None
        is_modules_own = module is not None and module.__dict__ is globals_
        if not is_modules_own or (self.carries_globals and module_name not in self.policy.by_value_modules):
            module_name = None
            own_globals = {name: globals_[name] for name in (*global_names(code), "__name__") if name in globals_}
        elif module_name in self.policy.by_value_modules:
            self._note_reads(code, module_name, globals_)
        cells = function.__closure__ or ()
        self._own_cells.update(map(id, cells))
        state = (_function_attributes(function), [_cell_content(cell) for cell in cells], own_globals)
        arguments = (marshal.dumps(code), module_name, cells, self.definition_id_of(function))
        return rebuild.make_function, arguments, state, None, None, rebuild.fill_function

    def _reduce_singledispatch(self, function: Any, registry: Any) -> Any:
        others = [(kind, implementation) for kind, implementation in registry.items() if kind is not object]
        arguments = (registry[object], self.definition_id_of(function))
        return rebuild.make_singledispatch, arguments, others, None, None, rebuild.fill_singledispatch

    def _note_reads(self, code: Any, module_name: str, globals_: dict[str, Any]) -> None:
        attributes: set[str] | None = None
        for name in global_names(code):
            self.reads[module_name, name] = None
            value = globals_.get(name)
            if type(value) is ModuleType:
                if attributes is None:
                    attributes = attribute_names(code)
                self._note_module_reads(value, attributes)

    def _note_module_reads(self, module: ModuleType, attributes: set[str]) -> None:
        """A module that is read by `module.name`: its submodules, and its names if it travels by value."""
        if module.__name__ in self.policy.by_value_modules:
            self.reads.update(dict.fromkeys((module.__name__, name) for name in attributes & module.__dict__.keys()))
        elif hasattr(module, "__path__"):
            prefix = module.__name__ + "."
            for name in list(sys.modules):
                if name.startswith(prefix) and attributes.issuperset(name[len(prefix) :].split(".")):
                    self.reads[SYSTEM_MODULES, name] = None

    def _reduce_cell(self, cell: CellType) -> Any:
        # The cell of a function that is being pickled is filled with the function's state: it may hold the function.
        if id(cell) in self._own_cells:
            return rebuild.make_cell, ()
        content = _cell_content(cell)
        return (rebuild.make_cell, (), content, None, None, rebuild.set_cell) if content else (rebuild.make_cell, ())

    def _reduce_lru_cache(self, function: Any) -> Any:
        named = name_of(function)
        if named is not None:
            reduced = self.reduce_named(function, *named)
            if reduced is not None:
                return reduced
        attributes = {name: value for name, value in vars(function).items() if name != "__wrapped__"}
        return rebuild.make_lru_cache, (function.__wrapped__, function.cache_parameters()), attributes

    def _reduce_typing(self, obj: Any, kind: type) -> Any:
        """Type variables and new types, which pickle by their name only."""
        name = kind.__name__
        if name not in ("TypeVar", "ParamSpec", "TypeVarTuple", "NewType"):
            return None
        module_name, own_name = obj.__module__, obj.__name__
        if getattr(sys.modules.get(module_name), own_name, None) is obj:
            reduced = self.reduce_named(obj, module_name, own_name)
            if reduced is not None:
                return reduced
        if name == "NewType":
            return rebuild.make_new_type, (own_name, module_name, obj.__supertype__)
        arguments = (own_name, *getattr(obj, "__constraints__", ()))
        keywords = {
            keyword: value
            for keyword in ("bound", "covariant", "contravariant")
            if name != "TypeVarTuple" and (value := getattr(obj, f"__{keyword}__", None))
        }
        return rebuild.make_type_variable, (kind, arguments, keywords, module_name)

    def _reduce_module(self, module: ModuleType) -> Any:
        if module.__name__ in self.policy.by_value_modules:
            return rebuild.module_or_new, (module.__name__,)
        if sys.modules.get(module.__name__) is module:
            return rebuild.module_named, (module.__name__,)
        if not self.with_cloudpickle:
            raise NeedsCloudpickle
        return NotImplemented

    # -- classes ---------------------------------------------------------------------------------------

    def _reduce_class(self, cls: type) -> Any:
        named = name_of(cls)
        if named is not None:
            reduced = self.reduce_named(cls, *named)
            if reduced is not None:
                return reduced
        elif not cls.__flags__ & _HEAP_TYPE:
            for name, value in vars(types).items():
                if value is cls:  # mappingproxy, cell: their own names lead nowhere
                    return getattr, (types, name)
            return NotImplemented
        members: dict[str, Any] = {}
        definition_id = self.definition_id_of(cls)
        class_id = rebuild.class_id_of(cls)
        enum = sys.modules.get("enum")
        if enum is not None and issubclass(cls, enum.Enum):
            if not self.with_cloudpickle:
                raise NeedsCloudpickle
            from scaleout._runtime.pickling import cloud

            maker, arguments, attributes, members = cloud.reduce_enum(cls)
        elif type(cls).__name__ == "_TypedDictMeta":
            maker = rebuild.make_typed_dict
            arguments = (cls.__name__, cls.__annotations__, getattr(cls, "__total__", True), cls.__module__)
            attributes = {}
        else:
            body, attributes, registered = _take_apart(cls)
            arguments = (class_id, type(cls), cls.__name__, cls.__bases__, body, definition_id)
            return rebuild.make_class, arguments, (attributes, registered, members), None, None, rebuild.fill_class
        arguments = (class_id, maker, arguments, definition_id)
        return rebuild.make_foreign_class, arguments, (attributes, [], members), None, None, rebuild.fill_class


def _cell_content(cell: CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _function_attributes(function: FunctionType) -> dict[str, Any]:
    """What differs from a function that was just made from the same code."""
    code = function.__code__
    attributes: dict[str, Any] = {}
    if function.__name__ != code.co_name:
        attributes["__name__"] = function.__name__
    if function.__qualname__ != getattr(code, "co_qualname", code.co_name):
        attributes["__qualname__"] = function.__qualname__
    if function.__module__ != function.__globals__.get("__name__"):
        attributes["__module__"] = function.__module__
    for name in ("__defaults__", "__kwdefaults__", "__doc__"):
        value = getattr(function, name)
        if value is not None:
            attributes[name] = value
    for name in ("__annotations__", "__dict__", "__type_params__"):
        value = getattr(function, name, None)
        if value:
            attributes[name] = value
    return attributes


# What type() puts into every class by itself.
_AUTOMATIC = ("__dict__", "__weakref__", "_abc_impl")
# What a class must be created with, or takes only then.
_AT_CREATION = ("__module__", "__qualname__", "__doc__", "__slots__", "__orig_bases__", "__static_attributes__")


def _take_apart(cls: type) -> tuple[dict[str, Any], dict[str, Any], list[type]]:
    """(the body to create the class with, attributes to set afterwards, virtual subclasses)"""
    attributes = {
        name: value
        for name, value in vars(cls).items()
        if name not in _AUTOMATIC
        and not (isinstance(value, (MemberDescriptorType, GetSetDescriptorType)) and value.__objclass__ is cls)
    }
    body = {name: attributes.pop(name) for name in _AT_CREATION if name in attributes}
    body["__qualname__"] = cls.__qualname__
    registered: list[type] = []
    if "_abc_impl" in vars(cls):
        references = sys.modules["abc"]._get_dump(cls)[0]
        registered = [subclass for reference in references if (subclass := reference()) is not None]
    return body, attributes, registered


_SPECIAL: dict[type, Callable[[Any, Any], Any]] = {
    CellType: ByValuePickler._reduce_cell,
    ModuleType: ByValuePickler._reduce_module,
    type(functools.lru_cache(int)): ByValuePickler._reduce_lru_cache,
    functools.cached_property: lambda pickler, found: (rebuild.make_cached_property, (found.func, found.attrname)),
    classmethod: lambda pickler, method: (classmethod, (method.__func__,)),
    staticmethod: lambda pickler, method: (staticmethod, (method.__func__,)),
    property: lambda pickler, found: (property, (found.fget, found.fset, found.fdel, found.__doc__)),
    MappingProxyType: lambda pickler, proxy: (MappingProxyType, (dict(proxy),)),
}
