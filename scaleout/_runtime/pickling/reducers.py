"""The reducers that user code registered: `copyreg`'s, and `ForkingPickler.register`'s of multiprocessing.

Those of multiprocessing that send file descriptors, and torch's, act only while a process is spawned; anywhere else a
connection is refused (its own pickle would carry a bare descriptor number, and close another file in the worker).
"""

from __future__ import annotations

import copyreg
import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reducers = dict[Any, Callable[[Any], Any]]

# Their methods, partials and descriptors do what the C pickler does by itself; their sockets send descriptors.
_STANDARD = frozenset(("multiprocessing.reduction", "multiprocessing.connection", "multiprocessing.heap"))


def registered() -> Reducers | None:
    """multiprocessing's own table, or None while nobody has imported it."""
    reduction = sys.modules.get("multiprocessing.reduction")
    return reduction.ForkingPickler._extra_reducers if reduction is not None else None


def extra_reducers(table: Reducers) -> Reducers:
    """Of a ForkingPickler's table, what applies outside of spawning and differs from what the C pickler does."""
    extra: Reducers = {}
    for kind, reducer in table.items():
        module = getattr(reducer, "__module__", None) or ""
        if module == "multiprocessing.connection":
            extra[kind] = refuse_descriptor
        elif module in _STANDARD or module.partition(".")[0] == "torch" or _sends_descriptors(reducer):
            continue
        else:
            extra[kind] = reducer
    return extra


def of_module(name: str | None) -> Callable[[], Reducers] | None:
    """The function `reducers` of a module, which is not imported before that is called."""
    if name is None:
        return None
    return lambda: importlib.import_module(name).reducers()


def merged(extra: Reducers) -> Reducers:
    """A real dict for `Pickler.dispatch_table`: a ChainMap costs a failed Python call per object."""
    return {**copyreg.dispatch_table, **extra}


def refuse_descriptor(obj: Any) -> Any:
    raise RuntimeError(
        f"{type(obj).__name__} objects should only be shared between processes through inheritance: "
        "pass it as an initializer argument"
    )


def _sends_descriptors(reducer: Any) -> bool:
    code = getattr(reducer, "__code__", None)
    return code is not None and "DupFd" in code.co_names
