"""Tasks and objects in the process that owns them: the driver's, or that of a worker that has workers of its own."""

from __future__ import annotations

import concurrent.futures
import gc
import pickle
import threading
import weakref
from functools import partial

from scaleout._runtime.base import references, this_process
from scaleout._runtime.base.references import ObjectRef, collected
from scaleout._runtime.client.graph import Options, with_dependencies
from scaleout._runtime.client.outcomes import Failure, outcome
from scaleout._runtime.client.streams import StreamOfRefs
from scaleout._runtime.core.mailbox import STATE_NAMES
from scaleout._runtime.core.tasks import FINISHED, Task
from scaleout._runtime.node.actors import ActorRecord
from scaleout._runtime.node.callbacks import CallbackThread
from scaleout._runtime.node.canceller import is_running
from scaleout._runtime.node.direct import DirectCall
from scaleout._runtime.node.history import now_ns, state_of, write_trace
from scaleout._runtime.node.ledger import PENDING, Entry, Envelope, SeveralResults, Stream, places_of
from scaleout._runtime.node.objects import inline_payload
from scaleout._runtime.node.retrying import Retrying
from scaleout._runtime.node.stored import StoredObject, load_referring
from scaleout._runtime.pickling.plain import dumps, is_plain
from scaleout._runtime.wire import frames
from scaleout.errors import ForeignSessionError, SessionClosedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from scaleout._runtime.client.embedded import EmbeddedSession
    from scaleout._runtime.node.callables import CallableRecord
    from scaleout._runtime.node.owner import Owner


class OwnerClient:
    """See the module's docstring. One per session, from the first task, actor or object to `close`."""

    def __init__(self, session: EmbeddedSession, owner: Owner, namespace: str = "") -> None:
        self._session = session
        self._owner = owner
        self._callbacks = CallbackThread()  # of references' futures
        slots: Any = owner.slots
        self._slots = slots
        slots.namespace = namespace
        self.namespace = namespace
        self._post = owner.reactor.post
        self._post_task = owner.reactor.post_task
        self._lineage = owner.lineage
        self._encode = session.encode
        self._new_id = owner.clerk.new_id  # one row of numbers for all objects of this owner
        self._has_made = owner.clerk.has_made
        self._methods: dict[str, CallableRecord] = {}
        self._pid = this_process.pid
        self._exported = owner.clerk.exported
        self.is_closed = False
        self._submitted = 0  # roughly: threads may overtake one another
        self._submitted_when_awaited = 0

    # -- submitting ------------------------------------------------------------------------------

    def prepare(self, function: Callable[..., Any]) -> CallableRecord:
        """The function, pickled; kept until the session ends."""
        record = self._owner.callables.record_of(function)
        record.name = getattr(function, "__qualname__", "") or repr(function)
        return record

    def submit(self, record: CallableRecord, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """Queue a call: its reference, several of them, or a `StreamOfRefs`. Raises what pickling raises."""
        self.check()
        group = self._slots.group_of(options.shape)
        return self._submit(group, record, args, kwargs, options)

    def _submit(
        self,
        group: Any,
        record: CallableRecord,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
        is_method: bool = False,
    ) -> Any:
        dependencies: Sequence[ObjectRef] = ()
        contained: Sequence[Any] = ()
        stored: Any = None
        needs: tuple[int, ...] = ()
        if not kwargs and is_plain(args):
            how = frames.METHOD if is_method else frames.CALL_ARGS
            payload: Any = dumps((args, kwargs) if is_method else args, 5)
        else:
            how, encoded, dependencies, contained = self._encoded_call(args, kwargs, is_method)
            needs = encoded.needs
            payload = inline_payload(encoded)
            if payload is None:
                payload, stored = self._owner.objects.store(encoded)
                how |= frames.STORED
        returns = options.returns
        answer: Any
        sink: Any
        results: Sequence[Any] = ()
        if returns == 1:
            sink = Entry(self._new_id())
            answer = ObjectRef(sink.id, sink)
        else:
            answer, sink, results = self._places_of(returns)
        task = Task(group, record, how, payload, needs, stored, sink, 0, record.profile)
        task.submitted_ns = now_ns()
        task.max_retries = options.max_retries
        task.priority = options.priority
        task.name = options.name
        for result in results or (sink,):
            result.source = task
        if self._lineage.is_used and options.timeout_s is None and not options.retry_exceptions:
            self._lineage.let_stay(task)
        if options.retry_exceptions:
            task.sink = Retrying(self._owner, task, options.retry_exceptions, options.timeout_s)
        if dependencies or contained or returns != 1 or options.channel:
            task.envelope = Envelope(
                tuple(map(self._entry_of, dependencies)),
                tuple(map(self._hold_of, contained)),
                returns,
                (0, options.channel) if options.channel else 0,
            )
            if is_method:
                group.lent = ()  # or a later call might overtake this one
            self._post_task(partial(self._owner.clerk.submit, task))
        else:
            self._submitted += 1
            if not group.lent or not options.is_plain or not self._send_directly(group, task, sink):
                if is_method:
                    group.lent = ()
                self._post_task(task if not task.priority else partial(self._enqueue, task))
        if options.timeout_s is not None:
            self._post(partial(self._owner.canceller.limit, task, options.timeout_s))
        return answer

    def _encoded_call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], is_method: bool
    ) -> tuple[int, Any, Sequence[ObjectRef], list[Any]]:
        """(how it is called, its arguments, what it depends on, the references inside of them)"""
        dependencies: Sequence[ObjectRef] = ()
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is ObjectRef:
                args, kwargs, dependencies = with_dependencies(args, kwargs)
                break
        how, value = frames.CALL_ARGS, args
        if is_method or kwargs or dependencies:
            how, value = frames.METHOD if is_method else frames.CALL_ARGS_KWARGS, (args, kwargs)
        encoded, contained = collected(self._encode, value)
        return how, encoded, dependencies, contained

    def _places_of(self, returns: int) -> tuple[Any, Any, Sequence[Any]]:
        """(what the caller gets, the task's sink, whose source the task is), for other than one result"""
        if returns >= 0:
            entries = tuple(Entry(self._new_id()) for _ in range(returns))
            return [ObjectRef(entry.id, entry) for entry in entries] or None, SeveralResults(entries), entries
        stream = Stream(self._new_id)
        stream.on_taken = partial(self._owner.clerk.tell_taken, weakref.ref(stream))
        return StreamOfRefs(self, stream), stream, (stream,)

    def _enqueue(self, task: Task) -> None:
        """On the reactor thread: not at the end of the queue."""
        if task.group.is_terminating or task.group.core.is_broken:
            task.group.refuse(task)
        else:
            task.group.core.submitted(task)

    def _send_directly(self, group: Any, task: Task, entry: Entry) -> bool:
        """Past the reactor, if a worker is lent for that: see `node.direct`."""
        owner = self._owner
        if task.stored is not None or task.needs or owner.callables.forgotten:
            return False
        call = DirectCall(owner.lender, group.lent, task)
        entry.call = call  # before it is sent: whoever takes it over later finds the entry without it
        if call.send(True):
            return True
        entry.call = None
        return False

    def _read(self, entry: Entry, call: DirectCall) -> bool:
        """Read the answer of a direct call in this thread; False if that is somebody else's by now."""
        try:
            answer = call.receive()
            if answer is None:
                return False
            self._owner.clerk.note(call.task, call.duration_us, call.peer.pid, answer[0])
            entry.settle(*answer)
        except BaseException:  # Ctrl-C: the answer is lost, wherever it was just then
            self._post(partial(entry.deliver, 0, frames.DROPPED, None))
            raise
        if entry.dependents:
            self._post(entry.tell)
        return True

    def _awaited(self, entry: Entry) -> None:
        """A thread begins to wait. If it makes one call after the other, its calls should be direct."""
        if self._submitted == self._submitted_when_awaited + 1:
            task = entry.source
            if task is not None:
                task.group.wants_direct = True
        self._submitted_when_awaited = self._submitted

    # -- actors ----------------------------------------------------------------------------------

    def create_actor(
        self, record: CallableRecord, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> tuple[int, Any]:
        """Start an actor: (its number, its hold). ValueError if its name is taken."""
        self.check()
        args, kwargs, dependencies = with_dependencies(args, kwargs)
        encoded, contained = collected(self._encode, (args, kwargs))
        payload, extents = self._owner.objects.pack(encoded)
        how = frames.CREATE | (frames.STORED if extents is not None else 0)
        envelope = None
        if dependencies or contained:
            envelope = Envelope(tuple(map(self._entry_of, dependencies)), tuple(map(self._hold_of, contained)))
        actor = ActorRecord(self._new_id(), options, self._owner)
        call = (how, payload, encoded.needs, extents, envelope)
        if self._owner.actors.create(actor, self._slots.hello(), record, call) is None:
            raise ValueError(
                f"there is an actor named {options['name']!r} already in namespace {options['namespace']!r}"
            )
        return actor.id, actor

    def method(self, name: str) -> CallableRecord:
        """What `call_actor` calls."""
        record = self._methods.get(name)
        if record is None:
            record = self._methods[name] = self._owner.callables.adopt(pickle.dumps(name), ())
            record.name = name
        return record

    def call_actor(self, hold: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """As `submit`, of a method."""
        group = self._actor_of(hold).group
        return self._submit(group, self.method(name), args, kwargs, options, is_method=True)

    def kill_actor(self, hold: Any, may_restart: bool) -> None:
        self._owner.actors.kill(self._actor_of(hold), may_restart)

    def _actor_of(self, hold: Any) -> ActorRecord:
        self.check()
        if type(hold) is not ActorRecord or not self._has_made(hold.id):
            raise ForeignSessionError("the actor belongs to another session")
        return hold

    def find_actor(self, namespace: str, name: str) -> tuple[int, Any, dict[str, Any]] | None:
        """(number, hold, options) of the living actor of that name."""
        self.check()
        actor = self._owner.actors.find(namespace, name)
        return None if actor is None else (actor.id, actor, actor.options)

    def death_of(self, hold: ActorRecord) -> dict[str, Any] | None:
        """What is said of an actor that is dead: `message`, `class`, `name`; None if it lives."""
        return hold.fate.facts() if hold.death else None

    def actor_names(self) -> list[tuple[str, str]]:
        return self._owner.actors.names()

    @property
    def steward(self) -> str:
        """The address of the cluster's steward of detached actors; empty without a cluster."""
        address: str = self._owner.keeper.steward
        return address

    # -- objects ---------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef:
        """Keep a value. Raises what pickling raises."""
        self.check()
        encoded, contained = collected(self._encode, value)
        entry = Entry(self._new_id())
        entry.contained = tuple(map(self._hold_of, contained))
        entry.payload = self._owner.objects.object_of(encoded)
        entry.status = frames.OK
        return ObjectRef(entry.id, entry)

    def get(self, refs: Sequence[ObjectRef], deadline: float | None) -> list[Any] | None:
        """The values, in order; raises the first failure. None: the deadline came first."""
        values = []
        if self._lineage.is_used:
            self._post(partial(self._lineage.want, [ref._hold for ref in refs if type(ref._hold) is Entry]))
        for ref in refs:
            entry = ref._hold
            if type(entry) is not Entry:
                self._check_is_ours(ref)
            if entry.status == PENDING:
                self._check_is_ours(ref)
                call = entry.call
                if call is None:
                    self._awaited(entry)
                elif deadline is not None or not self._read(entry, call):
                    call.hand_over()
                if not entry.wait(deadline, self.check):
                    return None
            found = self._settled(entry, deadline)
            if found is None:
                return None
            values.append(self._value_of(entry, *found))
        return values

    def _bring(self, entry: Entry, deadline: float | None) -> bool:
        """Have the bytes of a value sent here; False if the deadline comes first."""
        gate = Entry(0)
        self._post(partial(self._lineage.when_here, entry, lambda entry: gate.deliver(0, frames.OK, None)))
        return gate.wait(deadline, self.check)

    def _settled(self, entry: Entry, deadline: float | None) -> tuple[Any, Any, int] | None:
        """(payload, what it refers to, status) of an entry that is there, when its bytes are here; None: the deadline
        came first."""
        while True:
            # In this order, and no attribute twice: see `Entry.lose`.
            payload, contained, status = entry.payload, entry.contained, entry.status
            if status != PENDING and (status != frames.OK or (payload is not None and not places_of(payload))):
                return payload, contained, status
            if not self._bring(entry, deadline):  # elsewhere, or lost in the meantime
                return None

    def value_of(self, entry: Entry) -> Any:
        """The value of an entry that is there; its failure is raised."""
        found = self._settled(entry, None)
        assert found is not None
        return self._value_of(entry, *found)

    def _value_of(self, entry: Entry, payload: Any, contained: Any, status: int) -> Any:
        if status == frames.OK and contained:
            return load_referring(payload, contained)
        success, value = outcome(status, payload)
        if success:
            return value
        raise exception_of(value, entry)

    def wait(self, refs: Sequence[ObjectRef], enough: int, deadline: float | None) -> set[int]:
        """Positions of those that are there, when `enough` are or the deadline has come."""
        entries = [self._entry_of(ref) for ref in refs]
        is_over = False
        while True:  # what was there may be lost with its machine, and made again
            there = {position for position, entry in enumerate(entries) if entry.status != PENDING}
            if len(there) >= enough or is_over:
                return there
            gate = Entry(0)
            waiting = _Countdown(enough, gate)
            self._post(partial(waiting.start, entries))
            try:
                is_over = not gate.wait(deadline, self.check)
            finally:
                self._post(partial(waiting.stop, entries))

    def future_of(self, ref: ObjectRef) -> concurrent.futures.Future[Any]:
        """See `ObjectRef.future`."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.when_there(ref, partial(self._fill, future))
        return future

    def _fill(self, future: concurrent.futures.Future[Any], entry: Entry) -> None:
        """On the callback thread."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = self.value_of(entry)
        except BaseException as error:  # noqa: BLE001 - the task's, or of the value's unpickling
            future.set_exception(error)
        else:
            future.set_result(value)

    def when_there(self, ref: ObjectRef, function: Callable[[Entry], None]) -> None:
        """Call it on the callback thread, with the entry."""
        self.check()
        entry = self._entry_of(ref)
        put = self._callbacks.put
        self._post(partial(self._lineage.when_here, entry, lambda entry: put(partial(function, entry))))

    def next_of_stream(self, stream: Stream, position: int, deadline: float | None) -> ObjectRef | None:
        """The reference to a stream's item, as soon as it can be had: pending. None beyond the end."""
        self.check()
        answer: list[Entry | None] = []
        gate = Entry(0)

        def take() -> None:
            answer.append(stream.take(position))
            gate.deliver(0, frames.OK, None)

        self._post(take)
        gate.wait(None, self.check)
        entry = answer[0]
        if entry is None:
            return None
        entry.wait(deadline, self.check)
        return None if entry.status == frames.STREAM_ENDED else ObjectRef(entry.id, entry)

    def when_next(self, stream: Stream, position: int, then: Callable[[ObjectRef | None], None]) -> None:
        """`next_of_stream` for who cannot wait: `then(its answer)`, on the callback thread."""
        self.check()
        put = self._callbacks.put

        def there(entry: Entry) -> None:
            put(partial(then, None if entry.status == frames.STREAM_ENDED else ObjectRef(entry.id, entry)))

        def take() -> None:
            entry = stream.take(position)
            if entry is None:
                put(partial(then, None))
            else:
                entry.when_there(there)

        self._post(take)

    def drop_stream(self, stream: Stream) -> None:
        """Nobody will take more of it."""
        if self._pid == this_process.pid and not self.is_closed:
            self._post(partial(self._owner.clerk.drop_stream, stream))

    # -- cancelling ------------------------------------------------------------------------------

    def cancel(self, ref: ObjectRef, force: bool, is_recursive: bool) -> None:
        """Take the task back, or interrupt it; with `force` kill the worker that runs it. Nothing if it has ended."""
        self.check()
        self._post(partial(self._cancel_now, self._entry_of(ref), force, is_recursive))

    def _cancel_now(self, holder: Any, force: bool, is_recursive: bool) -> None:
        task = holder.source
        if task is not None:
            self._owner.clerk.cancel(task, force, is_recursive)

    # -- references ------------------------------------------------------------------------------

    def _entry_of(self, ref: ObjectRef) -> Entry:
        self._check_is_ours(ref)
        entry: Entry = ref._hold
        call = entry.call
        if call is not None:
            call.hand_over()
        return entry

    def _check_is_ours(self, ref: ObjectRef) -> None:
        if type(ref._hold) is not Entry or not self._has_made(ref._id):
            raise ForeignSessionError(f"{ref!r} belongs to another session")

    def _hold_of(self, ref: Any) -> Entry | ActorRecord:
        """Of a reference, or of an actor's handle."""
        hold = ref._hold
        if type(hold) is Entry:
            return self._entry_of(ref)
        if not isinstance(hold, (Entry, ActorRecord)) or not self._has_made(hold.id):
            raise ForeignSessionError(f"{ref!r} belongs to another session")
        return hold

    def reference_of(self, object_id: int) -> ObjectRef:
        """For one that is unpickled here."""
        return ObjectRef(object_id, self.find_hold(object_id))

    def find_hold(self, object_id: int) -> Any:
        """What keeps an object or an actor alive that is referred to inside a value of ours, or from wherever user code
        has put the bytes of a reference."""
        known = references.resolving.entries
        entry = known.get(object_id) if known is not None else None
        if entry is None:
            entry = self._exported.get(object_id)
        if entry is None:
            for peer in list(self._owner.keeper.peers.values()):
                entry = peer.holdings.find(object_id)
                if entry is not None:
                    break
        if entry is None:
            entry = Entry(object_id)
            entry.deliver(0, frames.LOST, None)
        return entry

    def exported(self, ref: Any) -> None:
        """User code pickles a reference: it is found again as long as the object lives."""
        self._exported[ref._id] = self._hold_of(ref)

    def describe(self, ref: ObjectRef) -> str:
        entry = ref._hold
        if type(entry) is not Entry:
            return "of another session"
        if entry.status == PENDING:
            return "pending"
        return "ready" if entry.status == frames.OK else "failed"

    # -- the end ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise if nothing can come of a call any more."""
        if self._pid != this_process.pid:
            raise ForeignSessionError("this session belongs to the process that was forked from")
        if self.is_closed or self._owner.reactor.is_stopping:
            raise SessionClosedError("the session has ended; references of it lead nowhere")

    def resources(self) -> tuple[dict[str, int], dict[str, int]]:
        """(what there is, what is in use), in milli-units."""
        return dict(self._slots.resources.total), self._slots.in_use()

    # -- looking ---------------------------------------------------------------------------------

    def list_tasks(self) -> list[dict[str, Any]]:
        """See `scaleout.list_tasks`."""
        self._pause()
        owner = self._owner
        found = [
            {
                "name": name,
                "id": f"{number:016x}",
                "state": state_of(status),
                "type": "actor call" if is_call else "task",
                "duration_s": duration_us / 1e6,
                "pid": pid,
            }
            for name, number, _, _, duration_us, pid, status, is_call in list(owner.clerk.history.events)
        ]
        places = [list(owner.clerk.waiting)]
        for group in list(owner.groups):
            core = group.core
            queues = [core.ready, core.away, *core.placed.values(), *(lane.inflight for lane in core.lanes)]
            places += [[*queue] for queue in queues]
        for tasks in places:
            for task in tasks:
                if not task.submitted_ns or task.state == FINISHED:
                    continue
                waits = task.envelope is not None and task.envelope.waiting
                state = "WAITING" if waits else "RUNNING" if is_running(task) else "PENDING"
                found.append(
                    {
                        "name": task.name or task.callable.name,
                        "id": f"{getattr(task.sink, 'id', 0):016x}",
                        "state": state,
                        "type": "actor call" if task.group.keeps_order else "task",
                        "duration_s": None,
                        "pid": task.runner.worker.pid if state == "RUNNING" else None,
                    }
                )
        return found

    def list_actors(self) -> list[dict[str, Any]]:
        """See `scaleout.list_actors`."""
        self._pause()
        found = []
        for record in sorted(self._owner.actors.all, key=lambda record: record.id):
            core: Any = record.group.core
            pids = [peer.pid for peer in list(record.group.peers)]
            found.append(
                {
                    "id": f"{record.id:016x}",
                    "class_name": record.options["class_name"],
                    "name": record.options["name"],
                    "state": STATE_NAMES[core.state],
                    "pid": pids[-1] if pids else None,
                    "restarts": core.deaths,
                    "death": record.death,
                }
            )
        return found

    def list_objects(self) -> list[dict[str, Any]]:
        """See `scaleout.list_objects`. Nobody keeps a list of them: the garbage collector knows them all."""
        self._pause()
        found = []
        for entry in [entry for entry in gc.get_objects() if type(entry) is Entry and self._has_made(entry.id)]:
            state = "PENDING" if entry.status == PENDING else "READY" if entry.status == frames.OK else "FAILED"
            found.append(
                {
                    "id": f"{entry.id:016x}",
                    "state": state,
                    "size_bytes": entry.size_bytes,
                    "is_stored": isinstance(entry.payload, StoredObject),
                }
            )
        return sorted(found, key=lambda entry: str(entry["id"]))

    def write_trace(self, path: str) -> int:
        """See `scaleout.timeline`."""
        self._pause()
        history = self._owner.clerk.history
        return write_trace(path, list(history.events), list(history.transfers))

    def _pause(self) -> None:
        """Until the reactor has done what was posted so far."""
        self.check()
        gate = Entry(0)
        self._post(partial(gate.deliver, 0, frames.OK, None))
        gate.wait(None, self.check)

    def close(self) -> None:
        """End all tasks and actors, and wait until their processes are gone."""
        self.is_closed = True
        owner = self._owner
        if self._pid != this_process.pid:
            return
        groups = self._slots.close()
        groups += [record.group for record in list(owner.actors.all)]
        for group in groups:
            self._post(partial(owner.terminate_group, group))
        self._post(owner.end_if_idle)
        is_runtimes = threading.current_thread() is owner.reactor.thread or owner.errands.is_current
        if not is_runtimes:
            for group in groups:
                group.has_ended.wait()
        self._callbacks.put(None)
        if not is_runtimes:
            self._callbacks.join()
            owner.join_if_over()


class _Countdown:
    """Opens `gate` when so many entries are there. On the reactor thread."""

    def __init__(self, missing: int, gate: Entry) -> None:
        self._missing = missing
        self._gate = gate

    def start(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.when_there(self.arrived)

    def arrived(self, entry: Entry) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._gate.deliver(0, frames.OK, None)

    def stop(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.no_longer(self.arrived)


def exception_of(failure: Failure, entry: Any) -> BaseException:
    """See `client.task_errors`, imported when something fails."""
    from scaleout._runtime.client.task_errors import task_exceptions

    return task_exceptions.exception_of(failure)
