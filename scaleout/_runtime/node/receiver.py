"""What workers say: their frames become facts for the core, and results for the sinks.

Everything here runs on the reactor thread, but the by-value pickling of what a worker could not import: that runs the
user's code, and so on the callback thread.
"""

from __future__ import annotations

import marshal
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.node.history import now_ns
from scaleout._runtime.node.stored import Referring
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.core.tasks import Task
    from scaleout._runtime.node.callables import CallableTable
    from scaleout._runtime.node.callbacks import CallbackThread
    from scaleout._runtime.node.clerk import Clerk
    from scaleout._runtime.node.keeper import ZygoteKeeper
    from scaleout._runtime.node.lineage import Lineage
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.node.records import Records

unpack_header = HEADER.unpack_from
RESULT = frames.RESULT
STATUS_MASK = frames.STATUS_MASK
STAYS = frames.STAYS


class Receiver:
    """See the module's docstring."""

    def __init__(
        self,
        reactor: Reactor,
        keeper: ZygoteKeeper,
        objects: ObjectTable,
        callables: CallableTable,
        errands: CallbackThread,
        clerk: Clerk,
        lineage: Lineage,
        records: Records,
    ) -> None:
        self._reactor = reactor
        self._records = records
        self._keeper = keeper
        self._objects = objects
        self._callables = callables
        self._errands = errands
        self._clerk = clerk
        self._lineage = lineage

    def on_data(self, peer: Peer, data: bytes) -> None:
        """`data` was read from the worker's link, and begins at a frame's start."""
        lane = peer.lane
        core = peer.group.core
        at_ns = 0
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = unpack_header(data, position)
            start = position + HEADER_BYTES
            following = start + length
            if following > end:
                if length > limits.FRAME_BYTES:
                    self._keeper.give_up(peer)
                    return
                break
            position = following
            if kind == RESULT:
                task = core.finished(lane, number, aux)
                if task is not None:
                    if task.submitted_ns:
                        at_ns = at_ns or now_ns()  # all that is in `data` has come now
                        self._clerk.note(task, aux, peer.pid, flag & STATUS_MASK, at_ns)
                    payload: Any = data[start:following]
                    if flag:
                        payload = self._unusual(peer, flag, payload, task.sink)
                        if flag & STAYS and peer.seat.place is not None:
                            self._lineage.stays(task, payload, peer.seat.place)
                    if task.stored is not None and not core.may_repeat(task):
                        self._objects.drop(task.stored)
                    task.sink.deliver(task.index, flag & STATUS_MASK, payload)
                elif flag & frames.STORED:
                    self._unusual(peer, flag, data[start:following], None)  # dropped at once, and so given back
            else:
                self._on_frame(peer, kind, flag, aux, number, data[start:following])
        if position < end:
            peer.link.leftover(data, position)

    def _on_frame(self, peer: Peer, kind: int, flag: int, aux: int, number: int, body: bytes) -> None:
        core = peer.group.core
        if kind == frames.READY:
            core.worker_ready(peer.lane)
        elif kind == frames.RETURNED:
            core.returned(peer.lane, marshal.loads(body))
            if peer.group.keeps_order:  # it gives back whatever comes until then
                peer.link.queue(frame(frames.RESUME))
                self._reactor.flush_soon(peer.link)
        elif kind == frames.RELEASED:
            self._objects.returned(peer, marshal.loads(body))
        elif kind == frames.SEGMENT:
            size_bytes, is_on_disk = marshal.loads(body)
            self._objects.add_segment(peer, number, peer.seat.take_segment(number, size_bytes), size_bytes, is_on_disk)
        elif kind == frames.NEED:
            self._on_need(peer, number, *marshal.loads(body))
        elif kind == frames.ANSWERED:
            entry = self._clerk.lines.answered(number, flag & STATUS_MASK, aux)
            payload = self._unusual(peer, flag, body, entry) if flag else body
            entry.deliver(0, flag & STATUS_MASK, payload)
        elif kind == frames.INITIALIZER_FAILED:
            peer.group.failure = self._unusual(peer, flag or frames.TASK_RAISED, body, None)
        elif kind == frames.LOGGED:
            peer.lane.talks = True  # so it must be listened to
            self._records.take(body, peer.seat.origin(peer))
        elif kind == frames.CHANNEL:
            self._keeper.adopt(peer, peer.link.fds.popleft())
        elif not self._clerk.on_frame(peer, kind, flag, aux, number, body):
            self._keeper.give_up(peer)

    def _unusual(self, peer: Peer, flag: int, body: bytes, sink: Any) -> Any:
        """The payload of a result that is large, or refers to objects, or a failure (whose exception may be large)."""
        is_entry = getattr(sink, "keeps_objects", False)
        if not flag & STATUS_MASK:
            if flag & frames.HAS_REFERENCES or is_entry:
                contained, payload = self._clerk.value_of(peer, flag, body)
                if not is_entry:
                    return Referring(payload, contained)
                if contained:
                    sink.contained = contained
                return payload
            self._objects.share_budget()
            return self._objects.result(peer, body)
        failure = marshal.loads(body)
        if flag & frames.STORED:
            stored = self._objects.keep(failure[0]) if is_entry else self._objects.result(peer, failure[0])
            failure = (stored, *failure[1:])
        return failure

    # -- what a worker could not import ----------------------------------------------------------

    def _on_need(self, peer: Peer, sequence: int, module: str, name: str, described: str) -> None:
        """The worker cannot import what a payload names: ship it by value, once; the user's pickling runs elsewhere."""
        core = peer.group.core
        task = core.undecodable(peer.lane, sequence)
        if peer.lane.waits:  # it was to do this while it waits for it: it cannot help itself any more
            core.lane_blocked(peer.lane)
        if peer.group.keeps_order:  # it skips everything until then
            peer.link.queue(frame(frames.RESUME))
            self._reactor.flush_soon(peer.link)
        if task is None:
            return
        self._errands.put(partial(self._ship_by_value, task, module, described))

    def _ship_by_value(self, task: Task, module: str, described: str) -> None:
        """On the callback thread, as pickling runs the user's code."""
        record: Any = task.callable
        encoder, book = self._callables.encoder, self._callables.book
        needs: tuple[int, ...] = ()
        try:
            parts = [encoder.needs_after_miss(stream, module) for stream in (record.payload, task.payload)]
            needs = book.join(task.needs, record.needs, *parts)
        except BaseException:  # noqa: BLE001 - the user's reducers; the worker's error says what is missing
            needs = ()
        if not needs or set(needs) <= {*task.needs, *record.needs}:
            answer = (None, described, described.strip().rpartition("\n")[2], "", None)
            self._reactor.post(partial(self._finish_undecodable, task, answer))
            return
        task.needs = needs
        self._reactor.post(partial(task.group.core.resubmitted, task))

    def _finish_undecodable(self, task: Task, answer: Any) -> None:
        if task.group.core.gave_up(task):
            task.group.finish(task, frames.ARGUMENT_NOT_UNPICKLED, answer)
