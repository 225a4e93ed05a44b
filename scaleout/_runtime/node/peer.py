"""A worker as its owner holds it: the link, the control page, and what the worker has been told so far.

Methods run on the reactor thread. What they queue is sent when somebody asks the reactor to flush the link.
"""

from __future__ import annotations

import marshal
import os
import signal
from collections import deque

from scaleout._runtime.base.latch import Latch
from scaleout._runtime.node.direct import DirectLine
from scaleout._runtime.node.ledger import Holdings
from scaleout._runtime.node.stored import StoredObject
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.core.dispatch import Lane
    from scaleout._runtime.core.tasks import Task
    from scaleout._runtime.node.callables import CallableTable
    from scaleout._runtime.node.ledger import Entry, Envelope
    from scaleout._runtime.node.seat import Seat

pack = HEADER.pack


class Peer:
    """One worker. Only the reactor thread changes it; `pid` and `exit_status` may be read by anyone."""

    def __init__(self, worker_id: int, number: int, seat: Seat) -> None:
        self.worker_id = worker_id
        self.number = number
        self.seat = seat
        self.link: Any = seat.link
        self.words = seat.words
        self.lane: Lane = None  # type: ignore[assignment]  # set as soon as the group knows it
        self.group: Any = None
        self.pid = 0
        self.exit_status: int | None = None
        self.has_exited = Latch()
        self.is_started = Latch()
        self.is_stream_over = False
        self.known_callables: set[int] = set()
        self.known_definitions: set[int] = set()
        self.known_segments: set[int] = set()
        self.segments: set[int] = set()  # of the worker's own, that this process maps
        self.has_tracker = seat.is_relayed  # there is no driver's tracker where it is
        self.line = DirectLine()
        self.holdings = Holdings()
        self.functions: dict[int, Any] = {}  # what it calls by a number in SUBMIT
        self.wants: dict[int, Any] = {}  # what its threads wait for
        self.lines: dict[int, Peer] = {}  # workers of actors that it calls over a line, by number
        self.backlog: deque[list[Any]] = deque()  # what it said, in order, from the first that takes a moment on
        self.memory_usage: dict[int, int] | None = None  # set when it is killed because memory ran short

    def send(
        self,
        tasks: list[Task],
        trace_items: bool,
        table: CallableTable,
        lend: Callable[[Peer, Any], None],
        help_flag: int = 0,
    ) -> None:
        """Queue the tasks as frames, each after the callables and definitions that the worker lacks for it."""
        parts: list[bytes] = []
        known = self.known_callables
        checked: Any = ()
        for task in tasks:
            record: Any = task.callable
            if record.needs is not checked:  # they change when a name is bound anew
                checked = record.needs
                self._send_definitions(parts, checked, table, lend)
            if record.id not in known:
                known.add(record.id)
                flag = 0
                if record.stored is not None:
                    flag = frames.STORED
                    self._flush_parts(parts)
                    lend(self, record.stored)
                parts.append(frame(frames.CALLABLE, record.payload, flag=flag, number=record.id))
            if task.needs:
                self._send_definitions(parts, task.needs, table, lend)
            how = task.how | help_flag
            if task.stored is not None:
                self._flush_parts(parts)
                lend(self, task.stored)
            if trace_items:
                how |= frames.TRACE_ITEMS
            payload = task.payload
            if task.envelope is not None:
                how |= frames.ENVELOPE
                payload = self._enveloped(parts, task.envelope, payload, lend)
            parts.append(pack(len(payload), frames.TASK, how, record.id, task.sequence))
            parts.append(payload)
        self._flush_parts(parts)

    def _enveloped(
        self, parts: list[bytes], envelope: Envelope, payload: bytes, lend: Callable[[Peer, Any], None]
    ) -> bytes:
        for entry in envelope.dependencies:
            self.add_object(parts, entry, 0, lend)
        handed_over = self.holdings.hand_over(envelope.references)
        self.lane.talks = self.lane.talks or bool(handed_over)  # it will say when it needs them no more
        dependencies = [entry.id for entry in envelope.dependencies]
        return marshal.dumps((payload, dependencies, handed_over, envelope.returns))

    def add_object(self, parts: list[bytes], entry: Entry, want: int, lend: Callable[[Peer, Any], None]) -> None:
        """The frame that brings the worker an object that is there: for a WANT of that number, or for the next task."""
        flag, body = entry.status, entry.payload
        if flag != frames.OK:
            flag, body = self._failure(flag, body, lend)
        elif type(body) is not bytes:
            self._flush_parts(parts)
            lend(self, body.extents)
            flag, body = frames.STORED, body.body
        if entry.contained:
            flag |= frames.HAS_REFERENCES
            self.lane.talks = True
            body = marshal.dumps((body, self.holdings.hand_over(entry.contained)))
        parts.append(frame(frames.OBJECT, body, flag=flag, aux=want, number=entry.id))

    def _failure(self, status: int, payload: Any, lend: Callable[[Peer, Any], None]) -> tuple[int, bytes]:
        """A failure, whose exception may be large."""
        if type(payload) is tuple and payload and isinstance(payload[0], StoredObject):
            lend(self, payload[0].extents)
            return status | frames.STORED, marshal.dumps((payload[0].body, *payload[1:]))
        return status, marshal.dumps(payload)

    def send_objects(self, entries: list[Entry], want: int, lend: Callable[[Peer, Any], None]) -> None:
        parts: list[bytes] = []
        for entry in entries:
            self.add_object(parts, entry, want, lend)
        self._flush_parts(parts)

    def define(self, needs: Iterable[int], table: CallableTable, lend: Callable[[Peer, Any], None]) -> None:
        """Queue those of the definitions that the worker lacks."""
        parts: list[bytes] = []
        self._send_definitions(parts, needs, table, lend)
        self._flush_parts(parts)

    def share_tracker(self, fd: int) -> None:
        """The worker reports shared resources to the driver's tracker, also if that was started after the worker."""
        if not self.has_tracker:
            self.has_tracker = True
            self.link.queue(frame(frames.TRACKER), fd)

    def _flush_parts(self, parts: list[bytes]) -> None:
        if parts:
            self.link.queue(b"".join(parts))
            parts.clear()

    def _send_definitions(
        self, parts: list[bytes], needs: Any, table: CallableTable, lend: Callable[[Peer, Any], None]
    ) -> None:
        known = self.known_definitions
        for definition_id in needs:
            if definition_id in known:
                continue
            known.add(definition_id)
            payload, stored = table.definition(definition_id)
            flag = 0
            if stored is not None:
                flag = frames.STORED
                self._flush_parts(parts)
                lend(self, stored)
            parts.append(frame(frames.DEFINITION, payload, flag=flag, number=definition_id))

    def introduce_segment(self, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        """The worker gets the fd of a segment of ours before the first frame that names it."""
        if segment_id not in self.known_segments:
            self.known_segments.add(segment_id)
            self.seat.introduce(segment_id, fd, size_bytes, is_on_disk)

    def forget_callables(self, ids: list[int]) -> None:
        known = [callable_id for callable_id in ids if callable_id in self.known_callables]
        if known:
            self.known_callables.difference_update(known)
            self.link.queue(frame(frames.FORGET, marshal.dumps(known)))

    def forget_definitions(self, ids: list[int]) -> bool:
        """True if there is something to send."""
        known = [definition_id for definition_id in ids if definition_id in self.known_definitions]
        if known:
            self.known_definitions.difference_update(known)
            self.link.queue(frame(frames.FORGET_DEFINITIONS, marshal.dumps(known)))
        return bool(known)

    @property
    def exitcode(self) -> int | None:
        """As `multiprocessing.Process.exitcode`: None while alive, negative for a signal."""
        if self.exit_status is None:
            return None
        if self.exit_status < 0:  # nobody could wait for it: it went with its zygote, by SIGKILL
            return -signal.SIGKILL
        return os.waitstatus_to_exitcode(self.exit_status)
