"""Lines from the caller's side: a worker that calls an actor again and again talks to the actor's worker itself.

    by the owner   caller -> owner -> actor's worker -> owner -> caller
    over a line    caller -> actor's worker -> caller

The owner is asked for a line when some calls in a row were each answered, quickly, before the next was made. Over it
go plain calls, one at a time; all others go by the owner, and so do those that follow until they have been answered in
turn again. That keeps the calls of this worker in their order (see `process.lines`).

The owner knows nothing of a call over a line. As soon as something else is done with its reference than `get`, or the
answer keeps it waiting (a task that waits must give back its slot), or the actor's worker is gone, the caller says
CALLED. From then on the reference is like any other: the answer goes, or has gone, to the owner, who also knows what is
to be said if the actor is dead.
"""

from __future__ import annotations

import marshal
import select
import socket
import threading
import time
import weakref

from scaleout._runtime.base import limits
from scaleout._runtime.base.references import Held, ObjectRef, Unshared
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.client.graph import Options
    from scaleout._runtime.process.worker import Worker


class Answer(Unshared):
    """What a reference to a call over a line holds: the answer once it was read, or who has it."""

    __slots__ = ("__weakref__", "_line", "body", "flag", "id", "is_here", "method", "shared", "submitted_ns")

    def __init__(self, line: Line, object_id: int, method: str) -> None:
        self._line = line
        self.id = object_id
        self.method = method
        self.submitted_ns = time.monotonic_ns()
        self.is_here = False
        self.flag = 0
        self.body = b""
        self.shared: Held | None = None

    def share(self) -> Held:
        """The owner knows of it from now on."""
        self._line.share(self)
        assert self.shared is not None
        return self.shared

    @property
    def content(self) -> tuple[int, bytes]:
        """As of an OBJECT frame, once it is here."""
        return self.flag, self.body

    def wait(self, deadline: float | None) -> bool:
        """Whether it is here, after a moment at most."""
        patience = time.monotonic() + limits.LINE_PATIENCE_SECONDS
        self._line.receive(self, patience if deadline is None else min(patience, deadline))
        return self.is_here


class Line:
    """The line to one actor. Any thread may use it; who finds it in use goes by the owner."""

    def __init__(self, worker: Worker, host_id: int, fd: int, unsettled: set[Line], noted: list[Any]) -> None:
        self._worker = worker
        self._requests = worker.need_requests()
        self.host_id = host_id  # the actor's worker
        self._link = Link(socket.socket(fileno=fd))
        self._unsettled = unsettled  # keeps it until it has read what is to come
        self._lock = threading.RLock()  # a finalizer may call the actor in the midst of it
        self._noted = noted
        self._outstanding = 0  # the number of the call whose answer was not read yet
        self._is_shared = False  # the owner knows of that call, and gets the answer, too
        self._answer: Any = lambda: None  # a weak reference to where it is to go
        self.is_over = False

    def __del__(self) -> None:
        self._link.close()

    @property
    def is_unsettled(self) -> bool:
        """Whether an answer is still to come."""
        return self._outstanding != 0 and not self.is_over

    def call(self, method: str, how: int, payload: bytes) -> ObjectRef | None:
        """None: this one has to go by the owner."""
        if self.is_unsettled:
            self.receive(None, 0.0)
        with self._worker.shielded():
            if not self._lock.acquire(False):
                return None
            try:
                if self._outstanding or self.is_over:
                    return None
                answer = Answer(self, self._requests.next_id(), method)
                body = marshal.dumps((method, payload))
                self._outstanding = answer.id
                self._is_shared = False
                self._answer = weakref.ref(answer)
                self._unsettled.add(self)
                self._link.send_now(frame(frames.TASK, body, flag=how, number=answer.id))
                return ObjectRef(answer.id, answer)
            except OSError:  # the actor's worker is gone, and cannot have read all of it
                self._settled()
                self.is_over = True
                return None
            finally:
                self._lock.release()

    def receive(self, answer: Answer | None, deadline: float) -> None:
        """Read until `answer` is here or the owner's, or nothing is to come, or until the deadline."""
        is_mine = False
        try:
            with self._worker.shielded():
                is_mine = self._lock.acquire(False)
            if not is_mine:
                return
            poll = select.poll()
            poll.register(self._link.fileno(), select.POLLIN)
            while self.is_unsettled and (answer is None or not (answer.is_here or answer.shared)):
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    break
                with self._worker.shielded():
                    self._read()
        finally:
            if is_mine:
                self._lock.release()

    def _settled(self) -> None:
        self._outstanding = 0
        self._unsettled.discard(self)

    def _read(self) -> None:
        try:
            data = self._link.receive()
        except OSError:
            data = b""
        if not data:
            self.is_over = True
            self._unsettled.discard(self)
            return
        for kind, flag, aux, number, body in self._link.frames(data):
            self._settled()
            if self._is_shared:
                continue
            answer: Answer = self._answer() or Answer(self, number, "")
            facts = (answer.method, number, answer.submitted_ns, time.monotonic_ns(), aux, self.host_id, flag)
            if answer.method:
                self._noted.append(facts)
            if kind == frames.BY_OWNER:
                answer.method = ""  # it is noted
                self._tell_owner(answer)
            else:
                answer.flag, answer.body = flag, body
                answer.is_here = True

    def share(self, answer: Answer) -> None:
        """See `Answer.share`."""
        with self._lock, self._worker.shielded():
            if not answer.is_here:
                self.receive(answer, 0.0)
            if answer.shared is not None:
                return
            if answer.is_here:
                self._requests.send(frame(frames.ANSWERED, answer.body, flag=answer.flag, number=answer.id))
            elif self.is_unsettled:
                self._is_shared = True
                try:
                    self._link.send_now(frame(frames.BY_OWNER, number=answer.id))
                except OSError:
                    pass  # then the owner says what became of it
            self._tell_owner(answer)

    def _tell_owner(self, answer: Answer) -> None:
        requests = self._requests
        facts = (self.host_id, answer.method, answer.submitted_ns)
        requests.send(frame(frames.CALLED, marshal.dumps(facts), number=answer.id))
        answer.shared = requests.held.made(answer.id)


class Calls:
    """How this worker has called one actor lately."""

    __slots__ = ("__weakref__", "began_at", "by_owner", "in_turn", "last_id", "line", "opened_at")

    def __init__(self) -> None:
        self.line: Line | None = None
        self.by_owner = 0  # so many calls went by the owner
        self.opened_at = -1  # and so many when it said that all of them were answered
        self.in_turn = 0  # so many calls were answered before the next was made
        self.last_id = 0  # the last call that went by the owner, until it was answered
        self.began_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the line may be used: nothing has gone by the owner since it was said so."""
        return self.opened_at == self.by_owner


class Lines:
    """Which calls of this worker go over lines. See the module's docstring."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._requests = worker.need_requests()
        self._calls: weakref.WeakKeyDictionary[Any, Calls] = weakref.WeakKeyDictionary()  # by the hold of the actor
        self._waiting: weakref.WeakValueDictionary[int, Calls] = weakref.WeakValueDictionary()  # by the last call
        self._unsettled: set[Line] = set()
        self._noted: list[Any] = []
        self._requests.on_idle = self.settle

    def for_call(self, hold: Any, options: Options) -> Line | None:
        """The line that the next call may go over, if what is in it is plain, too."""
        calls = self._calls.get(hold)
        if calls is None or not options.is_plain or options.max_retries or options.name:
            return None
        if not calls.is_open or calls.line is None or calls.line.is_over:
            if calls.last_id or calls.in_turn < limits.LINE_AFTER_CALLS:
                return None
            self._open(hold, calls)
        if len(self._noted) >= limits.NOTED_CALLS:
            self._tell_noted()
        return calls.line if calls.is_open else None

    def _open(self, hold: Any, calls: Calls) -> None:
        if self._requests.leader == threading.get_ident():
            return  # a finalizer, in the midst of reading: it cannot wait for an answer
        calls.in_turn = 0  # if the answer is no, it is not asked again at once
        by_owner = calls.by_owner  # another thread may call it meanwhile
        host_id = calls.line.host_id if calls.line is not None and not calls.line.is_over else 0
        if not self._requests.ask(("open_line", hold.id, host_id)):
            return
        found = self._requests.line_fds.pop(hold.id, None)
        if found is not None:
            calls.line = Line(self._worker, *found, self._unsettled, self._noted)
        calls.opened_at = by_owner

    def goes_by_owner(self, hold: Any, object_id: int) -> None:
        """A call of the actor is about to go by the owner; `object_id`: of its one result, or -1."""
        calls = self._calls.get(hold)
        if calls is None:
            calls = self._calls[hold] = Calls()
        calls.by_owner += 1
        if self._waiting.pop(calls.last_id, None) is not None:
            calls.in_turn = 0
        calls.last_id = object_id
        calls.began_at = time.monotonic()
        self._waiting[object_id] = calls

    def got(self, object_id: int) -> None:
        """An object was waited for and is here."""
        calls = self._waiting.pop(object_id, None)
        if calls is None:
            return
        calls.last_id = 0
        if time.monotonic() - calls.began_at < limits.LINE_PATIENCE_SECONDS:
            calls.in_turn += 1
        else:
            calls.in_turn = 0

    def close(self, hold: Any) -> None:
        """What is called from now on is for the next process of the actor."""
        self._calls.pop(hold, None)

    def settle(self) -> bool:
        """Nothing runs here: read what nobody waits for. Whether something is still to come."""
        self._tell_noted()
        for line in list(self._unsettled):
            line.receive(None, 0.0)
        return bool(self._unsettled)

    def _tell_noted(self) -> None:
        if self._noted:
            count = len(self._noted)  # other threads may add to it
            self._requests.send(frame(frames.NOTED, marshal.dumps(self._noted[:count])))
            del self._noted[:count]
