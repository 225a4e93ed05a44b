"""The embedded session: the node lives inside this process.

Threads and workers exist while worker groups do. When the last group has ended, the threads end too, and the zygote is
*parked*: it leaves by itself after a while, and the next group finds it warm until then.
"""

from __future__ import annotations

import threading
import weakref
from functools import partial

from scaleout._runtime.base import limits, this_process
from scaleout._runtime.client.batch import Batch, SharedBuffers
from scaleout._runtime.core.dispatch import SERVING, Group
from scaleout._runtime.core.tasks import Profile, Task
from scaleout._runtime.node import canceller, host
from scaleout._runtime.node.direct import DirectCall
from scaleout._runtime.node.group import WorkerGroup
from scaleout._runtime.node.keeper import ZygoteKeeper
from scaleout._runtime.node.objects import inline_payload
from scaleout._runtime.node.owner import Owner
from scaleout._runtime.pickling.definitions import DefinitionBook
from scaleout._runtime.pickling.encode import Encoder
from scaleout._runtime.pickling.namespace import main_info
from scaleout._runtime.pickling.plain import dumps, is_plain
from scaleout._runtime.pickling.reducers import of_module
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
    from scaleout._runtime.client.compared import ComparedBuffers
    from scaleout._runtime.node.callables import CallableRecord, CallableTable
    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.pickling.encode import Encoded

    Limits = tuple[float | None, int | None]  # timeout_s from the start of the call, max_retries; None: the group's


ONE_CPU = (("CPU", 1000),)
"""The shape of a task that asks for nothing in particular."""


class EmbeddedSession:
    """One process's connection to the runtime inside it."""

    def __init__(self, settings: Settings, host: Host | None) -> None:
        self.settings = settings
        self.pid = this_process.pid
        self.book = DefinitionBook()
        self.encoder = Encoder(self.book)
        self.encode = self.encoder.encode
        self._owner: Owner | None = None
        self._parked = host  # a zygote without work
        self._lock = threading.RLock()
        self.is_closed = False

    @property
    def num_cpus(self) -> int:
        """How many CPUs there are for workers."""
        return self.settings.num_cpus

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
        environment: dict[str, str] | None = None,
        reducers: str | None = None,
        carries_globals: bool = False,
    ) -> GroupHandle:
        """Start `size` workers; returns at once, before they are up. Not `takes_nameless`: lambdas and closures in
        results are refused. The group is broken after so many `initializer_failures` in a row. `environment` is what
        its workers have in `os.environ` on top of what this process has, before they import anything of the user's.
        `reducers` is the name of a module whose function of this name gives reducers for what the group pickles. With
        `carries_globals`, a function without a name brings the globals along that it reads, as cloudpickle has it,
        instead of finding those of its module as the worker imports it."""
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
            "environment": environment,
            "reducers": reducers,
        }
        with self._lock:
            owner = self._need_owner()
            encoder = self.encoder
            if reducers is not None or carries_globals:
                encoder = Encoder(self.book, of_module(reducers), carries_globals)
            handle = GroupHandle(self, owner, WorkerGroup(core, hello, owner.objects), encoder)
            owner.opening += 1
            handle.is_open = True
        try:
            if initializer is not None:
                handle.set_initializer(self._initializer_frames(owner, initializer, tuple(initargs)))
            handle.open()
        except BaseException:  # what pickling raised, or a signal handler
            handle.give_up()
            raise
        return handle

    def _initializer_frames(
        self, owner: Owner, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> InitializerFrames:
        passed = PassedFds()
        try:
            encoded = self.encoder.encode_for_spawn((initializer, initargs), passed)
            return InitializerFrames(owner.objects, owner.callables, encoded, passed)
        except BaseException:
            passed.close()
            raise

    def _need_owner(self) -> Owner:
        if self._owner is not None and self._owner.reactor.is_stopping:
            self._owner = None  # it failed
        if self._owner is None:
            if self.is_closed:
                raise RuntimeError("cannot start workers: the session is closed, the interpreter is shutting down")
            host = self._parked  # and stays it until the owner has started
            if host is not None and not host.is_alive():
                self._parked = None
                host.close()
                host = None
            owner = Owner(self.settings, self.encoder, self.book, partial(self._new_keeper, host))
            owner.on_idle = partial(self._owner_idle, owner)
            owner.clerk.on_first = preload_client
            owner.start()
            self._owner, self._parked = owner, None
        return self._owner

    def _new_keeper(self, host: Host | None, reactor: Reactor) -> Any:
        """What has workers for an owner. `host` is a zygote that is warm from before."""
        return ZygoteKeeper(reactor, host, self.settings.max_processes)

    @property
    def has_tasks(self) -> bool:
        """Whether there is a place for tasks, also if only workers have made use of it."""
        slots = self._owner.slots if self._owner is not None else None
        return slots is not None and not slots.is_closed

    def open_tasks(
        self, amounts: dict[str, float], env_vars: dict[str, str] | None = None, working_dir: str | None = None
    ) -> Owner:
        """The owner, with a place for tasks, from now until that is closed. `amounts` of resources, in units, go before
        what this machine has. Workers have `env_vars` on top of our environment, and `working_dir` instead of ours."""
        packed = self._packed(working_dir)  # which takes time, and may fail
        with self._lock:
            owner = self._need_owner()
            slots = owner.need_slots(amounts)
            slots.env_vars, slots.working_dir = env_vars, working_dir
            self._send_along(owner, packed)
            slots.is_held = True
            if slots.resources.can_ever_fit(ONE_CPU):
                slots.group_of(ONE_CPU)  # so that workers are there when the first task comes
            return owner

    def _packed(self, working_dir: str | None) -> Any:
        """What workers of other machines need to have it; those of this one have it."""

    def _send_along(self, owner: Owner, packed: Any) -> None:
        """Workers are about to need it."""

    def _owner_idle(self, owner: Owner) -> bool:
        """On the reactor thread: no group is left. True if the owner is to end; the zygote stays, parked."""
        with self._lock:
            is_held = owner.slots is not None and owner.slots.is_held and not owner.slots.is_closed
            if owner.groups or ((owner.opening or is_held) and not self.is_closed):
                return False
            if self._owner is owner:
                self._owner = None
            host = owner.keeper.host
            if host is not None:
                if self.is_closed:
                    host.close()
                else:
                    host.park(self.settings.idle_timeout_s)
                    self._parked = host
            return True

    def close(self) -> None:
        """End everything of this session, whatever is under way."""
        with self._lock:
            self.is_closed = True
            owner = self._owner
        if owner is not None and not owner.reactor.is_stopping:
            owner.reactor.post(owner.terminate_all)
            owner.join()
        self.close_idle()

    @property
    def is_in_use(self) -> bool:
        """Whether it has threads and workers."""
        return self._owner is not None and not self._owner.reactor.is_stopping

    def dump_stacks(self) -> None:
        owner = self._owner
        if owner is not None:
            owner.reactor.post(owner.dump_stacks)

    def close_idle(self) -> None:
        """End the parked zygote now, if there is one."""
        with self._lock:
            host, self._parked = self._parked, None
        if host is not None:
            host.close()

    def forget(self) -> None:
        """In a forked child: nothing here is ours any more. Close the fds that would keep the parent's peers alive."""
        self.is_closed = True
        self._lock = threading.RLock()  # a thread that is not here may have held it
        owner, host = self._owner, self._parked
        self._owner = self._parked = None
        if owner is not None:
            owner.forget()
        if host is not None:
            host.link.close()

    def before_fork(self) -> None:
        """What is mapped now a child will see too: its ranges are never used again."""
        owner = self._owner
        if owner is not None:
            owner.objects.retain_pinned()


def preload_client() -> None:
    """Workers of this program submit tasks themselves: those that are forked from now on need not import for that."""
    for name in (
        "scaleout.api",
        "scaleout.remoting",
        "scaleout._runtime.client.borrower",
        "scaleout._runtime.core.resources",
        "scaleout._runtime.process.requests",
    ):
        if name not in host.preloaded_modules:
            host.preloaded_modules.append(name)


class InitializerFrames:
    """Queues the frames that make one worker run the group's initializer."""

    def __init__(self, objects: ObjectTable, callables: CallableTable, encoded: Encoded, passed: PassedFds) -> None:
        self._objects = objects
        self._callables = callables
        self._needs = encoded.needs
        self._passed = passed
        self._payload, self._stored = objects.pack(encoded)

    def __call__(self, peer: Peer) -> None:
        peer.define(self._needs, self._callables, self._objects.lend)
        for fd in self._passed.fds:
            peer.link.queue(frame(frames.LOOSE_FD), fd)
        flag = 0
        if self._stored is not None:
            flag = frames.STORED
            self._objects.lend(peer, self._stored)
        peer.link.queue(frame(frames.INITIALIZE, self._payload, flag=flag))

    def close(self) -> None:
        """On the reactor thread: no worker of the group will start any more."""
        self._passed.close()
        stored, self._stored = self._stored, None
        if stored is not None:
            self._objects.drop(stored)


class GroupHandle:
    """A worker group as a shim holds it; see `session` for the interface."""

    def __init__(self, session: EmbeddedSession, owner: Owner, group: WorkerGroup, encoder: Encoder) -> None:
        self._owner = owner
        self._group = group
        self._objects = owner.objects
        self._encode = encoder.encode
        self._post = owner.reactor.post
        self.start = owner.reactor.post_task
        self._catch_up = owner.reactor.catch_up
        self._pid = session.pid
        self.put_callback = group.callbacks.put
        self.is_open = False  # announced, and not closed: whoever drops the handle has left the group behind

    def set_initializer(self, initializer: InitializerFrames) -> None:
        self._group.initializer = initializer

    def open(self) -> None:
        self._post(partial(self._owner.open_group, self._group))

    def give_up(self) -> None:
        """Nobody will use the group, however far its opening had come."""
        if self.is_open and self.is_here:
            self.is_open = False
            self._post(partial(self._owner.give_up_group, self._group))

    __del__ = give_up

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
            task = self._task_of(record, how, value, sink, index, profile or record.profile, share)
        except Exception as error:
            self.fail(sink, index, error)
            return
        if limited is None:
            self.start(task)
        else:
            self.start_limited(task, limited)

    def task_of(self, record: CallableRecord, how: int, value: Any, sink: Any) -> Task:
        """A call that is not queued yet, for those who want to cancel it: queue it with `start` or `start_limited`.

        Raises what pickling raises.
        """
        return self._task_of(record, how, value, sink, 0, record.profile, None)

    def _task_of(
        self, record: CallableRecord, how: int, value: Any, sink: Any, index: int, profile: Profile, share: Any
    ) -> Task:
        if is_plain(value):
            return Task(self._group, record, how, dumps(value, 5), (), None, sink, index, profile)
        encoded = self._encode(value)
        payload = inline_payload(encoded)
        stored = None
        if payload is None:
            payload, stored = self._objects.store(encoded, share)
            how |= frames.STORED
        return Task(self._group, record, how, payload, encoded.needs, stored, sink, index, profile)

    def start_limited(self, task: Task, limited: Limits) -> None:
        """Queue a call with limits of its own."""
        timeout_s, task.max_retries = limited
        self.start(partial(self._owner.serve_limited, task, timeout_s))

    def cancel(self, task: Task) -> bool:
        """True if no worker has started the task, and none will: its sink has been told CANCELLED."""
        return self._pid == this_process.pid and self._owner.canceller.cancel(task)

    def is_running(self, task: Task) -> bool:
        """Whether a worker has started the task; by the time the answer is looked at it may be otherwise."""
        return canceller.is_running(task)

    def cancel_pending(self) -> None:
        """Cancel all that no worker has started. No more must be submitted."""
        self._owner.canceller.cancel_pending(self._group)

    def direct_call(self, task: Task) -> DirectCall | None:
        """The call, to be sent and received by this thread, if a worker is lent for that. If not: `start` it."""
        lent = self._group.lent
        if not lent or task.stored is not None or task.needs or self._owner.callables.forgotten:
            return None
        return DirectCall(self._owner.lender, lent, task)

    def want_direct(self, is_wanted: bool = True) -> None:
        """Somebody makes one call after another: lend workers when nothing else is going on. Several threads that do so
        are served faster by the reactor, which batches."""
        self._group.wants_direct = is_wanted

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
        """For the calls of one map: `submit` with all but the index and the value fixed. With `shares`, a large buffer
        that occurs in several of them is stored once."""
        shared = SharedBuffers(self._objects) if shares else None
        return Batch(self, record, how, sink, profile, shared, limited)

    def compared_buffers(self, kept_calls: int) -> ComparedBuffers:
        """For calls that are submitted one by one: its `place_of` is a `share` for `submit`."""
        from scaleout._runtime.client.compared import ComparedBuffers

        return ComparedBuffers(self._objects, kept_calls)

    def fail(self, sink: Any, index: int, error: BaseException) -> None:
        """Deliver a failure that was found before the call could be queued."""
        self._post(partial(sink.deliver, index, frames.ARGUMENT_NOT_PICKLED, error))

    def post(self, function: Callable[[], None]) -> None:
        """Run on the runtime's thread, after everything submitted so far. Must be quick, and no user code."""
        self._post(function)

    def drop(self, sink: Any, interrupt: bool = True) -> None:
        """Nobody wants the results of `sink` any more; what runs is interrupted, then killed."""
        self._drop(lambda task: task.sink is sink, interrupt)

    def drop_all(self, kill: bool = False) -> None:
        """Nobody wants any of the results. With `kill`, workers that run something are killed without being asked:
        whoever is interrupted in the midst of an import may be of no use afterwards."""
        self._drop(lambda task: True, True, kill)

    def _drop(self, unwanted: Callable[[Task], bool], interrupt: bool, kill: bool = False) -> None:
        self._post(partial(self._owner.canceller.drop, self._group, unwanted, interrupt, kill))

    @property
    def is_here(self) -> bool:
        """False in a process forked from the one that the group belongs to."""
        return self._pid == this_process.pid

    def check_process(self) -> None:
        """ForeignSessionError in a process forked from the one that the group belongs to."""
        if self._pid != this_process.pid:
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
        self._catch_up()
        return [peer for peer in list(self._group.peers) if peer.lane.state in SERVING]

    def resize(self, size: int) -> None:
        """So many workers from now on; those too many end when they have done what they hold."""
        self._post(partial(self._owner.resize, self._group, size))

    def follow_cluster(self, method: Callable[[int], None]) -> None:
        """Call this bound method, on the runtime's thread, with how many CPUs the nodes have whenever that changes; as
        long as its object lives."""
        self._group.follower = weakref.WeakMethod(method)

    @property
    def has_ended(self) -> bool:
        return self._group.has_ended.is_set()

    @property
    def size(self) -> int:
        return self._group.core.size

    def kill(self, peer: Peer, signum: int) -> None:
        self._post(partial(self._owner.keeper.kill, peer, signum))

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """No more tasks; workers leave when all is done."""
        self.is_open = False
        self._post(partial(self._owner.close_group, self._group))

    def terminate(self) -> None:
        """Stop the workers; results that are awaited become SESSION_CLOSED."""
        self.is_open = False
        self._post(partial(self._owner.terminate_group, self._group))

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run on the runtime's thread after this time, if it has not ended by then. As with `post`, quick."""
        self._post(partial(self._owner.reactor.call_later, min(delay_s, limits.LONGEST_WAIT_SECONDS), function))

    def kill_all(self) -> None:
        """SIGKILL to the workers; with `terminate`, without the time that they have to end by SIGTERM."""
        self._post(partial(self._owner.kill_workers, self._group))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the workers are gone; True when they are."""
        self.check_process()
        if not self._group.has_ended.wait(timeout_s):
            return False
        self._group.callbacks.join()
        self._owner.join_if_over()
        return True
