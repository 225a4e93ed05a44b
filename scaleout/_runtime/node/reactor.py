"""The reactor thread: the one thread that touches the core, the sockets and the allocator.

Others hand it work by `post` (one C-level append, safe in signal handlers and finalizers) and wake it only if it has
marked itself asleep: it marks, looks at the inbox once more, then waits. It never blocks but in that wait, and never
runs user code.

Not here: what is posted, what arrives, and what is sent. The reactor knows links only as far as it flushes them.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.wire.link import Link

READABLE = select.POLLIN
WRITABLE = select.POLLOUT


class Reactor:
    """A thread with an inbox, sockets and timers. `serve` handles what is posted; `settle` runs before each wait, and
    what it leaves queued on links is sent then."""

    _wake_fd = _wake_write_fd = -1
    _wake_fds: Any = ()

    def __init__(
        self, name: str, serve: Callable[[Any], None], settle: Callable[[], None], at_end: Callable[[], None]
    ) -> None:
        self.inbox: deque[Any] = deque()
        self.is_asleep = False
        self.is_stopping = False  # asked to, has failed, or was left behind by a fork: nothing new is begun
        self._serve = serve
        self._settle = settle
        self._at_end = at_end
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._unsent: dict[int, Link] = {}  # something was queued
        self._blocked: set[int] = set()  # the sockets took no more
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_count = 0
        self._poller = _Poller()
        self._wake_fds = []
        _open_wake_fds(self._wake_fds)
        self._wake_fd, self._wake_write_fd = self._wake_fds[0], self._wake_fds[-1]
        self._poller.register(self._wake_fd, READABLE)
        self.failure: BaseException | None = None
        self.is_over = False  # the thread has ended
        self._late = threading.Lock()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    # -- from any thread -------------------------------------------------------------------------

    def post(self, item: Any) -> None:
        self.inbox.append(item)
        if self.is_asleep:
            self.wake()

    def post_task(self, task: Any) -> None:
        """`post` for threads that submit, and may wait: one that submits without a pause keeps the interpreter lock for
        5 ms at a time, and the workers idle. With so many not even looked at, it lets the reactor run."""
        self.inbox.append(task)
        if self.is_asleep:
            self.wake()
        elif len(self.inbox) >= limits.UNSEEN_TASKS:
            self.catch_up()

    def catch_up(self) -> None:
        """Any thread: wait until the reactor has seen what was posted so far."""
        if threading.current_thread() is self.thread:  # a finalizer of the user's that submits
            return
        done = threading.Lock()
        done.acquire()
        self.post(done.release)
        done.acquire(True, 1.0)

    def wake(self) -> None:
        if self.is_over:
            self._serve_late()
            return
        self.is_asleep = False
        try:
            os.write(self._wake_write_fd, b"\x01\0\0\0\0\0\0\0")
        except OSError:
            pass  # full: it is awake; closed: there is nobody to wake

    # -- on the reactor thread -------------------------------------------------------------------

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, READABLE)

    def is_watching(self, fd: int) -> bool:
        return fd in self._handlers

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def flush_soon(self, link: Link) -> None:
        """There is something to send: at the end of this turn, or when the socket takes it, or when the link is back
        from whom it was lent to."""
        if link.is_open:
            self._unsent[link.fileno()] = link

    def read(self, link: Link, events: int) -> bytes | None:
        """What has arrived, when the link's fd is ready for `events`: b"" is the end of the stream, None nothing. What
        waits to be sent goes on, if it can."""
        if events & ~READABLE:
            self.flush_soon(link)
        try:
            return link.receive()
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def forget_link(self, link: Link) -> None:
        """It is about to be closed: nothing of it is read or sent any more."""
        fd = link.fileno()
        self.forget(fd)
        self._unsent.pop(fd, None)
        self._blocked.discard(fd)

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timer_count, function))

    def stop(self) -> None:
        self.is_stopping = True

    def _run(self) -> None:
        try:
            while not self.is_stopping:
                self._turn()
        except BaseException as error:
            self.failure = error
            self.is_stopping = True
            raise
        finally:
            self._at_end()
            self._close()

    def _turn(self) -> None:
        inbox = self.inbox
        serve = self._serve
        while inbox:
            serve(inbox.popleft())
        self._settle()
        if self._unsent:
            self._flush()
        if self.is_stopping:
            return
        timers = self._timers
        timeout = max(0.0, timers[0][0] - time.monotonic()) if timers else None
        self.is_asleep = True
        if inbox:
            timeout = 0.0
        ready = self._poller.poll(timeout)
        self.is_asleep = False
        handlers = self._handlers
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)
            elif fd == self._wake_fd:
                os.read(fd, 8)
        if timers:
            now = time.monotonic()
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()

    def _flush(self) -> None:
        while self._unsent:  # a relayed link leaves what it has with the one that it is relayed by
            unsent, self._unsent = self._unsent, {}
            for fd, link in unsent.items():
                if link.is_lent:
                    continue  # flushed when it is back
                if link.flush():
                    if fd in self._blocked:
                        self._blocked.discard(fd)
                        if link.is_open:
                            self._watch_writable(fd, False)
                elif fd not in self._blocked:
                    self._blocked.add(fd)
                    self._watch_writable(fd, True)

    def _watch_writable(self, fd: int, wanted: bool) -> None:
        if fd in self._handlers:  # else its stream is over, and what is still queued goes nowhere
            self._poller.modify(fd, READABLE | WRITABLE if wanted else READABLE)

    def _close(self) -> None:
        self.is_over = True
        self.is_asleep = True  # for good: whoever posts from now on calls `wake`
        self._poller.close()
        self._close_wake_fds()
        self._serve_late()

    def _serve_late(self) -> None:
        """What comes after the thread's end is served by whoever brings it, so that nobody waits for ever."""
        while self.inbox and self._late.acquire(False):
            try:
                while self.inbox:
                    self._serve(self.inbox.popleft())
            finally:
                self._late.release()

    def abandon(self) -> None:
        """In a forked child, where the thread is not: what is posted is nobody's business any more."""
        self.is_stopping = True
        self.is_asleep = False
        self._handlers.clear()
        self._poller.close()
        self._close_wake_fds()

    def _close_wake_fds(self) -> None:
        self._wake_fd = self._wake_write_fd = -1
        while self._wake_fds:
            os.close(self._wake_fds.pop())

    __del__ = _close_wake_fds  # a signal handler raised before the thread was started


class _Poller:
    """`select.epoll` where there is one, else `select.poll`, with one interface."""

    def __init__(self) -> None:
        if hasattr(select, "epoll"):
            self._poll: Any = select.epoll()
            self._seconds = True
        else:  # pragma: no cover - macOS
            self._poll = select.poll()
            self._seconds = False

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        try:
            self._poll.unregister(fd)
        except (OSError, KeyError, ValueError):
            pass  # it, or the poller, is closed

    def poll(self, timeout_s: float | None) -> list[tuple[int, int]]:
        if self._seconds:
            found: list[tuple[int, int]] = self._poll.poll(timeout_s)
        else:  # pragma: no cover - macOS
            found = self._poll.poll(None if timeout_s is None else int(timeout_s * 1000) + 1)
        return found

    def close(self) -> None:
        if self._seconds:
            self._poll.close()


def _open_wake_fds(fds: list[int]) -> None:
    """One to read and one to write, or one that is both. In a single call that C runs from the opening to the list:
    nowhere in between could a signal handler raise, and leave behind what nobody knows."""
    if hasattr(os, "eventfd"):
        fds.extend(map(os.eventfd, (0,), (os.EFD_CLOEXEC | os.EFD_NONBLOCK,)))
    elif hasattr(os, "pipe2"):
        fds.extend(itertools.chain.from_iterable(map(os.pipe2, (os.O_CLOEXEC | os.O_NONBLOCK,))))
    else:  # pragma: no cover - macOS
        fds.extend(os.pipe())
        for fd in fds:
            os.set_blocking(fd, False)
