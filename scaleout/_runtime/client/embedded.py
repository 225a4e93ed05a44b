"""The embedded session: the node lives inside this process.

Threads and workers exist while worker groups do. When the last group has ended, the threads end too, and the zygote is
*parked*: it leaves by itself after a while, and the next group finds it warm until then.
"""

from __future__ import annotations

import itertools
import marshal
import os
import threading
import time
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.core.dispatch import SERVING, Group
from scaleout._runtime.core.tasks import Profile, Task
from scaleout._runtime.node import direct
from scaleout._runtime.node.owner import Owner, WorkerGroup
from scaleout._runtime.pickling.definitions import DefinitionBook
from scaleout._runtime.pickling.encode import Encoder
from scaleout._runtime.pickling.namespace import main_info
from scaleout._runtime.process import identity
from scaleout._runtime.process.initargs import PassedFds
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ForeignSessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.node.callables import CallableRecord
    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.pickling.encode import Encoded

    Limits = tuple[float | None, int | None]  # timeout_s from the start of the call, max_retries; None: the group's

HAND_OVER_SECONDS = 0.0005
"""A map that pickles for longer lets the reactor run in between."""


class EmbeddedSession:
    """One process's connection to the runtime inside it."""

    def __init__(self, settings: Settings, host: Host | None) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.book = DefinitionBook()
        self.encoder = Encoder(self.book)
        self.encode = self.encoder.encode
        self._owner: Owner | None = None
        self._parked = host  # a zygote without work
        self._lock = threading.RLock()
        self._worker_ids = itertools.count(1)
        self.is_closed = False

    # -- groups ----------------------------------------------------------------------------------

    def open_group(
        self,
        size: int,
        *,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        tasks_per_worker: int | None = None,
        max_retries: int | None = None,
        takes_nameless: bool = True,
        initializer_failures: int = limits.INITIALIZER_FAILURES,
    ) -> GroupHandle:
        """Start `size` workers; returns at once, before they are up. Not `takes_nameless`: lambdas and closures in
        results are refused. The group is broken after so many `initializer_failures` in a row."""
        settings = self.settings
        core = Group(
            size,
            tasks_per_worker=tasks_per_worker,
            max_retries=settings.max_retries if max_retries is None else max_retries,
            cpus=settings.num_cpus,
            prefetch_tasks=settings.prefetch,
            initializer_failures=initializer_failures,
        )
        hello = {
            **identity.owner_info(),
            "main": main_info(),
            "spill_dir": settings.spill_dir,
            "takes_nameless": takes_nameless,
        }
        with self._lock:
            owner = self._need_owner()
            owner.opening += 1
        try:
            greeting = None
            if initializer is not None:
                greeting = self._initializer_frames(owner, initializer, tuple(initargs))
            group = WorkerGroup(core, greeting, hello)
        except BaseException:
            owner.post(owner.not_opening)
            raise
        owner.open_group(group)
        return GroupHandle(self, owner, group, greeting)

    def _initializer_frames(
        self, owner: Owner, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> InitializerFrames:
        passed = PassedFds()
        try:
            encoded = self.encoder.encode_for_spawn((initializer, initargs), passed)
        except BaseException:
            passed.close()
            raise
        return InitializerFrames(owner, encoded, passed)

    def _need_owner(self) -> Owner:
        if self._owner is not None and self._owner.is_over:
            self._owner = None  # it failed
        if self._owner is None:
            if self.is_closed:
                raise RuntimeError("cannot start workers: the session is closed, the interpreter is shutting down")
            host, self._parked = self._parked, None
            if host is not None and not host.is_alive():
                host.close()
                host = None
            owner = Owner(self.settings, self.encoder, self.book, host, self._worker_ids)
            owner.on_idle = partial(self._owner_idle, owner)
            owner.start()
            self._owner = owner
        return self._owner

    def _owner_idle(self, owner: Owner) -> bool:
        """On the reactor thread: no group is left. True if the owner is to end; the zygote stays, parked."""
        with self._lock:
            if owner.opening or owner.groups:
                return False
            if self._owner is owner:
                self._owner = None
            if owner.host is not None:
                if self.is_closed:
                    owner.host.close()
                else:
                    owner.host.park(self.settings.idle_timeout_s)
                    self._parked = owner.host
            return True

    def close(self) -> None:
        """End everything of this session, whatever is under way."""
        with self._lock:
            self.is_closed = True
            owner = self._owner
        if owner is not None and not owner.is_over:
            owner.post(owner.terminate_all)
            owner.join()
        self.close_idle()

    def dump_stacks(self) -> None:
        owner = self._owner
        if owner is not None:
            owner.post(owner.dump_stacks)

    def close_idle(self) -> None:
        """End the parked zygote now, if there is one."""
        with self._lock:
            host, self._parked = self._parked, None
        if host is not None:
            host.close()

    def forget(self) -> None:
        """In a forked child: nothing here is ours any more. Close the fds that would keep the parent's peers alive."""
        self.is_closed = True
        owner, host = self._owner, self._parked
        self._owner = self._parked = None
        if owner is not None:
            owner.forget()
        if host is not None:
            host.link.close()

    def before_fork(self) -> None:
        """What is mapped now a child will see too: its ranges are never used again."""
        owner = self._owner
        if owner is not None and owner._exchange is not None:
            owner._exchange.retain_pinned()


class InitializerFrames:
    """Queues the frames that make one worker run the group's initializer."""

    def __init__(self, owner: Owner, encoded: Encoded, passed: PassedFds) -> None:
        self._owner = owner
        self._needs = encoded.needs
        self._passed = passed
        self._stored: Any = None
        if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
            self._payload, self._stored = owner.store(encoded)
        else:
            self._payload = b"".join(encoded.chunks)

    def __call__(self, peer: Peer) -> None:
        parts: list[bytes] = []
        peer._send_definitions(parts, self._needs, self._owner.callables, self._owner._lend_extents)
        peer._flush_parts(parts)
        for fd in self._passed.fds:
            peer.link.queue(frame(frames.LOOSE_FD), fd)
        flag = 0
        if self._stored is not None:
            flag = frames.STORED
            self._owner._lend_extents(peer, self._stored)
        peer.link.queue(frame(frames.INITIALIZE, self._payload, flag=flag))

    def close(self) -> None:
        self._passed.close()


class GroupHandle:
    """A worker group as a shim holds it; see `session` for the interface."""

    def __init__(self, session: EmbeddedSession, owner: Owner, group: WorkerGroup, greeting: Any) -> None:
        self._session = session
        self._owner = owner
        self._group = group
        self._greeting = greeting
        self._encode = session.encoder.encode
        self._post = self.start = owner.reactor.post
        self._pid = session.pid
        self.put_callback = owner.callbacks.put

    # -- tasks -----------------------------------------------------------------------------------

    def prepare(self, function: Callable[..., Any]) -> CallableRecord:
        """The function, pickled for one API call. Raises what pickling raises."""
        return self._owner.callables.record_of(function)

    def finished(self, record: CallableRecord) -> None:
        self._owner.callables.release(record)

    def submit(
        self,
        record: CallableRecord,
        how: int,
        value: Any,
        sink: Any,
        index: int,
        profile: Profile | None = None,
        share: Callable[[memoryview], Any] | None = None,
        limited: Limits | None = None,
    ) -> None:
        """Pickle `value` here and now, and queue the call; what goes wrong in pickling reaches the sink."""
        try:
            encoded = self._encode(value)
        except Exception as error:
            self._post(partial(sink.deliver, index, frames.ARGUMENT_NOT_PICKLED, error))
            return
        self._submit_encoded(record, how, encoded, sink, index, profile, share, limited)

    def _submit_encoded(
        self,
        record: CallableRecord,
        how: int,
        encoded: Encoded,
        sink: Any,
        index: int,
        profile: Any,
        share: Any,
        limited: Limits | None = None,
    ) -> None:
        try:
            task = self._task_of(record, how, encoded, sink, index, profile, share)
        except Exception as error:
            self._post(partial(sink.deliver, index, frames.ARGUMENT_NOT_PICKLED, error))
            return
        if limited is None:
            self._post(task)
        else:
            self.start_limited(task, limited)

    def _task_of(
        self, record: CallableRecord, how: int, encoded: Encoded, sink: Any, index: int, profile: Any, share: Any
    ) -> Task:
        stored = None
        if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
            payload, stored = self._owner.store(encoded, share)
            how |= frames.STORED
        else:
            chunks = encoded.chunks
            payload = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return Task(self._group, record, how, payload, encoded.needs, stored, sink, index, profile or record.profile)

    def task_of(self, record: CallableRecord, how: int, value: Any, sink: Any) -> Task:
        """A call that is not queued yet, for those who want to cancel it: queue it with `start` or `start_limited`.

        Raises what pickling raises.
        """
        encoded = self._encode(value)
        chunks = encoded.chunks
        if len(chunks) == 1 and not encoded.buffers and encoded.size_bytes <= limits.INLINE_BYTES:  # nearly always
            return Task(self._group, record, how, chunks[0], encoded.needs, None, sink, 0, record.profile)
        return self._task_of(record, how, encoded, sink, 0, None, None)

    def start_limited(self, task: Task, limited: Limits) -> None:
        """Queue a call with limits of its own."""
        timeout_s, task.max_retries = limited
        self._owner.submit_limited(task, timeout_s)

    def cancel(self, task: Task) -> bool:
        """True if no worker has started the task, and none will: its sink has been told CANCELLED."""
        return self._pid == os.getpid() and self._owner.cancel(task)

    def is_running(self, task: Task) -> bool:
        """Whether a worker has started the task; by the time the answer is looked at it may be otherwise."""
        return self._owner.is_running(task)

    def cancel_pending(self) -> None:
        """Cancel all that no worker has started. No more must be submitted."""
        self._owner.cancel_pending(self._group)

    def call_now(self, record: CallableRecord, how: int, value: Any, make_sink: Callable[[], Any]) -> Any:
        """Make the call from this thread if a worker is lent: (status, payload). Otherwise, or if it turns out
        unusual, the sink that `make_sink` gives, to which the result will be delivered. Raises what pickling raises."""
        group = self._group
        encoded = self._encode(value)
        if (
            group.lent
            and encoded.size_bytes <= limits.INLINE_BYTES
            and not encoded.buffers
            and not encoded.needs
            and not self._owner.callables.forgotten
        ):
            chunks = encoded.chunks
            payload = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            answer = direct.Answer()
            sinks: list[Any] = []

            def take_over(peer: Peer, data: bytes, sequence: int, is_broken: bool, presence: direct.Presence) -> None:
                sink = make_sink()
                task = Task(group, record, how, payload, (), None, sink, 0, record.profile)
                task.sequence = sequence
                sinks.append(sink)
                self._owner.take_over(peer, task, data, is_broken, presence)

            if direct.call(group.lent, how, record, payload, answer, take_over, self._owner.line_wanted):
                return answer.status, marshal.loads(answer.payload) if answer.status else answer.payload
            if sinks:
                return sinks[0]
        # Several threads that call in turn are served faster by the reactor, which batches.
        caller = threading.get_ident()
        group.wants_direct = group.last_caller == caller
        group.last_caller = caller
        sink = make_sink()
        self._submit_encoded(record, how, encoded, sink, 0, None, None)
        return sink

    def batch(
        self,
        record: CallableRecord,
        how: int,
        sink: Any,
        profile: Profile | None,
        *,
        shares: bool,
        limited: Limits | None = None,
    ) -> Batch:
        """For the calls of one map: `submit` with all but the index and the value fixed."""
        return Batch(self, record, how, sink, profile, shares, limited)

    def fail(self, sink: Any, index: int, error: BaseException) -> None:
        """Deliver a failure that was found before anything could be submitted."""
        self._post(partial(sink.deliver, index, frames.ARGUMENT_NOT_PICKLED, error))

    def hand_over(self) -> None:
        """Wait until the reactor has sent what was submitted so far. A thread that pickles without a pause would
        otherwise keep the interpreter lock for 5 ms at a time, and the workers idle."""
        done = threading.Lock()
        done.acquire()
        self._post(done.release)
        done.acquire(True, 1.0)

    def post(self, function: Callable[[], None]) -> None:
        """Run on the runtime's thread, after everything submitted so far. Must be quick, and no user code."""
        self._post(function)

    def drop(self, sink: Any, interrupt: bool = True) -> None:
        """Nobody wants the results of `sink` any more; what runs is interrupted, then killed."""
        self._owner.drop(self._group, lambda task: task.sink is sink, interrupt)

    def drop_all(self) -> None:
        """Nobody wants any of the results."""
        self._owner.drop(self._group, lambda task: True, True)

    def check_process(self) -> None:
        """ForeignSessionError in a process forked from the one that the group belongs to."""
        if self._pid != os.getpid():
            raise ForeignSessionError("this belongs to the process that was forked from; make a new Pool here")

    # -- workers ---------------------------------------------------------------------------------

    @property
    def workers(self) -> list[Peer]:
        """The workers at present; right after opening, waits until they have been asked for."""
        self._group.is_opened.wait()
        return list(self._group.peers)

    @property
    def serving_workers(self) -> list[Peer]:
        """The workers that take tasks, or soon will, as of all that this thread has asked for so far."""
        self.hand_over()
        return [peer for peer in list(self._group.peers) if peer.lane.state in SERVING]

    def resize(self, size: int) -> None:
        """So many workers from now on; those too many end when they have done what they hold."""
        self._owner.resize(self._group, size)

    @property
    def has_ended(self) -> bool:
        return self._group.has_ended.is_set()

    @property
    def size(self) -> int:
        return self._group.core.size

    def kill(self, peer: Peer, signum: int) -> None:
        self._owner.kill(peer, signum)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """No more tasks; workers leave when all is done."""
        self._owner.close_group(self._group)

    def terminate(self) -> None:
        """Stop the workers; results that are awaited become SESSION_CLOSED."""
        self._owner.terminate_group(self._group)

    def kill_all(self) -> None:
        """SIGKILL to the workers; with `terminate`, without the time that they have to end by SIGTERM."""
        self._post(partial(self._owner._kill_rest, self._group))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the workers are gone; True when they are."""
        self.check_process()
        if not self._group.has_ended.wait(timeout_s):
            return False
        self._owner.join_if_over()
        return True


class Batch:
    """The calls of one map on their way.

    With `shares`, a large buffer that occurs in several of them is stored once: the items are all there before the
    first is pickled, so the same memory means the same content. Never for items that a generator makes.
    """

    def __init__(
        self,
        group: GroupHandle,
        record: CallableRecord,
        how: int,
        sink: Any,
        profile: Profile | None,
        shares: bool,
        limited: Limits | None = None,
    ) -> None:
        self._group = group
        self._fixed = (record, how, sink, profile)
        self._limited = limited
        self._stored: dict[tuple[int, int], tuple[Any, memoryview]] = {}
        self._share = self._place_of if shares else None
        self._handed_over_at = time.monotonic()

    def submit(self, index: int, value: Any) -> None:
        record, how, sink, profile = self._fixed
        group = self._group
        group.submit(record, how, value, sink, index, profile, self._share, self._limited)
        now = time.monotonic()
        if now - self._handed_over_at > HAND_OVER_SECONDS:
            group.hand_over()
            self._handed_over_at = time.monotonic()

    def _place_of(self, buffer: memoryview) -> Any:
        key = (_address_of(buffer.obj), buffer.nbytes)
        owner = self._group._owner
        found = self._stored.get(key)
        if found is None:
            extent = owner._allocate(buffer.nbytes)  # held once, by this batch
            place = (*extent, owner.exchange.write(extent, [buffer]))
            found = self._stored[key] = (place, buffer)
        place = found[0]
        owner.post(partial(owner.hold, [place[:3]]))
        return place

    def end(self) -> None:
        """All is submitted: what is shared now lives by the calls that use it."""
        if self._stored:
            self._group._owner.release_extents([place[:3] for place, _ in self._stored.values()])
            self._stored = {}


def _address_of(exporter: Any) -> int:
    """What identifies the memory that `exporter` shows, as long as it lives: an array made anew over the same data (as
    pickling one in Fortran order does) has the same."""
    interface = getattr(exporter, "__array_interface__", None)
    return interface["data"][0] if isinstance(interface, dict) else id(exporter)
