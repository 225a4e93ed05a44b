"""A worker process as programs expect to find it: with the attributes of `multiprocessing.Process`."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.client.embedded import GroupHandle


class WorkerProcess:
    """One worker process; compares equal to another object for the same process."""

    daemon = True

    def __init__(self, group: GroupHandle, peer: Any) -> None:
        self._group = group
        self._peer = peer
        self._sentinel: int | None = None

    @property
    def name(self) -> str:
        return f"SpawnPoolWorker-{self._peer.number}"

    @property
    def pid(self) -> int | None:
        """The process id; waits for the fork, which takes about a millisecond."""
        self._peer.is_started.wait(5)
        pid: int = self._peer.pid
        return pid or None

    ident = pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs, otherwise its exit code, or minus the signal that ended it."""
        code: int | None = self._peer.exitcode if self._peer.has_exited.is_set() else None
        return code

    def is_alive(self) -> bool:
        return not self._peer.has_exited.is_set()

    def terminate(self) -> None:
        self._group.kill(self._peer, signal.SIGTERM)

    def kill(self) -> None:
        self._group.kill(self._peer, signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        self._peer.has_exited.wait(timeout)

    def close(self) -> None:
        if self._sentinel is not None:
            os.close(self._sentinel)
            self._sentinel = None

    @property
    def sentinel(self) -> int:
        """An fd that becomes readable when the process ends (Linux)."""
        if self._sentinel is None:
            self._sentinel = os.pidfd_open(self.pid or 0)
        return self._sentinel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerProcess) and self._peer is other._peer

    def __hash__(self) -> int:
        return hash(self._peer)

    def __repr__(self) -> str:
        state = "started" if self.is_alive() else f"stopped exitcode={self.exitcode}"
        return f"<{type(self).__name__} name={self.name!r} pid={self._peer.pid} {state} daemon>"

    def __del__(self) -> None:
        self.close()
