"""Looks at the machine's memory while tasks run: before the system kills what it likes, it kills the newest task that
may be run again. Nodes look at theirs, and say when it is short.

Everything here runs on the reactor thread.
"""

from __future__ import annotations

import signal
import time

from scaleout._runtime.base import limits, memory
from scaleout._runtime.wire import control_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.node.group import WorkerGroup
    from scaleout._runtime.node.keeper import ZygoteKeeper
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor


class MemoryWatch:
    """One look some time after `arm`; whoever finds tasks at work arms it again."""

    def __init__(self, reactor: Reactor, keeper: ZygoteKeeper, groups: list[WorkerGroup]) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._groups = groups
        self.is_armed = False
        self._killed_at = 0.0
        self._oom_kills = memory.oom_kills()

    def arm(self) -> None:
        self.is_armed = True
        self._reactor.call_later(limits.MEMORY_WATCH_SECONDS, self._look)

    def _look(self) -> None:
        self.is_armed = False
        now = time.monotonic()
        if now - self._killed_at < limits.MEMORY_KILL_PAUSE_SECONDS or not memory.is_short(limits.MEMORY_SHORT_SHARE):
            return
        newest = self._newest(None)
        if newest is not None:
            here = [peer.pid for peer in self._keeper.peers.values() if peer.seat.node is None]
            newest.memory_usage = {pid: memory.resident_bytes(pid) for pid in here}
            self._killed_at = now
            self._keeper.kill_for_task(newest)

    def node_is_short(self, node: Any, usage: dict[int, int]) -> None:
        """A node has little memory left; so much of it these workers have there, by pid."""
        newest = self._newest(node)
        if newest is not None:
            newest.memory_usage = usage
            self._keeper.kill_for_task(newest)

    def _newest(self, node: Any) -> Peer | None:
        """The worker of that node (None: of this process alone) that has begun its task last, and whose task may be run
        again."""
        running = [
            (peer.words[control_page.SINCE_NS], peer)
            for group in self._groups
            if group.core.max_retries > 0
            for peer in group.peers
            if peer.seat.node is node
            if any(task.sequence == peer.words[control_page.RUNNING] for task in peer.lane.inflight)
        ]
        return max(running, key=lambda entry: entry[0])[1] if running else None

    def has_taken(self, peer: Peer) -> bool:
        """Whether this dead worker was killed for want of memory, by us or by the system."""
        if peer.memory_usage is not None:
            return True
        return not peer.seat.is_relayed and peer.exitcode == -signal.SIGKILL and memory.oom_kills() > self._oom_kills
