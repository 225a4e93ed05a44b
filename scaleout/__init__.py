"""Drop-in concurrency on a compact distributed runtime: Pool, executors, joblib, tasks and actors.

    from scaleout.multiprocessing import Pool  # was: from multiprocessing import Pool

This module is a docstring, the version and a lazy `__getattr__`: every worker pays for its import.
"""

from __future__ import annotations

__version__ = "0.1.0"

_PUBLIC = {
    "ObjectRef": "scaleout._runtime.refs",
    "as_completed": "scaleout.api",
    "available_resources": "scaleout.api",
    "cancel": "scaleout.api",
    "cluster_resources": "scaleout.api",
    "deregister_serializer": "scaleout.serializers",
    "dump_stacks": "scaleout._runtime.session",
    "exit_actor": "scaleout.actors",
    "get": "scaleout.api",
    "get_actor": "scaleout.actors",
    "init": "scaleout.api",
    "is_initialized": "scaleout.api",
    "kill": "scaleout.actors",
    "list_actors": "scaleout.state",
    "list_nodes": "scaleout.state",
    "list_objects": "scaleout.state",
    "list_tasks": "scaleout.state",
    "method": "scaleout.actors",
    "put": "scaleout.api",
    "register_serializer": "scaleout.serializers",
    "remote": "scaleout.remoting",
    "shutdown": "scaleout.api",
    "timeline": "scaleout.state",
    "wait": "scaleout.api",
}


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value
