"""What the tasks in this worker ask its owner: to take on tasks of theirs, to keep values, to wait for some.

    a thread of the user's --frame--> owner --OBJECT, WAITED--> whoever reads the link --> that thread

There is no thread for reading. Whoever waits reads, if nobody else does (the *leader*); the others wait until the
leader has what they want, or leaves and makes one of them the next. The worker's main loop is one of them: it waits for
tasks.

While the main thread waits inside a task, the owner may send it *help*: a task that it waits for, and that no worker
has taken yet. It runs right there, inside the one that waits. All other tasks that were queued here go back.
"""

from __future__ import annotations

import gc
import itertools
import marshal
import os
import select
import sys
import threading
import time
from _thread import allocate_lock, get_ident
from collections import deque

from scaleout._runtime.base import limits
from scaleout._runtime.base.references import OF_WORKER_BITS, HeldTable
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any

    Worker = Any  # process.worker's, which asks by what is here


NEVER_MORE = -1
"""In place of how many items a consumer has taken: it has gone."""


class StreamDropped(Exception):
    """Ends a generator of an actor's whose consumer has gone."""


class Want:
    """One question to the owner, or the main loop's wait for work. `ready`: the answer."""

    __slots__ = ("is_answered", "is_main", "lock", "number", "ready", "values")

    def __init__(self, number: int, is_main: bool) -> None:
        self.number = number
        self.is_main = is_main
        self.lock = allocate_lock()
        self.lock.acquire()
        self.is_answered = False
        self.ready: Any = None
        self.values: dict[int, tuple[int, bytes]] = {}

    def wake(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # it is awake


class Requests:
    """See the module's docstring. Made at the first request."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._link = worker.link
        self.held = HeldTable()
        self._numbers = itertools.count(1)
        self._object_ids = itertools.count((worker.worker_id << OF_WORKER_BITS) + 1)
        self._wants: dict[int, Want] = {}
        self._leading = allocate_lock()
        self._is_main_away = worker.is_reading  # it leads, and does not know
        if self._is_main_away:  # a thread that a task has left is the first to ask something
            self._leading.acquire()
        self._sending = threading.RLock()
        self._help: deque[tuple[int, int, int, bytes]] = deque()
        self._main = worker.main_ident
        self.on_work: Callable[[], None] = lambda: None  # something was queued
        self.on_taken: Callable[[], None] = lambda: None
        self._taken: dict[int, int] = {}  # of the streams that run here, by the task's number
        self.line_fds: dict[
            int, tuple[int, int]
        ] = {}  # by actor: of lines that were asked for, (worker there, our end)
        self.leader = 0  # the thread that reads
        self._nudge: tuple[int, int] | None = None  # a pipe, by which whoever reads is made to look at the lines again
        self.on_idle: Callable[[], bool] = lambda: False
        """The main loop is about to wait for work. Whether to look again after a while."""

    # -- sending ---------------------------------------------------------------------------------

    def next_id(self) -> int:
        """A number for an object that is made here."""
        return next(self._object_ids)

    def send(self, data: bytes, fd: int = -1) -> None:
        """Any thread. A Ctrl-C that is meant for user code waits until the frame is out."""
        with self._worker.shielded():
            try:
                with self._sending:
                    self._link.send_now(data, fd)
            except (BrokenPipeError, ConnectionResetError):
                self._worker.link_lost()

    def report_released(self) -> None:
        """What nothing here refers to any more."""
        if self.held.released:
            self.send(frame(frames.RELEASE, marshal.dumps(self.held.take_released())))

    # -- waiting ---------------------------------------------------------------------------------

    def want(self, object_ids: Sequence[int], enough: int, with_values: bool, deadline: float | None) -> Want | None:
        """Wait until `enough` of the objects are there. None: the deadline came first."""
        worker = self._worker
        is_main = get_ident() == self._main and worker.nesting > 0
        want = Want(next(self._numbers), is_main)
        self._wants[want.number] = want
        self.report_released()
        # Whoever waits for a while, or for some of many, must be able to stop: not in the midst of another task.
        may_help = is_main and deadline is None and enough == len(object_ids)
        may_help = may_help and worker.nesting < limits.HELP_DEPTH and _has_stack_room()
        question = (list(object_ids), enough, with_values, is_main, may_help)
        if is_main:
            self._return_queued()
        self.send(frame(frames.WANT, marshal.dumps(question), number=want.number))
        try:
            while not want.is_answered:
                if not self._wait(want, deadline):
                    self.send(frame(frames.UNWANT, number=want.number))
                    return None
        except BaseException:
            self.send(frame(frames.UNWANT, number=want.number))
            raise
        finally:
            del self._wants[want.number]
            if is_main:
                self._keep_late_help()
        return want

    def _keep_late_help(self) -> None:
        """What came when nobody waited for it any more is a task like any other, after the one that runs."""
        if self._help and not self._is_main_waiting():
            for flag, aux, number, body in self._help:
                self._worker.queue.append((frames.TASK, flag & ~frames.HELP, aux, number, body))
            self._help.clear()

    def _is_main_waiting(self) -> bool:
        return any(want.is_main for want in list(self._wants.values()))

    def ask(self, question: tuple[Any, ...], deadline: float | None = None) -> Any:
        """A question that the owner answers at once, by plain data."""
        want = Want(next(self._numbers), False)
        self._wants[want.number] = want
        try:
            self.send(frame(frames.REQUEST, marshal.dumps(question), number=want.number))
            while not want.is_answered:
                self._wait(want, deadline)
        finally:
            del self._wants[want.number]
        return want.ready

    def wait_for_work(self) -> None:
        """The main loop: until something is queued, or the worker is to leave."""
        worker = self._worker
        is_unsettled = self.on_idle()
        self.report_released()
        want = Want(0, False)
        self._wants[0] = want
        has_collected = False
        deadline = time.monotonic() + limits.HELD_IDLE_SECONDS
        try:
            while not worker.queue and not worker.has_exit and (worker.lines is None or not worker.lines.is_ready):
                if not self._wait(want, deadline if self.held or is_unsettled else None):
                    if not has_collected:
                        has_collected = True
                        gc.collect()
                    is_unsettled = self.on_idle()
                    self.report_released()
                    deadline = time.monotonic() + limits.HELD_IDLE_SECONDS
        finally:
            del self._wants[0]

    def wait_until_taken(self, sequence: int, count: int) -> None:
        """A task that streams is too far ahead: until its consumer has taken so many of its items. Its slot is free
        then, as the consumer may be a task that needs one."""
        if self.has_taken(sequence, count):
            return
        is_main = get_ident() == self._main and self._worker.nesting > 0
        want = Want(next(self._numbers), is_main)
        self._wants[want.number] = want
        try:
            if is_main:
                self._return_queued()
                self.send(frame(frames.WANT, marshal.dumps(((), 1, False, True, False)), number=want.number))
            while not self.has_taken(sequence, count):
                self._wait(want, None)
        finally:
            del self._wants[want.number]
            if is_main:
                self.send(frame(frames.UNWANT, number=want.number))
                self._keep_late_help()

    def has_taken(self, sequence: int, count: int) -> bool:
        """Whether the consumer of a stream has taken so many items; StreamDropped if it will take no more."""
        taken = self._taken.get(sequence, 0)
        if taken == NEVER_MORE:
            raise StreamDropped("nobody takes what this generator yields any more")
        return taken >= count

    def main_has_read(self, data: bytes) -> None:
        """The main thread, which did not know that somebody waits, has read for him."""
        for entry in self._link.frames(data):
            self._route(entry)
        self.main_is_back()

    def main_is_back(self) -> None:
        """The main thread no longer reads for itself."""
        if self._is_main_away and get_ident() == self._main:
            self._is_main_away = False
            self._leading.release()
            for want in list(self._wants.values()):
                want.wake()

    def _wait(self, want: Want, deadline: float | None) -> bool:
        """Until something may have changed for `want`; False: the deadline came."""
        self.main_is_back()
        left = -1.0 if deadline is None else deadline - time.monotonic()
        if deadline is not None and left <= 0:
            return False
        if self._leading.acquire(False):
            self.leader = get_ident()
            try:
                if not want.is_answered and not (want.is_main and self._help):
                    self._read(left)
            finally:
                self.leader = 0
                self._leading.release()
                self._wake_next(want)
        else:
            if want.number == 0 and self._nudge is not None:
                self._nudge_leader()
            want.lock.acquire(True, left if left < 0 else min(left, threading.TIMEOUT_MAX))
        if want.is_main:
            while self._help:
                self._worker.help(*self._help.popleft())
            self._return_queued()
        return True

    def read_if_free(self) -> None:
        """Somebody else has seen that there is something to read."""
        if self._leading.acquire(False):
            try:
                self._read(0)
            finally:
                self._leading.release()

    def lines_opened(self) -> None:
        """There are lines to this worker from now on."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._nudge = reading, writing

    def _nudge_leader(self) -> None:
        """The main loop has nothing to do any more, and whoever reads may not be looking at the lines."""
        assert self._nudge is not None
        try:
            os.write(self._nudge[1], b"!")
        except BlockingIOError:
            pass  # it has not yet seen the earlier ones

    def _wake_next(self, leaving: Want) -> None:
        """Somebody must read, if anybody waits."""
        for want in list(self._wants.values()):
            if want is not leaving and not want.is_answered:
                want.wake()
                return

    def _read(self, timeout_s: float) -> None:
        """As the leader. Only the wait may be interrupted: what is read is not lost."""
        worker = self._worker
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        lines = worker.lines
        if lines is not None and self._nudge is not None:
            poll.register(self._nudge[0], select.POLLIN)
            if not lines.is_ready:
                poll.register(lines.fileno(), select.POLLIN)
        ready = poll.poll(None if timeout_s < 0 else min(timeout_s, limits.LONGEST_WAIT_SECONDS) * 1000 + 1)
        if lines is not None and self._nudge is not None:
            self._look_at_lines(lines, self._nudge[0], ready)
        if not any(fd == self._link.fileno() for fd, _ in ready):
            return
        with worker.shielded():
            try:
                data = self._link.receive()
            except ConnectionResetError:  # it has left without reading all that we said
                data = b""
            if not data:
                worker.link_lost()
                return
            for entry in self._link.frames(data):
                self._route(entry)

    def _look_at_lines(self, lines: Any, nudge_fd: int, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            if fd == nudge_fd:
                os.read(nudge_fd, select.PIPE_BUF)
            elif fd == lines.fileno():
                lines.is_ready = True
                main_loop = self._wants.get(0)
                if main_loop is not None:
                    main_loop.wake()

    def _route(self, entry: tuple[int, int, int, int, bytes]) -> None:
        kind, flag, aux, number, body = entry
        worker = self._worker
        if kind == frames.OBJECT and aux:
            want = self._wants.get(aux)
            if want is not None:
                want.values[number] = (flag, body)
            else:
                worker.discard(flag, body)
        elif kind == frames.WAITED:
            want = self._wants.get(number)
            if want is not None:
                want.ready = marshal.loads(body)
                want.is_answered = True
                want.wake()
        elif kind == frames.TAKEN:
            self._taken[number] = NEVER_MORE if flag else aux
            for want in list(self._wants.values()):
                want.wake()
            self.on_taken()
        elif kind in frames.AT_ONCE:
            worker.obey(*entry)
        elif kind == frames.TASK and flag & frames.HELP and self._is_main_waiting():
            self._return_queued()  # so that its callable and its dependencies are here
            self._help.append((flag, aux, number, body))
            for want in list(self._wants.values()):
                if want.is_main:
                    want.wake()
        else:
            if kind == frames.TASK:
                entry = (kind, flag & ~frames.HELP, aux, number, body)
            worker.queue.append(entry)
            main_loop = self._wants.get(0)
            if main_loop is not None:
                main_loop.wake()
            else:
                self.on_work()

    def _return_queued(self) -> None:
        """The tasks behind the one that waits are for other workers."""
        worker = self._worker
        returned = []
        while worker.queue:
            entry = worker.queue.popleft()
            if entry[0] == frames.TASK:
                returned.append(entry[3])
                worker.forget_task(entry[1], entry[4])
                worker.forget_dependencies()
            else:
                worker.obey(*entry)
        if returned:
            worker.is_returning = worker.hosts_actor  # what is still on its way is to come again behind these
            self.send(frame(frames.RETURNED, marshal.dumps(returned)))

    def stream_ended(self, sequence: int) -> None:
        self._taken.pop(sequence, None)


def _has_stack_room() -> bool:
    """Whether another task fits on this thread's stack, as deep as the interpreter lets it grow."""
    depth = 0
    frame_: FrameType | None = sys._getframe()
    while frame_ is not None:
        depth += 1
        frame_ = frame_.f_back
    return depth < sys.getrecursionlimit() // 2
