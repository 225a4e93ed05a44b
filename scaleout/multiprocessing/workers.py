"""The worker processes of a Pool as `pool._pool` shows them."""

from __future__ import annotations

from scaleout._runtime.session import WorkerProcess


class PoolWorker(WorkerProcess):
    """One worker process of a Pool."""
