"""Threads in which users' callbacks run.

Each group has its own, as each pool and executor of the standard library has: a callback may wait for another group's,
and may hold a lock that another's needs. What the runtime needs of users' code for itself, their imports and reducers,
has a thread apart, so that a callback may also wait for the results of tasks.
"""

from __future__ import annotations

import sys
import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class CallbackThread:
    """Runs functions in order, one at a time; started when there is the first."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None] | None] = deque()
        self._ready = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.is_running = False
        self._is_ending = False
        self._lock = threading.Lock()

    def put(self, function: Callable[[], None] | None) -> None:
        """Any thread. None ends the thread after what is queued; what comes later still runs, in a thread for it."""
        with self._lock:
            self._is_ending = self._is_ending or function is None
            if function is None and not self.is_running:
                return
            self._queue.append(function)
            self._ready.release()
            if not self.is_running:
                if self._is_ending:
                    self._queue.append(None)
                    self._ready.release()
                thread = threading.Thread(target=self._run, name="scaleout-callbacks", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # the interpreter exits (from Python 3.12 on): whoever waits for us runs them
                self._thread = thread
                self.is_running = True

    @property
    def is_current(self) -> bool:
        """Whether it is the calling thread."""
        return self._thread is threading.current_thread()

    def join(self) -> None:
        """Wait until it has ended; it must have been told to. Returns at once in the thread itself."""
        thread = self._thread
        if self.is_current:
            return
        if thread is not None:
            thread.join()
        while self._queue and not self.is_running:
            try:
                function = self._queue.popleft()
            except IndexError:  # somebody else waits, too
                return
            if function is not None:
                self._call(function)

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            function = self._queue.popleft()
            if function is None:
                with self._lock:
                    while self._queue and self._queue[0] is None:  # told to end more than once
                        self._queue.popleft()
                        self._ready.acquire()
                    if not self._queue:
                        self.is_running = False
                        return
                    self._queue.append(None)
                    self._ready.release()
                continue
            self._call(function)
            del function

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException:  # noqa: BLE001 - the user's code, and the thread's top
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
