"""Where this process stands: a driver, or a worker. Set once, by the worker at its start; read by sessions."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class WorkerContext:
    """What a session that is opened inside a worker may ask of it."""

    __slots__ = (
        "actor",
        "depth",
        "in_bootstrap",
        "is_leaving",
        "open_channel",
        "requests",
        "session_info",
        "sources",
        "task_id",
        "worker",
        "worker_id",
    )

    def __init__(
        self, worker_id: int, depth: int, open_channel: Callable[[], Any], session_info: dict[str, Any], worker: Any
    ) -> None:
        self.worker = worker
        self.worker_id = worker_id
        self.depth = depth
        self.open_channel = open_channel
        self.session_info = session_info
        self.in_bootstrap = False
        self.is_leaving = False  # the actor here has said that it wants to end
        self.requests: Any = None  # process.requests.Requests, once user code here has asked its owner for something
        self.sources: Any = None  # process.sources.SourcesOfOwner, if the owner has modules that this machine may lack
        self.actor: Any = None  # the instance that this worker hosts


current: WorkerContext | None = None
at_exit: list[Callable[[], None]] = []
"""What a worker calls before it leaves: sessions that were opened in it."""
