"""Which variable it was that could not travel. Looks at plain structure only and runs no code of the user's."""

from __future__ import annotations

import functools
import sys
from types import FunctionType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_OBJECTS = 10_000
"""How many objects are looked at before the search for the place is given up."""


def add_place(error: BaseException, root: Any, culprit: Any) -> None:
    """Say in the error where below `root` the object is that pickling failed at, if that is found."""
    place = place_of(root, culprit)
    if place is None:
        return
    text = f"it is {place}"
    if sys.version_info >= (3, 11):
        if text not in getattr(error, "__notes__", ()):
            error.add_note(text)
    elif len(error.args) == 1 and isinstance(error.args[0], str) and text not in error.args[0]:
        error.args = (f"{error.args[0]}: {text}",)


def place_of(root: Any, culprit: Any) -> str | None:
    """Words for the innermost named place that leads to the object: "the variable 'lk' of the closure of ..."."""
    if culprit is None or culprit is root:
        return None
    seen = {id(root)}
    level: list[tuple[Any, str | None]] = [(root, None)]
    while level and len(seen) < MAX_OBJECTS:
        following = []
        for obj, place in level:
            for child, step in _children(obj):
                if id(child) in seen:
                    continue
                words = step if step is not None else place
                if child is culprit:
                    return words
                seen.add(id(child))
                following.append((child, words))
        level = following
    return None


def _children(obj: Any) -> Iterator[tuple[Any, str | None]]:
    """What is directly below an object, and words for it where it has a name."""
    kind = type(obj)
    if kind in (list, tuple, set, frozenset):
        yield from ((item, None) for item in obj)
    elif kind is dict:
        for key, value in obj.items():
            yield value, f"the value of {key!r} in a dict" if type(key) in (str, int) else None
    elif kind is FunctionType:
        yield from _function_children(obj)
    elif kind is MethodType:
        yield obj.__self__, f"the object of the bound method {obj.__func__.__qualname__!r}"
        yield obj.__func__, None
    elif kind is functools.partial:
        yield obj.func, None
        yield from ((value, "an argument of a functools.partial") for value in obj.args)
        yield from ((value, f"the argument {name!r} of a functools.partial") for name, value in obj.keywords.items())
    elif issubclass(kind, type):
        of = f"of class {obj.__qualname__!r}"
        yield from ((value, f"the attribute {name!r} {of}") for name, value in vars(obj).items())
    else:
        try:
            attributes = object.__getattribute__(obj, "__dict__")
        except AttributeError:
            attributes = {}
        if type(attributes) is dict:
            for name, value in attributes.items():
                yield value, f"the attribute {name!r} of an object of class {kind.__qualname__!r}"
        yield kind, None


def _function_children(function: FunctionType) -> Iterator[tuple[Any, str]]:
    of = f"of function {function.__qualname__!r}"
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield cell.cell_contents, f"the variable {name!r} of the closure {of}"
        except ValueError:
            pass
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        yield value, f"the default of parameter {name!r} {of}"
    for name, value in (function.__kwdefaults__ or {}).items():
        yield value, f"the default of parameter {name!r} {of}"
    for name, value in function.__dict__.items():
        yield value, f"the attribute {name!r} {of}"
