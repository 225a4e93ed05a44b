"""Tasks that depend on objects, and what workers ask for from inside their tasks.

A worker that submits, puts or waits does so at its owner's: the owner keeps the tasks and the objects, so a worker's
death loses none of them. What a worker says comes as frames, in order, and is done in order, also when something in it
takes a moment (names of `__main__` are looked up on the callback thread, as pickling definitions runs user code).

    SUBMIT   marshal of (target, function, how, payload, is_stored, objects, dependencies, references, returns, options,
             names); the names are those of `__main__` that the payload needs
    FUNCTION marshal of (pickled function, names, what it is called)
    WANT     marshal of (objects, how many are enough, whether values are wanted, is it the main thread, may it help);
             no objects: it waits for something that the owner does not know of, until it says UNWANT
    REQUEST  marshal of (name, *arguments): a method of `answers`

Everything here runs on the reactor thread unless it says otherwise.
"""

from __future__ import annotations

import marshal
import pickle
import weakref
from functools import partial

from scaleout._runtime.base import limits, references
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, PENDING, Task
from scaleout._runtime.node import ledger
from scaleout._runtime.node.actors import ActorRecord, Restored
from scaleout._runtime.node.history import History, now_ns
from scaleout._runtime.node.ledger import Entry, Envelope, SeveralResults, StreamHold
from scaleout._runtime.node.lines import Lines
from scaleout._runtime.node.retrying import Retrying
from scaleout._runtime.node.stored import extents_of
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import InfeasibleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.node.callables import CallableRecord, CallableTable
    from scaleout._runtime.node.callbacks import CallbackThread
    from scaleout._runtime.node.keeper import ZygoteKeeper
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor

    Owner = Any  # node.owner's, which is put together from this and others


STUCK = "all workers wait for other tasks, and there can be no more of them; most likely a recursion without an end"


class PeerWant:
    """A worker's thread waits for some objects. `missing`: how many more are needed."""

    __slots__ = ("_clerk", "_enough", "_has_values", "entries", "is_main", "may_help", "missing", "number", "peer")

    def __init__(
        self,
        clerk: Clerk,
        peer: Peer,
        number: int,
        entries: list[Entry],
        enough: int,
        has_values: bool,
        is_main: bool,
        may_help: bool,
    ) -> None:
        self._clerk = clerk
        self.peer = peer
        self.number = number
        self.entries = entries
        self.missing = self._enough = min(enough, len(entries)) if entries else enough
        self._has_values = has_values
        self.is_main = is_main
        self.may_help = may_help

    def arrived(self, entry: Entry) -> None:
        if self._has_values and entry.places and self.peer.seat.place not in entry.places:
            self._clerk.lineage.when_at(self.peer.seat.place, entry, self._brought)
            return
        self.missing -= 1
        if self._has_values:
            self._clerk.send_object(self.peer, entry, self.number)
        has_helped = self._clerk.has_helped(self.peer, entry)
        if self.missing == 0 and not self._has_values:
            self._look_again()
        if self.missing == 0:
            self._clerk.satisfied(self)
        elif has_helped and self.missing > 0:
            self._clerk.help_or_block(self)

    def _look_again(self) -> None:
        """What was there may have been lost since, with its machine, and be made again."""
        lost = [entry for entry in self.entries if entry.status == ledger.PENDING]
        self.missing = max(0, self._enough - (len(self.entries) - len(lost)))
        if self.missing:
            for entry in lost:
                if self.arrived not in entry.dependents:
                    entry.when_there(self.arrived)

    def _brought(self, entry: Entry) -> None:
        if self.peer.wants.get(self.number) is self:  # else it is over
            self.arrived(entry)


class Clerk:
    """See the module's docstring. `group_of(options)` gives the worker group for a task from inside a task;
    `answers` has a method for each question that workers ask."""

    def __init__(
        self,
        reactor: Reactor,
        keeper: ZygoteKeeper,
        objects: ObjectTable,
        callables: CallableTable,
        errands: CallbackThread,
        owner: Owner,
    ) -> None:
        self._owner = owner
        self._reactor = reactor
        self._keeper = keeper
        self._objects = objects
        self._callables = callables
        self._errands = errands
        self.lineage = owner.lineage
        self.new_id: Callable[[], int] = references.object_ids.__next__
        self._first_id = self.new_id()
        self._first_worker_id = next(references.worker_ids)
        self.group_of: Callable[[Any], Any] = lambda options: None
        self.history = History()
        self.waiting: set[Task] = set()  # for what they depend on, before their groups know of them
        self.exported: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        """What was pickled here by somebody who does not count it: user code, or a function that encloses it."""
        self.has_clients = False
        self.on_first: Callable[[], None] = lambda: None  # a worker has become a client
        self.answers: Any = None
        self.lines = Lines(owner)
        self._kept_back: dict[Peer, Task] = {}
        self.restorer = callables.adopt(pickle.dumps("load_checkpoint"), ())
        self.helping: dict[Peer, list[int]] = {}  # objects that the worker makes itself, while it waits for them
        self._handlers: dict[int, Callable[[Peer, int, int, int, bytes], None]] = {
            frames.SUBMIT: self._on_submit,
            frames.PUT: self._on_put,
            frames.WANT: self._on_want,
            frames.UNWANT: self._on_unwant,
            frames.RELEASE: self._on_release,
            frames.FUNCTION: self._on_function,
            frames.ITEM: self._on_item,
            frames.REQUEST: self._on_request,
            frames.CHECKPOINT: self._on_checkpoint,
            frames.CREATE_ACTOR: self._on_create_actor,
            frames.CALLED: self.lines.called,
            frames.NOTED: self.lines.noted,
        }

    def has_made(self, object_id: int) -> bool:
        """Whether an object is one of this owner's, or of its workers'; those of earlier owners may live on."""
        worker_id = object_id >> references.OF_WORKER_BITS
        return worker_id >= self._first_worker_id if worker_id else object_id >= self._first_id

    # -- tasks with an envelope ------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue it, or have it wait for what it depends on. Actors keep their calls in order themselves."""
        group = task.group
        if group.is_terminating or group.core.is_broken:
            group.refuse(task)
        elif group.keeps_order:
            self._await_here(task, task.envelope.dependencies)
            group.core.submitted(task)
            self._fail_with_dependency(task)
        else:
            self._enqueue(task)

    def await_constructor(self, creation: Task) -> None:
        """The first call of an actor that is about to be opened: it is not made before what it depends on is there."""
        self._await_here(creation, creation.envelope.dependencies)
        self._fail_with_dependency(creation)

    def _await_here(self, task: Task, entries: Iterable[Entry]) -> None:
        """Until all are there, and their bytes in this process, from where they can go to any machine."""
        for entry in entries:
            if entry.status == ledger.PENDING or entry.places:
                task.envelope.waiting += 1
                self.lineage.when_here(entry, partial(self._dependency_there, task))

    def _dependency_there(self, task: Task, entry: Entry) -> None:
        if task.envelope is None:
            return  # the constructor of an actor that has been forgotten in the meantime
        task.envelope.waiting -= 1
        if not task.envelope.waiting:
            self.waiting.discard(task)
        if task.envelope.waiting or task.state == FINISHED:
            return
        if task.group.keeps_order:
            self._fail_with_dependency(task)
            task.group.core.dependencies_there(task)
        else:
            self._enqueue(task)

    def _enqueue(self, task: Task) -> None:
        group = task.group
        if group.is_terminating or group.core.is_broken:
            group.refuse(task)
            return
        pending = [entry for entry in task.envelope.dependencies if entry.status == ledger.PENDING]
        task.envelope.waiting = len(pending)
        for entry in pending:
            entry.when_there(partial(self._dependency_there, task))
        if not pending and not self._fail_with_dependency(task):
            self._place(task)
        if task.envelope.waiting:
            self.waiting.add(task)
        elif task.state == PENDING:
            group.core.submitted(task)
            self._offer(task)

    def _offer(self, task: Task) -> None:
        """If a worker waits for it, that was told that there is nothing to help with: now there is."""
        for peer in task.group.peers:
            if peer.wants and peer.lane.is_stuck:
                want = max(peer.wants.values(), key=lambda want: (want.is_main, want.number))
                if want.is_main and any(entry.source is task for entry in want.entries):
                    self.help_or_block(want)
                    return

    def _place(self, task: Task) -> None:
        """All that it depends on is there: it goes to the machine that has most of that, after the rest has come here.
        One that a worker died of runs alone, wherever that can be."""
        sizes: dict[Any, int] = {}
        away = [entry for entry in task.envelope.dependencies if entry.places]
        for entry in away:
            for place in entry.places:
                sizes[place] = sizes.get(place, 0) + entry.size_bytes
        task.place = max(sizes, key=sizes.__getitem__, default=None) if not task.attempts else None
        for entry in away:
            if task.place not in entry.places:
                task.envelope.waiting += 1
                self.lineage.when_at(task.place, entry, partial(self._dependency_there, task))

    def gather(self, group: Any, task: Task, place: Any) -> None:
        """It is to run on another machine, or (None) on any: what it depends on is to come there, or here."""
        missing = list(task.envelope.dependencies)

        def came(entry: Entry) -> None:
            missing.pop()
            if not missing:
                self._gathered(group, task, place)

        for entry in task.envelope.dependencies:
            self.lineage.when_at(place, entry, came)

    def _gathered(self, group: Any, task: Task, place: Any) -> None:
        if task.state == FINISHED:
            return
        failed = task.envelope.failed_dependency()
        if failed is not None:
            if group.core.gave_up(task):
                group.finish(task, failed.status, failed.payload)
            return
        away = [entry for entry in task.envelope.dependencies if entry.status == ledger.PENDING or entry.places]
        if all(place in entry.places for entry in away):
            task.place = place if away else None
            group.core.resubmitted(task)
            self._offer(task)
        else:  # it was lost again in the meantime
            self.gather(group, task, None)

    def _fail_with_dependency(self, task: Task) -> bool:
        if task.envelope.waiting:
            return False
        failed = task.envelope.failed_dependency()
        if failed is None:
            return False
        if task.group.keeps_order:
            task.group.core.withdrawn(task)
        task.state = FINISHED
        task.group.finish(task, failed.status, failed.payload)
        return True

    def cancel_waiting(self, task: Task) -> bool:
        """If it waits for values still, it is gone."""
        if task in self._kept_back.values():
            task.state = FINISHED
            task.group.finish(task, frames.CANCELLED, None)
            return True
        if task.state != PENDING or task.envelope is None or not task.envelope.waiting:
            return False
        if task.group.keeps_order:
            task.group.core.withdrawn(task)
        self.waiting.discard(task)
        task.state = FINISHED
        task.group.finish(task, frames.CANCELLED, None)
        return True

    def note_end(self, task: Task, status: int) -> None:
        """A task has ended in another way than by a worker's answer."""
        if task.submitted_ns:
            runner = task.runner
            self.note(task, 0, 0 if runner is None else runner.worker.pid, status)

    def note(self, task: Task, duration_us: int, pid: int, status: int, at_ns: int = 0) -> None:
        """A task has ended in a worker: now, if `at_ns` does not say when."""
        self.history.events.append(
            (task.name or task.callable.name, getattr(task.sink, "id", 0), task.submitted_ns, at_ns or now_ns(),
             duration_us, pid, status, task.group.keeps_order)
        )  # fmt: skip

    # -- from workers ----------------------------------------------------------------------------

    def on_frame(self, peer: Peer, kind: int, flag: int, aux: int, number: int, body: bytes) -> bool:
        """False if it is no frame of this module's."""
        handler = self._handlers.get(kind)
        if handler is None:
            return False
        if not self.has_clients:
            self.has_clients = True
            self.on_first()
        peer.lane.talks = True
        handler(peer, flag, aux, number, body)
        return True

    def _on_function(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        payload, names, name = marshal.loads(body)
        extents = None
        if flag & frames.STORED:
            extents = extents_of(payload)
            self._objects.hold_now(extents)
        self._when_known(peer, names, partial(self._add_function, peer, number, name, payload, extents))

    def _add_function(
        self, peer: Peer, number: int, name: str, payload: bytes, extents: Any, needs: tuple[int, ...]
    ) -> None:
        record = peer.functions[number] = self._callables.adopt(payload, needs, extents)
        record.name = name

    def _on_submit(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        said = marshal.loads(body)
        entries = tuple(Entry(object_id) for object_id in said[5])
        peer.holdings.hand_over(entries)
        dependencies = tuple(self.entry_of(peer, object_id) for object_id in said[6])
        references = tuple(self.entry_of(peer, object_id) for object_id in said[7])
        payload = said[3]
        stored = None
        if said[4]:
            stored = self._objects.keep(payload)
        do = partial(self._submit_of_worker, peer, said, entries, dependencies, references, stored)
        self._when_known(peer, said[10], do)

    def _submit_of_worker(
        self,
        peer: Peer,
        said: tuple[Any, ...],
        entries: tuple[Entry, ...],
        dependencies: tuple[Entry, ...],
        references: tuple[Entry, ...],
        stored: Any,
        needs: Any,
    ) -> None:
        target, function, how, payload, _, _, _, _, returns, options, _ = said
        sink: Any = entries[0] if returns == 1 else SeveralResults(entries)
        if returns < 0:  # the one object is the stream itself
            hold = StreamHold(entries[0].id, self.new_id)
            sink = hold.stream
            if peer.holdings.find(hold.id) is entries[0]:  # else it was dropped in the meantime
                peer.holdings.settle(hold.id, 1)
                peer.holdings.hand_over((hold,))
        record: CallableRecord = peer.functions[function]
        group = self._group_for(peer, target, options, sink)
        if group is None:
            return
        extents = None
        if stored is not None:
            how |= frames.STORED
            extents = stored.extents
            self._objects.hold_now(extents)
        task = Task(group, record, how, payload, needs, extents, sink, 0, record.profile)
        task.submitted_ns = now_ns()
        task.max_retries = options["max_retries"]
        task.priority = options["priority"]
        task.name = options["name"]
        parent = None if peer.has_exited.is_set() else self._running(peer)
        if parent is not None:
            task.parent = weakref.ref(parent)
        if options["timeout_s"] is not None:
            self._owner.canceller.limit(task, options["timeout_s"])
        for entry in entries:
            entry.source = task
        if returns < 0:
            sink.source = task
            sink.on_taken = partial(self.tell_taken, weakref.ref(sink))
            hold.on_dropped = self._stream_dropped
        if self.lineage.is_used and options["timeout_s"] is None and not options["retry_exceptions"]:
            self.lineage.let_stay(task)
        if options["retry_exceptions"]:
            task.sink = Retrying(self._owner, task, options["retry_exceptions"], options["timeout_s"])
        if dependencies or references or returns != 1 or group.keeps_order:
            caller = (peer.worker_id, options["channel"]) if options["channel"] else peer.worker_id
            task.envelope = Envelope(dependencies, references, returns, caller)
            self.submit(task)
        elif group is peer.group:
            self._keep_back(peer, task)
        else:
            self.enqueue_plain(task)

    def _group_for(self, peer: Peer, target: int, options: dict[str, Any], sink: Any) -> Any:
        """Of a worker's call: that of the actor which it names, or of tasks like it. None: the sink is told why."""
        if target:
            actor = self.entry_of(peer, target)
            if not isinstance(actor, Entry):
                return actor.group
            sink.deliver(0, frames.LOST, None)
            return None
        try:
            return self.group_of(options)
        except InfeasibleError as error:
            sink.deliver(0, frames.INFEASIBLE, {"message": str(error)})
            return None

    def _stream_dropped(self, stream: Any) -> None:
        """Any thread."""
        if stream.source is not None:
            self._reactor.post(partial(self.drop_stream, stream))

    def drop_stream(self, stream: Any) -> None:
        """Nobody will take more of it: the task ends, an actor's generator is told so and the actor lives on."""
        task = stream.source
        if task is None:
            return
        if task.group.keeps_order:
            self._send_taken(task, 0, 1)
        self.cancel(task, not task.group.keeps_order, True)

    def tell_taken(self, found: Any, count: int) -> None:
        """The consumer of a stream has come so far."""
        stream = found()
        if stream is not None and stream.source is not None:
            self._send_taken(stream.source, count, 0)

    def _send_taken(self, task: Task, count: int, is_over: int) -> None:
        if task.state == ASSIGNED:
            peer = task.runner.worker
            if peer.link.is_open:
                peer.link.queue(frame(frames.TAKEN, flag=is_over, number=task.sequence, aux=count))
                self._owner.lender.send_soon(peer)

    def enqueue_plain(self, task: Task) -> None:
        if task.group.is_terminating or task.group.core.is_broken:
            task.group.refuse(task)
        else:
            task.group.core.submitted(task)

    def _keep_back(self, peer: Peer, task: Task) -> None:
        """The youngest task of each worker is kept from others for a moment: mostly the worker waits for it next, and
        then it is the one to do it. Else each level of a recursion would take a worker of its own."""
        self._let_go(peer)
        self._kept_back[peer] = task
        self._reactor.call_later(limits.KEPT_BACK_SECONDS, partial(self._let_go, peer, task))

    def _let_go(self, peer: Peer, only: Task | None = None) -> None:
        task = self._kept_back.get(peer)
        if task is not None and (only is None or task is only):
            del self._kept_back[peer]
            if task.state == PENDING:
                self.enqueue_plain(task)

    def _on_create_actor(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        said = marshal.loads(body)
        actor = ActorRecord(said[0], said[6], self._owner)
        peer.holdings.hand_over((actor,))
        envelope = Envelope(
            tuple(self.entry_of(peer, object_id) for object_id in said[4]),
            tuple(self.entry_of(peer, object_id) for object_id in said[5]),
            1,
            peer.worker_id,
        )
        extents = None
        if said[3]:
            extents = extents_of(said[2])
            self._objects.hold_now(extents)
        self._when_known(peer, said[7], partial(self._create_actor, peer, actor, said, envelope, extents))

    def _create_actor(
        self, peer: Peer, actor: ActorRecord, said: Any, envelope: Envelope, extents: Any, needs: Any
    ) -> None:
        how = frames.CREATE | (frames.STORED if extents is not None else 0)
        call = (how, said[2], needs, extents, envelope)
        hello = self._owner.need_slots().hello()
        if self._owner.actors.create(actor, hello, peer.functions[said[1]], call) is None:
            peer.holdings.settle(actor.id, 1)

    def _running(self, peer: Peer) -> Task | None:
        """The task that runs on a worker, if it is known."""
        running = peer.words[control_page.RUNNING]
        return next((task for task in peer.lane.inflight if task.sequence == running), None)

    def cancel(self, task: Task, force: bool, is_recursive: bool) -> None:
        """Nobody wants its result; `is_recursive`: nor those of the tasks that it has submitted."""
        if is_recursive:
            for child in self._children_of(task):
                self.cancel(child, force, True)
        if task.state != FINISHED:
            self.note_end(task, frames.CANCELLED)
        if task.state == FINISHED and isinstance(task.sink, Retrying):
            task.sink.cancel()
        elif not self.cancel_waiting(task):
            self._owner.canceller.drop_one(task, frames.CANCELLED, force)

    def _children_of(self, task: Task) -> list[Task]:
        """Those that have not ended."""
        found = []
        for group in self._owner.groups:
            core = group.core
            for place in (core.ready, core.away, *core.placed.values(), *(lane.inflight for lane in core.lanes)):
                for child in place:
                    if child.parent is not None and child.parent() is task and child.state != FINISHED:
                        found.append(child)
        found += [child for child in self._kept_back.values() if child.parent is not None and child.parent() is task]
        return found

    def entry_of(self, peer: Peer, object_id: int) -> Any:
        """What the worker refers to by this number. One that nobody handed to it may be gone."""
        entry = peer.holdings.find(object_id)
        if entry is None:
            for other in self._keeper.peers.values():
                entry = other.holdings.find(object_id)
                if entry is not None:
                    break
        if entry is None:
            entry = self.exported.get(object_id)
        if entry is None:
            entry = Entry(object_id)
            entry.deliver(0, frames.LOST, None)
        return entry

    def _on_put(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        entry = Entry(number)
        peer.holdings.hand_over((entry,))
        entry.contained, payload = self.value_of(peer, flag, body)
        entry.deliver(0, frames.OK, payload)

    def value_of(self, peer: Peer, flag: int, body: bytes) -> tuple[tuple[Any, ...], Any]:
        """(what it refers to, payload) of a value that a worker sends."""
        contained: tuple[Any, ...] = ()
        payload: Any = body
        if flag & frames.HAS_REFERENCES:
            payload, references = marshal.loads(body)
            contained = tuple(self.entry_of(peer, object_id) for object_id in references)
        if flag & frames.STORED:
            self._objects.share_budget()
            payload = self._objects.keep(payload)
        return contained, payload

    def _on_item(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        task = next((task for task in peer.lane.inflight if task.sequence == number), None)
        contained, payload = self.value_of(peer, flag, body)
        if task is not None and task.state != FINISHED:
            task.sink.item(aux, frames.OK, payload, contained)

    def _on_release(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        for object_id, count in marshal.loads(body):
            peer.holdings.settle(object_id, count)

    def _on_request(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        if peer.backlog:  # it may be about what the worker said before
            peer.backlog.append([(), partial(self._answer, peer, number, body)])
        else:
            self._answer(peer, number, body, ())

    def _answer(self, peer: Peer, number: int, body: bytes, needs: Any) -> None:
        if peer.has_exited.is_set():
            return
        name, *arguments = marshal.loads(body)
        answer = getattr(self.answers, name)(peer, *arguments)
        peer.link.queue(frame(frames.WAITED, marshal.dumps(answer), number=number))
        self._reactor.flush_soon(peer.link)

    def _on_checkpoint(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        """What an actor has saved: its next process gets it back."""
        group = peer.group
        if not group.keeps_order:
            return
        contained, payload = self.value_of(peer, flag, body)
        how = frames.RESTORE
        extents = None
        if type(payload) is not bytes:
            how |= frames.STORED
            extents = payload.extents
            self._objects.hold_now(extents)
            payload = payload.body
        sink = Restored(group.actor)
        restart = Task(group, self.restorer, how, payload, (), extents, sink, 0, self.restorer.profile)
        restart.max_retries = -1
        if contained:
            restart.envelope = Envelope((), contained)
        group.core.checkpointed(restart)

    # -- waiting ---------------------------------------------------------------------------------

    def _on_want(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        object_ids, enough, has_values, is_main, may_help = marshal.loads(body)
        self._let_go(peer)
        entries = [self.entry_of(peer, object_id) for object_id in object_ids]
        want = PeerWant(self, peer, number, entries, enough, has_values, is_main, may_help)
        peer.wants[number] = want
        core = peer.group.core
        if is_main:
            core.lane_waits(peer.lane)
        if want.missing == 0:
            self.satisfied(want)
            return
        for entry in entries:
            entry.when_there(want.arrived)
            if want.missing <= 0:
                return
        if is_main:
            self.help_or_block(want)

    def help_or_block(self, want: PeerWant) -> None:
        """The worker may do itself what it waits for, if nobody has begun it; else its slot is free."""
        peer = want.peer
        core = peer.group.core
        if want.may_help:
            for entry in want.entries:
                task = entry.source
                if entry.status == ledger.PENDING and task is not None and task.group is peer.group:
                    if core.help_wanted(peer.lane, task):
                        self.helping.setdefault(peer, []).append(entry.id)
                        return
        core.lane_blocked(peer.lane)

    def stuck(self, group: Any) -> None:
        """All workers of the group wait, and no more are to be had: one of them is told so."""
        for peer in group.peers:
            for want in peer.wants.values():
                for entry in want.entries if want.is_main else ():
                    task = entry.source
                    if entry.status == ledger.PENDING and task is not None and task.group is group:
                        if group.core.dropped(lambda other, task=task: other is task and other.state != ASSIGNED):
                            group.finish(task, frames.GROUP_BROKEN, ("refused", STUCK))
                            return

    def has_helped(self, peer: Peer, entry: Entry) -> bool:
        """Whether the worker has made this object itself, while it waited for it."""
        made = self.helping.get(peer)
        if not made or entry.id not in made:
            return False
        made.remove(entry.id)
        return True

    def satisfied(self, want: PeerWant) -> None:
        peer = want.peer
        self._end_want(want)
        ready = [entry.id for entry in want.entries if entry.status != ledger.PENDING]
        peer.link.queue(frame(frames.WAITED, marshal.dumps(ready), number=want.number))
        self._reactor.flush_soon(peer.link)

    def _end_want(self, want: PeerWant) -> None:
        want.missing = 0
        if want.peer.wants.pop(want.number, None) is not None:
            for entry in want.entries:
                entry.no_longer(want.arrived)
            if want.is_main:
                inside = sum(1 for other in want.peer.wants.values() if other.is_main and other.number > want.number)
                want.peer.group.core.lane_continues(want.peer.lane, inside)

    def _on_unwant(self, peer: Peer, flag: int, aux: int, number: int, body: bytes) -> None:
        want = peer.wants.get(number)
        if want is not None:
            self._end_want(want)

    def send_object(self, peer: Peer, entry: Entry, want: int) -> None:
        peer.send_objects([entry], want, self._objects.lend)
        self._reactor.flush_soon(peer.link)

    def peer_died(self, peer: Peer) -> None:
        """Nobody there waits any more, and what only it referred to goes."""
        for want in list(peer.wants.values()):
            want.is_main = False  # its lane is gone
            self._end_want(want)
        if peer.backlog:  # others may wait for what it has submitted
            peer.backlog.append([(), partial(self._forget, peer)])
        else:
            self._forget(peer, ())

    def _forget(self, peer: Peer, needs: Any) -> None:
        self._let_go(peer)
        peer.holdings.clear()
        for record in peer.functions.values():
            self._callables.release(record)
        peer.functions.clear()
        self.helping.pop(peer, None)

    # -- names of `__main__` ---------------------------------------------------------------------

    def _when_known(self, peer: Peer, names: Any, do: Callable[[tuple[int, ...]], None]) -> None:
        """Do it with the definitions that a worker needs for these names, in the order in which the peer said it."""
        if not names:
            if peer.backlog:
                peer.backlog.append([(), do])
            else:
                do(())
            return
        said: list[Any] = [None, do]
        peer.backlog.append(said)
        self._errands.put(partial(self._look_up, peer, names, said))

    def _look_up(self, peer: Peer, names: Any, said: list[Any]) -> None:
        """On the callback thread."""
        needs: tuple[int, ...] = ()
        try:
            needs = self._callables.book.needs_of_names(names)
        except BaseException:  # noqa: BLE001 - the user's reducers; the worker that lacks the name will say so
            pass
        self._reactor.post(partial(self._known, peer, said, needs))

    def _known(self, peer: Peer, said: list[Any], needs: tuple[int, ...]) -> None:
        said[0] = needs
        backlog = peer.backlog
        while backlog and backlog[0][0] is not None:
            found, do = backlog.popleft()
            do(found)
