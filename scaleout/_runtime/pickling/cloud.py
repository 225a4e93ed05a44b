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


def reduce_enum(cls: type) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(maker, its arguments, attributes to set afterwards)"""
    maker, arguments, (attributes, _), *_ = machinery._dynamic_class_reduce(cls)
    return maker, arguments, attributes


def _reduce_text_file(file: Any) -> Any:
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    return file.__reduce_ex__(5)
