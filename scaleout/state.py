"""What there is and what happens, for those who look: lists of tasks, actors, objects and nodes, and a trace."""

from __future__ import annotations

import os

from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["list_actors", "list_nodes", "list_objects", "list_tasks", "timeline"]


def list_tasks() -> list[dict[str, Any]]:
    """The tasks and actor calls that have not ended, and the last 10 000 that have; the youngest last.

    Each has `name`, `id`, `state` (WAITING for values, PENDING, RUNNING, FINISHED, FAILED, CANCELLED), `type`, and if
    it has ended `duration_s` and `pid`. Only in the driver.
    """
    return session.default_client().list_tasks()


def list_actors() -> list[dict[str, Any]]:
    """The actors that somebody holds a handle to: `id`, `class_name`, `name`, `state`, `pid`, `restarts`, `death`."""
    return session.default_client().list_actors()


def list_objects() -> list[dict[str, Any]]:
    """The objects that are alive: `id`, `state`, `size_bytes`, whether they lie in shared memory (`is_stored`)."""
    return session.default_client().list_objects()


def list_nodes() -> list[dict[str, Any]]:
    """The machines: here, this one."""
    total, used = session.default_client().resources()
    return [
        {
            "id": "local",
            "state": "ALIVE",
            "pid": os.getpid(),
            "resources": {name: amount / 1000 for name, amount in total.items() if amount},
            "used": {name: amount / 1000 for name, amount in used.items() if amount},
        }
    ]


def timeline(path: str) -> int:
    """Write what tasks did lately to `path`, as a trace that Perfetto and chrome://tracing show; how many spans."""
    return session.default_client().write_trace(path)
