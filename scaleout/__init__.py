"""Drop-in concurrency on a compact distributed runtime: Pool, executors, joblib, tasks and actors.

    from scaleout.multiprocessing import Pool  # was: from multiprocessing import Pool

This module is a docstring, the version and a lazy `__getattr__`: every worker pays for its import.
"""

from __future__ import annotations

__version__ = "0.1.0"

_PUBLIC = {
    "ObjectRef": "scaleout._runtime.refs",
    "exit_actor": "scaleout.actors",
    "get_actor": "scaleout.actors",
    "kill": "scaleout.actors",
    "method": "scaleout.actors",
    "as_completed": "scaleout.api",
    "cancel": "scaleout.api",
    "dump_stacks": "scaleout._runtime.session",
    "get": "scaleout.api",
    "init": "scaleout.api",
    "is_initialized": "scaleout.api",
    "put": "scaleout.api",
    "remote": "scaleout.remote",
    "shutdown": "scaleout.api",
    "wait": "scaleout.api",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    # A module of the same name takes its place in the package when it is imported; the function has it afterwards.
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value
