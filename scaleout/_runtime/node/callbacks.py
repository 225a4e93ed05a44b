"""The thread in which users' callbacks run."""

from __future__ import annotations

import sys
import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class CallbackThread:
    """Runs users' callbacks, and what else of theirs must not run on the reactor, in order, one at a time."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None] | None] = deque()
        self._ready = threading.Semaphore(0)
        self.thread: threading.Thread | None = None
        self._is_running = False
        self._is_ending = False
        self._lock = threading.Lock()

    def put(self, function: Callable[[], None] | None) -> None:
        """Any thread. None ends the thread after what is queued; what comes later still runs, in a thread for it."""
        with self._lock:
            self._is_ending = self._is_ending or function is None
            if function is None and not self._is_running:
                return
            self._queue.append(function)
            self._ready.release()
            if not self._is_running:
                if self._is_ending:
                    self._queue.append(None)
                    self._ready.release()
                self._is_running = True
                self.thread = threading.Thread(target=self._run, name="scaleout-callbacks", daemon=True)
                self.thread.start()

    def _run(self) -> None:
        while True:
            self._ready.acquire()
            function = self._queue.popleft()
            if function is None:
                with self._lock:
                    if not self._queue:
                        self._is_running = False
                        return
                    self._queue.append(None)
                    self._ready.release()
                continue
            try:
                function()
            except BaseException:  # noqa: BLE001 - the user's code, and the thread's top
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
            del function
