"""An event for waiters whom a signal handler's exception may strike at any moment.

`threading.Event` has a lock that waiter and setter share, taken by Python code: an exception just after that leaves it
taken, and whoever sets the event waits for ever. Here each waiter has a lock of its own, which only he waits for.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock, get_ident

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def acquire_within(lock: Any, timeout_s: float) -> bool:
    """`lock.acquire(True, timeout_s)` that a Ctrl-C ends; -1 means without a limit.

    Python itself may begin to wait after the signal has come, and sleep on: a thread that waits until another one has
    taken the interpreter lock over, before it begins, does not look for signals any more. So the main thread, which
    they are for, looks up now and then.
    """
    if get_ident() != threading.main_thread().ident:
        return bool(lock.acquire(True, min(timeout_s, threading.TIMEOUT_MAX)))
    left = timeout_s
    while left < 0 or left > limits.SIGNAL_SECONDS:
        if lock.acquire(True, limits.SIGNAL_SECONDS):
            return True
        if left > 0:
            left -= limits.SIGNAL_SECONDS
    return bool(lock.acquire(True, left))


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
                acquire_within(lock, -1 if timeout is None else max(timeout, 0.0))
        finally:
            try:
                self._waiters.remove(lock)
            except ValueError:
                pass
        return self._is_set
