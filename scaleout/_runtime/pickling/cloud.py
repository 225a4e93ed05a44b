"""The one door to cloudpickle (25 ms to import): reducers for enums and for what the pickle module refuses."""

from __future__ import annotations

import io
import sys
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as machinery


def reducers() -> dict[Any, Any]:
    """cloudpickle's table, without its habit to send an open text file as a copy of what it contains."""
    table = dict(cloudpickle.Pickler._dispatch_table)
    table[io.TextIOWrapper] = _reduce_text_file
    return table


def reduce_enum(cls: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], dict[str, dict[str, Any]]]:
    """(maker, its arguments, attributes to set afterwards, what an __init__ of its members has set by name)

    cloudpickle forgets aliases, and makes the members before the class has an __init__.
    """
    maker, arguments, (attributes, _), *_ = machinery._dynamic_class_reduce(cls)
    arguments = list(arguments)
    arguments[3] = {name: member.value for name, member in cls.__members__.items()}
    for name in arguments[3]:
        attributes.pop(name, None)
    own = {}
    for member in cls:
        state = {name: value for name, value in vars(member).items() if not _is_of_enum(name)}
        if state:
            own[member.name] = state
    return maker, tuple(arguments), attributes, own


def _is_of_enum(name: str) -> bool:
    return name == "__objclass__" or (name.startswith("_") and name.endswith("_"))


def _reduce_text_file(file: Any) -> Any:
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    return file.__reduce_ex__(5)
