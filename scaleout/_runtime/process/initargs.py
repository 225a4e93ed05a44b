"""File descriptors inside initializer arguments: how Lock, Queue, Pipe ends, Value and Array reach a worker.

The standard library passes such objects only while a child is being spawned: reducers ask the "spawning popen" to
duplicate their fds for the child. Here that popen is `PassedFds`: it collects the fds, and what it puts into the pickle
looks the received fd up by its position.
"""

from __future__ import annotations

import os

received: list[int] = []
"""In a worker: the fds that came before INITIALIZE, in order."""


class PassedFds:
    """Stands in for the Popen object under which the initializer and its arguments are pickled."""

    method = "spawn"

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1

    @staticmethod
    def DupFd(position: int) -> ReceivedFd:
        return ReceivedFd(position)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class ReceivedFd:
    """Pickled in the place of an fd; `detach()` in the worker gives the real one."""

    def __init__(self, position: int) -> None:
        self.position = position

    def detach(self) -> int:
        return received[self.position]
