"""The owner: keeps the tasks that this process submitted, and drives the core for its worker groups.

    submitting thread --post--> reactor --frames--> worker --frames--> reactor --deliver--> sink --> waiting thread

One per session. Everything here runs on the reactor thread unless a method says "any thread". Decisions are
`core.dispatch`'s; this module turns facts (frames, deaths, timers) into its calls and its effects into frames.

A *sink* is where results go: an object with `deliver(index, status, payload)`, called on the reactor thread, which must
be quick and must not run user code. `payload` is bytes for OK, `StoredResult` for OK of a large result, a tuple for
failures that the worker described, and for failures that the owner found whatever the status says.
"""

from __future__ import annotations

import itertools
import marshal
import os
import signal
import socket
import threading
import time
import weakref
from collections import deque
from functools import partial

from scaleout._runtime.base import limits, memory
from scaleout._runtime.core.dispatch import Group
from scaleout._runtime.core.ranges import RangeTable
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, Task
from scaleout._runtime.node.callables import CallableTable
from scaleout._runtime.node.callbacks import CallbackThread
from scaleout._runtime.node.host import Host
from scaleout._runtime.node.peer import Peer
from scaleout._runtime.node.reactor import READABLE, Reactor
from scaleout._runtime.node.stored import StoredResult
from scaleout._runtime.process import identity
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame
from scaleout._runtime.wire.link import Link
from scaleout.errors import SessionClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.node.direct import Presence
    from scaleout._runtime.pickling.definitions import DefinitionBook
    from scaleout._runtime.pickling.encode import Encoded, Encoder
    from scaleout._runtime.store.exchange import Exchange
    from scaleout._runtime.store.segment import Extent

unpack_header = HEADER.unpack_from
RESULT = frames.RESULT


class WorkerGroup:
    """The workers behind one Pool: the core's dispatcher and the effects' addressees. Its interface: `session`."""

    def __init__(self, core: Group, initializer: Any, hello: dict[str, Any]) -> None:
        self.core = core
        self.initializer = initializer  # makes the INITIALIZE frames of one worker, on the reactor thread
        self.hello = hello
        self.peers: list[Peer] = []
        self.failure: Any = None  # the last initializer failure, as the worker described it
        self.lent: tuple[Peer, ...] = ()  # workers that submitting threads may talk to themselves
        self.wants_direct = False
        self.last_caller = 0  # the thread that made the last synchronous call
        self.is_opened = threading.Event()
        self.has_ended = threading.Event()
        self.is_terminating = False
        self.carrying: list[tuple[Any, ...]] = []  # effects that are being carried out
        self.numbers = itertools.count(1)


class Owner:
    """See the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder,
        book: DefinitionBook,
        host: Host | None,
        worker_ids: itertools.count[int],
    ) -> None:
        self.settings = settings
        self.worker_ids = worker_ids
        self.groups: list[WorkerGroup] = []
        self.peers: dict[int, Peer] = {}
        self.pages = control_page.ControlPages()
        self.ranges = RangeTable()
        self.encoder = encoder
        self.callables = CallableTable(encoder, book, self.store)
        self._exchange: Exchange | None = None
        self._exchange_lock = threading.Lock()
        self._dirty_links: dict[int, Link] = {}
        self._blocked_links: set[int] = set()
        self._released = False
        self._foreign_bytes = 0  # of the store's budget, in the workers' segments
        self._result_ids = itertools.count(1)
        self._unread: dict[int, tuple[Peer, list[Extent]]] = {}  # large results nobody has looked at yet
        self._tick_armed = False
        self._memory_watched = False
        self._memory_kill_at = 0.0
        self._trim_armed = False
        self._oom_kills = memory.oom_kills()
        self._host_deaths: deque[float] = deque(maxlen=limits.ZYGOTE_RESTARTS_PER_MINUTE)
        self.host: Host | None = host
        self.opening = 0  # groups announced, not yet here
        self.is_over = False
        self.on_idle: Callable[[], bool] = lambda: False
        self.reactor = Reactor("scaleout-reactor", self._serve, self._settle, self._at_end)
        self.post = self.reactor.post
        self.callbacks = CallbackThread()

    # -- any thread ------------------------------------------------------------------------------

    def start(self) -> None:
        self.reactor.start()

    def open_group(self, group: WorkerGroup) -> None:
        self.post(partial(self._open_group, group))

    def submit(self, task: Task) -> None:
        self.post(task)

    def store(self, encoded: Encoded, share: Callable[[memoryview], Any] | None = None) -> tuple[bytes, list[Extent]]:
        """Copy what is large into segments of ours; returns (body that names the places, the extents it names).

        Each extent is held once for the caller, those that `share` answered with included.
        """
        extents: list[Extent] = []
        try:
            body = self.exchange.store(encoded, self._allocate, extents, share)
        except BaseException:
            self.release_extents(extents)
            raise
        return body, extents

    def hold(self, extents: list[Extent]) -> None:
        for extent in extents:
            self.ranges.hold(extent)

    def _allocate(self, size_bytes: int) -> tuple[int, int, int]:
        """A range of our segments, held once. From the reactor thread directly, from others by asking it."""
        if threading.get_ident() == self.reactor.thread.ident:
            return self._allocate_here(size_bytes)
        answer: list[Any] = []
        done = threading.Lock()
        done.acquire()
        self.post(partial(self._answer_allocation, size_bytes, answer, done))
        try:
            done.acquire()
        except BaseException:  # Ctrl-C: the range that the reactor is about to answer is nobody's
            self.post(partial(self._drop_answer, answer))
            raise
        if isinstance(answer[0], BaseException):
            raise answer[0]
        extent: tuple[int, int, int] = answer[0]
        return extent

    def release_extents(self, extents: list[Extent]) -> None:
        """Any thread, finalizers included: uses taken by `store` are over."""
        self.post(partial(self._drop_extents, extents))

    def kill(self, peer: Peer, signum: int) -> None:
        self.post(partial(self._kill, peer, signum))

    def drop(self, group: WorkerGroup, unwanted: Callable[[Task], bool], interrupt: bool) -> None:
        self.post(partial(self._drop, group, unwanted, interrupt))

    def submit_limited(self, task: Task, timeout_s: float | None) -> None:
        self.post(partial(self._submit_limited, task, timeout_s))

    def cancel(self, task: Task) -> bool:
        """Whether the task was taken back before any worker started it; its sink has been told CANCELLED then."""
        answer: list[bool] = []
        self._ask(lambda done: self._cancel(task, answer, done))
        return answer == [True]

    def is_running(self, task: Task) -> bool:
        """Any thread, so what it sees may change under it: it looks twice."""
        lane: Any = task.runner
        sequence = task.sequence
        if task.state != ASSIGNED or lane is None:
            return False
        try:
            claimed = lane.worker.words[control_page.CLAIMED]
        except ValueError:  # the worker is gone
            return False
        return bool(
            claimed >= sequence and task.state == ASSIGNED and task.runner is lane and task.sequence == sequence
        )

    def cancel_pending(self, group: WorkerGroup) -> None:
        """Take back everything of the group that no worker has started. No more must be submitted."""
        self._ask(lambda done: self._cancel_pending(group, done))

    def _ask(self, question: Callable[[Any], None]) -> None:
        """Have the reactor work on `question(done)`, and wait until it releases `done`."""
        if threading.get_ident() == self.reactor.thread.ident:
            return  # in a finalizer, that must not wait for what it interrupts
        done = threading.Lock()
        done.acquire()
        self.post(partial(question, done))
        while not done.acquire(True, 1.0) and not self.is_over:
            pass

    def resize(self, group: WorkerGroup, size: int) -> None:
        self.post(partial(self._resize, group, size))

    def close_group(self, group: WorkerGroup) -> None:
        self.post(partial(self._close_group, group))

    def terminate_group(self, group: WorkerGroup) -> None:
        self.post(partial(self._terminate_group, group))

    @property
    def exchange(self) -> Exchange:
        if self._exchange is None:
            from scaleout._runtime.store.exchange import Exchange

            with self._exchange_lock:
                if self._exchange is None:
                    self._exchange = Exchange(
                        announce=lambda *segment: None,
                        allowance_bytes=lambda: max(0, self.settings.store_bytes - self._foreign_bytes),
                        spill_dir=self.settings.spill_dir,
                        on_released=self._notice_released,
                    )
        return self._exchange

    def _notice_released(self) -> None:
        self._released = True
        if self.reactor.is_asleep:
            self.reactor.wake()

    # -- the turn of the reactor -----------------------------------------------------------------

    def _serve(self, item: Any) -> None:
        if type(item) is Task:
            group = item.group
            if group.is_terminating or group.core.is_broken:
                self._fail_late(item)
            else:
                group.core.ready.append(item)
        else:
            item()

    def _settle(self) -> None:
        if self._released:  # first, so that a worker has its ranges back before the next task wants one
            self._report_released()
        for group in self.groups:
            core = group.core
            if core.ready or core.suspects or core.is_closing:
                core.pump()
            if core.effects:
                self._carry_out(group)
            if group.wants_direct and not core.busy and not core.ready:
                self._lend(group)
            if core.busy and not self._memory_watched:
                self._memory_watched = True
                self.reactor.call_later(limits.MEMORY_WATCH_SECONDS, self._watch_memory)
            if core.needs_tick and not self._tick_armed:
                self._tick_armed = True
                self.reactor.call_later(limits.STALL_SECONDS, self._tick)
        if self.callables.forgotten:
            self._forget_callables()
        if self.callables.book.forgotten:
            self._forget_definitions()
        if self._dirty_links:
            self._flush()

    def _flush(self) -> None:
        for fd, link in list(self._dirty_links.items()):
            if link.is_lent:
                continue  # flushed when it is back
            if link.flush():
                if fd in self._blocked_links:
                    self._blocked_links.discard(fd)
                    if link.is_open:
                        self.reactor.watch_writable(fd, False)
            elif fd not in self._blocked_links:
                self._blocked_links.add(fd)
                self.reactor.watch_writable(fd, True)
        self._dirty_links.clear()

    def _dirty(self, link: Link) -> None:
        """There is something to send. A link that is lent is sent on when it is back; see `_dirty_peer`."""
        if link.is_open:
            self._dirty_links[link.fileno()] = link

    def _dirty_peer(self, peer: Peer) -> None:
        """As `_dirty`, and if the worker is lent, have it back."""
        self._dirty(peer.link)
        if peer.link.is_lent:
            self._do_reclaim(peer.group, peer.lane)

    def _tick(self) -> None:
        self._tick_armed = False
        for group in self.groups:
            group.core.tick()

    def _carry_out(self, group: WorkerGroup) -> None:
        core = group.core
        while core.effects:
            group.carrying, core.effects = core.effects, []
            for effect in group.carrying:
                name = effect[0]
                if name == "send":
                    peer = effect[1].worker
                    tracker_fd = identity.resource_tracker_fd()
                    if tracker_fd >= 0:
                        peer.share_tracker(tracker_fd)
                    peer.send(effect[2], effect[1].is_isolated, self.callables, self._lend_extents)
                    self._dirty(peer.link)
                else:
                    getattr(self, "_do_" + name)(group, *effect[1:])
            group.carrying = []
            if core.ready or core.suspects:
                core.pump()

    # -- effects ---------------------------------------------------------------------------------

    def _do_start(self, group: WorkerGroup, count: int) -> None:
        missing = count
        try:
            host = self._need_host()
            host.describe(self.settings.max_processes)
            while missing:
                self._start_worker(group, host)
                missing -= 1
        except OSError as error:  # no fds or no memory left
            group.failure = ("refused", str(error))
            group.core.start_refused(missing)
            if group.core.size:
                self.callbacks.put(partial(_warn_of_smaller_group, group.core.size, str(error)))
        if self.host is not None:
            self._dirty(self.host.link)

    def _start_worker(self, group: WorkerGroup, host: Host) -> None:
        """Ask for one worker; OSError leaves nothing behind."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link = Link(ours)
        try:
            file, page, words = self.pages.take()
            peer = Peer(next(self.worker_ids), next(group.numbers), link, (file, page), words)
            words[control_page.ALLOWANCE_BYTES] = self.settings.store_bytes
            peer.group = group
            try:
                self._greet(group, peer)
                self.reactor.watch(ours.fileno(), partial(self._on_link, peer))
            except BaseException:
                words.release()
                self.pages.give_back(file, page)
                self._free(self.ranges.reader_died(peer))
                raise
        except BaseException:
            self._dirty_links.pop(link.fileno(), None)
            link.close()
            theirs.close()
            raise
        peer.lane = group.core.worker_started(peer)
        self.peers[peer.worker_id] = peer
        group.peers.append(peer)
        host.fork(peer.worker_id, theirs)

    def _greet(self, group: WorkerGroup, peer: Peer) -> None:
        info = {**group.hello, "page": peer.page[1], "number": peer.number}
        peer.link.queue(frame(frames.HELLO, marshal.dumps(info)), peer.page[0])
        tracker_fd = identity.resource_tracker_fd()
        if tracker_fd >= 0:
            peer.share_tracker(tracker_fd)
        if group.initializer is None:
            peer.link.queue(frame(frames.INITIALIZE))
        else:
            group.initializer(peer)
        self._dirty(peer.link)

    def _do_retire(self, group: WorkerGroup, lane: Any) -> None:
        lane.worker.link.queue(frame(frames.EXIT))
        self._dirty(lane.worker.link)

    def _do_revoke(self, group: WorkerGroup, lane: Any, sequence: int) -> None:
        lane.worker.words[control_page.REVOKED_FROM] = sequence
        self.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._revocation_settled, group, lane, sequence))

    def _revocation_settled(self, group: WorkerGroup, lane: Any, sequence: int) -> None:
        if lane.revoked_from == sequence:  # else: dead by now, or revoked further since
            group.core.revocation_settled(lane, lane.worker.words[control_page.CLAIMED])

    def _do_unrevoke(self, group: WorkerGroup, lane: Any) -> None:
        lane.worker.words[control_page.REVOKED_FROM] = control_page.NOTHING_REVOKED
        group.core.lane_reopened(lane)

    def _do_interrupt(self, group: WorkerGroup, lane: Any, tasks: list[Task]) -> None:
        """What runs there is not wanted: SIGINT if it is indeed running, SIGKILL if that does not help."""
        peer: Peer = lane.worker
        sequences = frozenset(task.sequence for task in tasks)
        if not self._signal_if_running(peer, sequences, signal.SIGINT):
            # Either it is claimed at this very moment and will show, or the revocation keeps it from being claimed.
            settled = partial(self._signal_if_running, peer, sequences, signal.SIGINT)
            self.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, settled)
        still = partial(self._signal_if_running, peer, sequences, signal.SIGKILL)
        self.reactor.call_later(limits.INTERRUPT_GRACE_SECONDS, still)

    def _signal_if_running(self, peer: Peer, sequences: frozenset[int], signum: int) -> bool:
        """Whether the worker has claimed one of these tasks and not answered; the signal goes to it then."""
        if peer.has_exited.is_set() or peer.exit_status is not None:
            return False
        claimed = peer.words[control_page.CLAIMED]
        if claimed not in sequences or all(task.sequence != claimed for task in peer.lane.inflight):
            return False
        if signum == signal.SIGINT:
            peer.words[control_page.INTERRUPTED] = claimed
        self._kill(peer, signum)
        return True

    def _do_kill(self, group: WorkerGroup, lane: Any, task: Task) -> None:
        late = partial(self._signal_if_running, lane.worker, frozenset([task.sequence]), signal.SIGKILL)
        self.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, late)

    def _watch_memory(self) -> None:
        """While tasks run: before the system kills what it likes, kill the newest task that may be run again."""
        self._memory_watched = False
        now = time.monotonic()
        if now - self._memory_kill_at < limits.MEMORY_KILL_PAUSE_SECONDS or not memory.is_short(
            limits.MEMORY_SHORT_SHARE
        ):
            return
        running = [
            (peer.words[control_page.SINCE_NS], peer)
            for group in self.groups
            if group.core.max_retries > 0
            for peer in group.peers
            if peer.lane.inflight and peer.words[control_page.CLAIMED] == peer.lane.inflight[0].sequence
        ]
        if running:
            newest = max(running, key=lambda entry: entry[0])[1]
            newest.memory_usage = {peer.pid: memory.resident_bytes(peer.pid) for peer in self.peers.values()}
            self._memory_kill_at = now
            self._kill(newest, signal.SIGKILL)

    def _do_failed(self, group: WorkerGroup, task: Task, lane: Any) -> None:
        peer: Peer = lane.worker
        index = peer.words[control_page.ITEM_INDEX]
        status = frames.WORKER_DIED
        if peer.memory_usage is not None or (peer.exitcode == -signal.SIGKILL and memory.oom_kills() > self._oom_kills):
            status = frames.OUT_OF_MEMORY
        facts = {
            "attempts": task.attempts,
            "exitcode": peer.exitcode,
            "item_index": None if index == control_page.NO_ITEM else index,
            "pid": peer.pid,
            "usage": peer.memory_usage,
        }
        self._finish(task, status, facts)

    def _do_broken(self, group: WorkerGroup) -> None:
        for task in group.core.take_all():
            self._finish(task, frames.GROUP_BROKEN, group.failure)
        for peer in group.peers:
            self._kill(peer, signal.SIGTERM)

    def _finish(self, task: Task, status: int, payload: Any) -> None:
        """The task has ended: its sink is told, what it held is let go."""
        if task.stored is not None:
            self._drop_extents(task.stored)
        task.sink.deliver(task.index, status, payload)

    def _fail_late(self, task: Task) -> None:
        task.state = FINISHED
        if task.group.core.is_broken:
            self._finish(task, frames.GROUP_BROKEN, task.group.failure)
        else:
            self._finish(task, frames.SESSION_CLOSED, self.reactor.failure)

    # -- cancelling, and limits of single tasks ----------------------------------------------------

    def _cancel(self, task: Task, answer: list[bool], done: Any) -> None:
        claimed = task.runner.worker.words[control_page.CLAIMED] if task.state == ASSIGNED else 0
        is_gone = task.group.core.cancel_asked(task, claimed)
        if is_gone is None:
            self.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._cancel, task, answer, done))
            return
        if is_gone:
            self._finish(task, frames.CANCELLED, None)
        answer.append(is_gone)
        done.release()

    def _cancel_pending(self, group: WorkerGroup, done: Any) -> None:
        gone, is_all = group.core.cancel_all_asked(lambda lane: lane.worker.words[control_page.CLAIMED])
        for task in gone:
            self._finish(task, frames.CANCELLED, None)
        if is_all:
            done.release()
        else:
            self.reactor.call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._cancel_pending, group, done))

    def _submit_limited(self, task: Task, timeout_s: float | None) -> None:
        self._serve(task)
        if timeout_s is not None and task.state != FINISHED:
            self._look_later(weakref.ref(task), timeout_s, timeout_s)

    def _look_later(self, found: Any, timeout_s: float, delay_s: float) -> None:
        delay_s = min(delay_s, limits.LONGEST_WAIT_SECONDS)
        self.reactor.call_later(delay_s, partial(self._look_at_time, found, timeout_s))

    def _look_at_time(self, found: Any, timeout_s: float) -> None:
        """The task's time runs from when its worker claimed it. If that has not happened yet, it is not up."""
        task = found()
        if task is None or task.state == FINISHED:
            return
        left_s = timeout_s
        if task.state == ASSIGNED:
            peer: Peer = task.runner.worker
            if peer.words[control_page.CLAIMED] == task.sequence:
                left_s -= (time.monotonic_ns() - peer.words[control_page.SINCE_NS]) / 1e9
                if left_s <= 0:
                    task.group.core.expired(task)
                    self._finish(task, frames.TIMED_OUT, {"timeout_s": timeout_s, "pid": peer.pid})
                    return
        self._look_later(found, timeout_s, left_s)

    # -- direct calls ----------------------------------------------------------------------------

    def _lend(self, group: WorkerGroup) -> None:
        """Somebody makes one call after another and nothing else is going on."""
        group.wants_direct = False
        lent = []
        for lane in group.core.lend_idle():
            peer: Peer = lane.worker
            self.reactor.forget(peer.link.fileno())
            peer.link.sock.setblocking(True)
            peer.link.is_lent = True
            peer.line.lend()
            lent.append(peer)
        group.lent = tuple(lent)

    def _do_reclaim(self, group: WorkerGroup, lane: Any) -> None:
        peer: Peer = lane.worker
        if not peer.link.is_lent or not peer.link.is_open:
            return
        if peer.line.take_for_reactor():
            self._take_back_line(peer)
        elif peer.line.is_abandoned:
            self._take_back_line(peer)
            self._garbled(peer)
        else:  # its holder says when it is done; unless an exception strikes it in the very act
            self.reactor.call_later(limits.CLAIM_CHECK_SECONDS, partial(self._do_reclaim, group, lane))

    def _take_back_line(self, peer: Peer) -> None:
        peer.line.hand_to_reactor()
        peer.link.is_lent = False
        group = peer.group
        group.lent = tuple(other for other in group.lent if other is not peer)
        peer.link.sock.setblocking(False)
        self.reactor.watch(peer.link.fileno(), partial(self._on_link, peer))
        self._dirty(peer.link)
        group.core.lane_came_back(peer.lane)

    def line_wanted(self, peer: Peer) -> None:
        """Any thread: a direct call is over, and the reactor waits for its worker."""
        self.post(partial(self._do_reclaim, peer.group, peer.lane))

    def take_over(self, peer: Peer, task: Task, data: bytes, is_broken: bool, presence: Presence) -> None:
        """Any thread: a direct call goes on here; `data` is what the worker has answered so far. The message keeps the
        caller's claim alive."""
        self.post(partial(self._take_over, peer, task, data, is_broken, presence))

    def _take_over(self, peer: Peer, task: Task, data: bytes, is_broken: bool, presence: Presence) -> None:
        group = peer.group
        if self.is_over or not peer.link.is_open or not peer.link.is_lent:
            self._fail_late(task)  # the runtime has ended, or a second exception made the line look abandoned
            return
        self._take_back_line(peer)
        if group.is_terminating or group.core.is_broken:
            self._fail_late(task)
        elif is_broken:
            # What of the stream was read is unknown, so the worker goes; its task is not wanted any more.
            task.state = FINISHED
            self._finish(task, frames.DROPPED, None)
            self.reactor.forget(peer.link.fileno())
            peer.is_stream_over = True
            group.core.lane_given_up(peer.lane)
            self._kill(peer, signal.SIGINT)
            self.reactor.call_later(limits.INTERRUPT_GRACE_SECONDS, partial(self._kill, peer, signal.SIGKILL))
        else:
            group.core.taken_over(peer.lane, task)
            if data:
                self._on_data(peer, data)
        if peer.exit_status is not None:
            self._gone(peer)

    # -- facts from workers ----------------------------------------------------------------------

    def _on_link(self, peer: Peer, events: int) -> None:
        link = peer.link
        if events & ~READABLE:
            self._dirty(link)
        try:
            data = link.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._stream_over(peer)
            return
        self._on_data(peer, data)

    def _on_data(self, peer: Peer, data: bytes) -> None:
        lane = peer.lane
        core = peer.group.core
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = unpack_header(data, position)
            start = position + HEADER_BYTES
            following = start + length
            if following > end:
                if length > limits.FRAME_BYTES:
                    self._garbled(peer)
                    return
                break
            position = following
            if kind == RESULT:
                task = core.finished(lane, number, aux)
                if task is not None:
                    payload: Any = data[start:following]
                    if flag:
                        payload = self._unusual(peer, flag, payload)
                    if task.stored is not None:
                        self._drop_extents(task.stored)
                    task.sink.deliver(task.index, flag & 0x7F, payload)
                elif flag & frames.STORED:
                    self._unusual(peer, flag, data[start:following])  # dropped at once, and so given back
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
        elif kind == frames.RELEASED:
            freed = [e for e in marshal.loads(body) if self.ranges.returned(peer, e)]
            self._free(freed)
        elif kind == frames.SEGMENT:
            self.exchange.add(number, peer.link.fds.popleft(), *marshal.loads(body))
            peer.segments.add(number)
        elif kind == frames.NEED:
            self._on_need(peer, number, *marshal.loads(body))
        elif kind == frames.INITIALIZER_FAILED:
            peer.group.failure = self._unusual(peer, flag or frames.TASK_RAISED, body)
        elif kind == frames.CHANNEL:
            host = self._need_host()
            host.adopt(peer.worker_id, peer.link.fds.popleft())
            self._dirty(host.link)
        else:
            self._garbled(peer)

    def _garbled(self, peer: Peer) -> None:
        """What comes makes no sense: user code wrote to a descriptor that was not its own. The worker is lost."""
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self.reactor.forget(peer.link.fileno())
            self._kill(peer, signal.SIGKILL)

    def _unusual(self, peer: Peer, flag: int, body: bytes) -> Any:
        """The payload of a result that is large, or a failure, or a failure whose exception is large."""
        if flag == frames.OK | frames.STORED:
            self._share_budget()
            return self._stored_result(peer, body)
        failure = marshal.loads(body)
        if flag & frames.STORED:
            failure = (self._stored_result(peer, failure[0]), *failure[1:])
        return failure

    def _stored_result(self, peer: Peer, body: bytes) -> StoredResult:
        result_id = next(self._result_ids)
        result = StoredResult(result_id, self.exchange, body, self._result_settled)
        self._unread[result_id] = (peer, result.extents)
        return result

    def _on_need(self, peer: Peer, sequence: int, module: str, name: str, described: str) -> None:
        """The worker cannot import what a payload names: ship it by value, once; the user's pickling runs elsewhere."""
        task = peer.group.core.undecodable(peer.lane, sequence)
        if task is None:
            return
        self.callbacks.put(partial(self._ship_by_value, task, module, described))

    def _ship_by_value(self, task: Task, module: str, described: str) -> None:
        """On the callback thread, as pickling runs the user's code."""
        record: Any = task.callable
        needs: tuple[int, ...] = ()
        try:
            parts = [self.encoder.needs_after_miss(stream, module) for stream in (record.payload, task.payload)]
            needs = self.callables.book.join(task.needs, record.needs, *parts)
        except BaseException:
            needs = ()
        if not needs or set(needs) <= {*task.needs, *record.needs}:
            answer = (None, described, described.strip().rpartition("\n")[2], "", None)
            self.post(partial(self._finish_undecodable, task, answer))
            return
        task.needs = needs
        self.post(partial(task.group.core.resubmitted, task))

    def _finish_undecodable(self, task: Task, answer: Any) -> None:
        if task.group.core.gave_up(task):
            self._finish(task, frames.ARGUMENT_NOT_UNPICKLED, answer)

    def _stream_over(self, peer: Peer) -> None:
        if not peer.is_stream_over:
            peer.is_stream_over = True
            self.reactor.forget(peer.link.fileno())
            if peer.exit_status is None:
                self._kill(peer, signal.SIGTERM)  # it closed its link: it is leaving, or has lost its mind
            else:
                self._gone(peer)

    def _gone(self, peer: Peer) -> None:
        """Dead, and read to the end."""
        group = peer.group
        if peer.link.is_lent:
            peer.lane.is_wanted = True  # before the claim is looked at: a caller that is done just now says so
            if not peer.line.take_for_reactor() and not peer.line.is_abandoned:
                peer.link.sock.shutdown(socket.SHUT_RD)  # the caller sees the end of the stream, and hands over
                return
            self._take_back_line(peer)
        while not peer.is_stream_over:  # a grandchild may hold the other end open: take what is there, then stop
            try:
                data = peer.link.receive()
            except OSError:
                data = b""
            if data:
                self._on_data(peer, data)
            else:
                peer.is_stream_over = True
                self.reactor.forget(peer.link.fileno())
        self._dirty_links.pop(peer.link.fileno(), None)
        self._blocked_links.discard(peer.link.fileno())
        peer.link.close()
        del self.peers[peer.worker_id]
        group.peers.remove(peer)
        is_charged = peer.exit_status is not None and peer.exit_status >= 0
        group.core.worker_died(peer.lane, peer.words[control_page.CLAIMED], is_charged)
        if group.core.effects:
            self._carry_out(group)
        peer.words.release()
        self.pages.give_back(*peer.page)
        self._free(self.ranges.reader_died(peer))
        if peer.exit_status is None:
            peer.exit_status = -1
        peer.has_exited.set()
        if peer.segments:
            self._writer_died(peer.segments)
        self._end_if_over(group)

    # -- facts from the zygote -------------------------------------------------------------------

    def _need_host(self) -> Host:
        if self.host is None:
            self.host = Host.start()
        if self.host.link.fileno() not in self.reactor._handlers:
            self.reactor.watch(self.host.link.fileno(), self._on_host)
        return self.host

    def _on_host(self, events: int) -> None:
        host = self.host
        assert host is not None
        if events & ~READABLE:
            self._dirty(host.link)
        try:
            data = host.link.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._host_died()
            return
        for kind, _, aux, number, body in host.link.frames(data):
            peer = self.peers.get(number)
            if peer is None:
                continue
            if kind == frames.FORKED:
                peer.pid = aux
                peer.is_started.set()
            elif kind == frames.EXITED:
                peer.exit_status = aux
                self._gone(peer)
            elif kind == frames.REFUSED:
                self._on_refused(peer, body.decode())

    def _on_refused(self, peer: Peer, reason: str) -> None:
        group = peer.group
        peer.exit_status = -1
        group.failure = ("refused", reason)
        group.core.refused()
        if group.core.size and reason.startswith("fork"):
            self.callbacks.put(partial(_warn_of_smaller_group, group.core.size, reason))
        self._gone(peer)

    def _host_died(self) -> None:
        """The zygote is gone and its workers with it: a new one, nobody is charged."""
        host = self.host
        assert host is not None
        self.reactor.forget(host.link.fileno())
        self._dirty_links.pop(host.link.fileno(), None)
        self._blocked_links.discard(host.link.fileno())
        host.close()
        self.host = None
        now = time.monotonic()
        often = len(self._host_deaths) == self._host_deaths.maxlen and now - self._host_deaths[0] < 60
        self._host_deaths.append(now)
        for peer in list(self.peers.values()):
            peer.exit_status = -1
            if peer.pid:
                _kill_orphan(peer.pid)
        for peer in list(self.peers.values()):
            if often:
                peer.group.core.is_broken = True
                peer.group.failure = ("refused", "the zygote process died again and again")
                self._do_broken(peer.group)
            self._gone(peer)

    def _kill(self, peer: Peer, signum: int) -> None:
        if peer.exit_status is None and self.host is not None and not self.is_over:
            self.host.kill(peer.worker_id, signum)
            self._dirty(self.host.link)

    # -- groups ----------------------------------------------------------------------------------

    def _open_group(self, group: WorkerGroup) -> None:
        self.opening -= 1
        if self.is_over:  # it failed in the meantime
            self._abandon(group)
            return
        self.groups.append(group)
        try:
            group.core.refill()
            self._carry_out(group)
        finally:
            group.is_opened.set()

    def not_opening(self) -> None:
        """A group that was announced will not come."""
        self.opening -= 1
        self._end_if_idle()

    def _close_group(self, group: WorkerGroup) -> None:
        group.core.closing()
        self._end_if_over(group)

    def _resize(self, group: WorkerGroup, size: int) -> None:
        if not group.is_terminating and not group.core.is_broken:
            group.core.resized(size)
            self._carry_out(group)

    def _terminate_group(self, group: WorkerGroup) -> None:
        if group.has_ended.is_set() or group.is_terminating:
            return
        group.is_terminating = True
        core = group.core
        core.is_closing = True
        for task in core.take_all():
            self._finish(task, frames.SESSION_CLOSED, None)
        core.effects.clear()
        for peer in group.peers:
            self._kill(peer, signal.SIGTERM)
        self.reactor.call_later(limits.TERMINATE_GRACE_SECONDS, partial(self._kill_rest, group))
        self._end_if_over(group)

    def _kill_rest(self, group: WorkerGroup) -> None:
        for peer in group.peers:
            self._kill(peer, signal.SIGKILL)

    def _end_if_over(self, group: WorkerGroup) -> None:
        if group.peers or not group.core.is_closing or group.has_ended.is_set():
            return
        group.is_terminating = True  # a task that comes later is refused
        for task in group.core.take_all():
            self._finish(task, frames.SESSION_CLOSED, None)
        if group in self.groups:
            self.groups.remove(group)
        if group.initializer is not None:
            group.initializer.close()
        self._end_if_idle()
        group.has_ended.set()

    def _end_if_idle(self) -> None:
        """With the last group the threads end."""
        if not self.groups and self.on_idle():
            self.is_over = True
            if self.host is not None and self.host.link.is_open:
                self.reactor.forget(self.host.link.fileno())
            self.callbacks.put(None)
            self.reactor.stop()

    def _at_end(self) -> None:
        """The reactor's last act: close what is open. If it failed, nobody may be left waiting."""
        self.is_over = True
        for group in list(self.groups):
            self._abandon(group)
        self.groups.clear()
        for peer in list(self.peers.values()):
            peer.link.close()
            if peer.exit_status is None:
                peer.exit_status = -1
            peer.has_exited.set()
        if self.reactor.failure is not None:
            if self.host is not None:
                self.host.close()
            self.callbacks.put(None)
        self.host = None
        self.pages.close()
        if self._exchange is not None and not self._unread:  # else the last of them closes it
            self._exchange.close()

    def _abandon(self, group: WorkerGroup) -> None:
        """The runtime has failed: what waits for this group gets an error, as it would wait for ever."""
        group.is_terminating = True
        group.core.is_closing = True
        lost = [effect[1] for effect in (*group.carrying, *group.core.effects) if effect[0] == "failed"]
        for task in (*group.core.take_all(), *lost):
            self._finish(task, frames.SESSION_CLOSED, self.reactor.failure)
        if group.initializer is not None:
            group.initializer.close()
        group.is_opened.set()
        group.has_ended.set()

    def forget(self) -> None:
        """In a forked child, where only the forking thread is: close the fds, which are the parent's; take no lock."""
        self.is_over = True
        self.reactor.abandon()
        for link in [peer.link for peer in self.peers.values()] + ([self.host.link] if self.host else []):
            link.close()
        self.host = None
        self.pages.close()
        if self._exchange is not None:
            self._exchange.forget()

    def dump_stacks(self) -> None:
        # One after the other, as each writes in many small pieces to the same stderr.
        for position, peer in enumerate(self.peers.values()):
            self.reactor.call_later(0.02 * position, partial(self._kill, peer, identity.STACKS_SIGNAL))

    def terminate_all(self) -> None:
        for group in list(self.groups):
            self._terminate_group(group)

    def join(self) -> None:
        """Any other thread: wait until the threads have ended."""
        for thread in (self.reactor.thread, self.callbacks.thread):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def join_if_over(self) -> None:
        if self.is_over:
            self.join()

    def _drop(self, group: WorkerGroup, unwanted: Callable[[Task], bool], interrupt: bool) -> None:
        effects = group.core.effects
        earlier = len(effects)
        for task in group.core.dropped(unwanted):
            self._finish(task, frames.DROPPED, None)
        if not interrupt:
            effects[earlier:] = [effect for effect in effects[earlier:] if effect[0] != "interrupt"]

    # -- large objects ---------------------------------------------------------------------------

    def _answer_allocation(self, size_bytes: int, answer: list[Any], done: Any) -> None:
        try:
            answer.append(self._allocate_here(size_bytes))
        except BaseException as error:
            answer.append(error)
        done.release()

    def _drop_answer(self, answer: list[Any]) -> None:
        self._drop_extents([extent for extent in answer if type(extent) is tuple])

    def _allocate_here(self, size_bytes: int) -> tuple[int, int, int]:
        if self.is_over:
            raise SessionClosedError("the runtime has ended")
        extent = self.exchange.allocate(size_bytes)
        self.ranges.hold(extent)
        return extent

    def _share_budget(self) -> None:
        """Every writer may use what it uses, and half of what is left of the node's budget: they learn of one another's
        use late, and together must not overshoot by much."""
        peers = [peer for peer in self.peers.values() if peer.segments]
        used = self.exchange.used_bytes + sum(peer.words[control_page.USED_BYTES] for peer in peers)
        spare = max(0, self.settings.store_bytes - used)
        for peer in peers:
            peer.words[control_page.ALLOWANCE_BYTES] = peer.words[control_page.USED_BYTES] + spare // 2
        self._foreign_bytes = used - self.exchange.used_bytes

    def _lend_extents(self, peer: Peer, extents: list[Extent]) -> None:
        for extent in extents:
            self.ranges.lend(peer, extent)
            peer.introduce_segment(extent[0], *self.exchange.fd_of(extent[0]))

    def _drop_extents(self, extents: list[Extent]) -> None:
        self._free([extent for extent in extents if self.ranges.drop(extent)])

    def _free(self, extents: list[Extent]) -> None:
        if extents and not self.is_over:
            self.exchange.free(extents)
            self._arm_trim()

    def _result_settled(self, result_id: int, unopened: list[Extent]) -> None:
        """Any thread, finalizers included: a large result was opened, or dropped without."""
        self.post(partial(self._settle_result, result_id, unopened))

    def _settle_result(self, result_id: int, unopened: list[Extent]) -> None:
        peer, extents = self._unread.pop(result_id)
        if self.is_over:
            if not self._unread:
                self.exchange.close()
            return
        self._arm_trim()
        if peer.has_exited.is_set():
            self._writer_died({extent[0] for extent in extents})
        elif unopened:
            self._send_free(peer, unopened)

    def _writer_died(self, segment_ids: set[int]) -> None:
        """What is neither mapped here nor waits to be read is given back; the rest follows with its last use."""
        waiting = [extent for _, extents in self._unread.values() for extent in extents]
        for segment_id in segment_ids:
            keep = [extent for extent in waiting if extent[0] == segment_id]
            self.exchange.writer_died(segment_id, keep)

    def _send_free(self, peer: Peer, extents: list[Extent]) -> None:
        if peer.exit_status is None and peer.link.is_open:
            peer.link.queue(frame(frames.FREE, marshal.dumps(extents)))
            self._dirty_peer(peer)

    def _report_released(self) -> None:
        """The last views of results died here: their writers may use the ranges again."""
        self._released = False
        by_segment: dict[int, list[Extent]] = {}
        for extent in self.exchange.drain_released():
            by_segment.setdefault(extent[0], []).append(extent)
        for peer in self.peers.values():
            for segment_id in peer.segments:
                extents = by_segment.get(segment_id)
                if extents:
                    self._send_free(peer, extents)

    def _arm_trim(self) -> None:
        if not self._trim_armed:
            self._trim_armed = True
            self.reactor.call_later(limits.WARM_SECONDS, self._trim)

    def _trim(self) -> None:
        self._trim_armed = not self.exchange.trim_if_idle(limits.WARM_SECONDS)
        if self._trim_armed:
            self.reactor.call_later(limits.WARM_SECONDS, self._trim)

    def _forget_callables(self) -> None:
        forgotten, self.callables.forgotten = self.callables.forgotten, []
        ids = [record.id for record in forgotten]
        for record in forgotten:
            if record.stored is not None:
                self._drop_extents(record.stored)
        for peer in self.peers.values():
            peer.forget_callables(ids)
            self._dirty_peer(peer)

    def _forget_definitions(self) -> None:
        """Names that were bound anew, and whose former definition no payload needs any more."""
        forgotten = self.callables.book.forgotten
        ids = [forgotten.popleft() for _ in range(len(forgotten))]
        for extents in self.callables.forget_definitions(ids):
            self._drop_extents(extents)
        for peer in self.peers.values():
            if peer.forget_definitions(ids):
                self._dirty_peer(peer)


def _warn_of_smaller_group(size: int, reason: str) -> None:
    import warnings

    warnings.warn(f"a worker could not be started ({reason}); going on with {size}", RuntimeWarning, stacklevel=2)


def _kill_orphan(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
