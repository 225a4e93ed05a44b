"""An event for waiters whom a signal handler's exception may strike at any moment.

`threading.Event` has a lock that waiter and setter share, taken by Python code: an exception just after that leaves it
taken, and whoever sets the event waits for ever. Here each waiter has a lock of its own, which only he waits for.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Latch:
    """See the module's docstring. The interface is that of `threading.Event`."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[Any] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        try:
            while True:
                self._waiters.pop().release()
        except IndexError:
            pass

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has happened, within `timeout` seconds."""
        if self._is_set:
            return True
        lock = allocate_lock()
        lock.acquire()
        self._waiters.append(lock)
        try:
            if not self._is_set:
                lock.acquire(True, -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))
        finally:
            try:
                self._waiters.remove(lock)
            except ValueError:
                pass
        return self._is_set
