"""The owner: keeps the tasks that this process submitted, and drives the core for its worker groups.

    submitting thread --post--> reactor --frames--> worker --frames--> reactor --deliver--> sink --> waiting thread

One per session. Decisions are `core.dispatch`'s. This module runs the turn: what was posted goes to the core, what the
core wants done is carried out, by the parts that it puts together:

    objects       large values, and who still needs them      canceller     what nobody wants any more
    callables     functions, pickled                          lender        workers that callers talk to themselves
    keeper        the zygote                                  memory_watch  kills before the system does
    supervisor    workers, from their start to their end      callbacks     threads for users' code
    (receiver)    what workers say

Everything here runs on the reactor thread unless it says "any thread".
"""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.core.tasks import FINISHED, Task
from scaleout._runtime.node.actors import Actors
from scaleout._runtime.node.answers import Answers
from scaleout._runtime.node.callables import CallableTable
from scaleout._runtime.node.callbacks import CallbackThread
from scaleout._runtime.node.canceller import Canceller
from scaleout._runtime.node.clerk import Clerk
from scaleout._runtime.node.lender import Lender
from scaleout._runtime.node.lineage import Lineage
from scaleout._runtime.node.memory_watch import MemoryWatch
from scaleout._runtime.node.objects import ObjectTable
from scaleout._runtime.node.reactor import Reactor
from scaleout._runtime.node.receiver import Receiver
from scaleout._runtime.node.records import Records
from scaleout._runtime.node.supervisor import Supervisor
from scaleout._runtime.process import identity
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.node.group import WorkerGroup
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.slots import Slots
    from scaleout._runtime.pickling.definitions import DefinitionBook
    from scaleout._runtime.pickling.encode import Encoder

    Keeper = Any  # node.keeper's, or another of the same interface: cluster.fleet's


class Owner:
    """See the module's docstring. To be started; ends with the last group."""

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder,
        book: DefinitionBook,
        keeper_of: Callable[[Reactor], Keeper],
    ) -> None:
        self._settings = settings
        self.groups: list[WorkerGroup] = []
        self.opening = 0  # groups announced, not yet here
        self.on_idle: Callable[[], bool] = lambda: False
        self.reactor = Reactor("scaleout-reactor", self._serve, self._settle, self._at_end)
        self.errands = CallbackThread()
        self.records = Records()
        self._ending: list[CallbackThread] = []  # of groups that have ended
        self.keeper = keeper_of(self.reactor)
        self.objects = ObjectTable(settings, self.reactor, self.keeper.peers)
        self.callables = CallableTable(encoder, book, self.objects.pack)
        self.lineage = Lineage(self)
        self.clerk = Clerk(self.reactor, self.keeper, self.objects, self.callables, self.errands, self)
        self.actors = Actors(self)
        self.clerk.answers = Answers(self)
        self.clerk.group_of = lambda options: self.need_slots().group_of(options["shape"])
        self.slots: Slots | None = None  # once there are tasks
        receiver = Receiver(
            self.reactor,
            self.keeper,
            self.objects,
            self.callables,
            self.errands,
            self.clerk,
            self.lineage,
            self.records,
        )
        self._supervisor = Supervisor(
            self.reactor,
            self.keeper,
            self.objects,
            self.errands,
            receiver.on_data,
            self._carry_out,
            self._worker_gone,
            self._worker_died,
        )
        self._supervisor.environment_of = self._environment_of
        self.lender = Lender(self.reactor, self.keeper, receiver, self._supervisor)
        self.canceller = Canceller(self.reactor, self.keeper)
        self.canceller.note_end = self.clerk.note_end
        self._memory_watch = MemoryWatch(self.reactor, self.keeper, self.groups)
        self._connect(receiver)
        self._effects: dict[str, Callable[..., None]] = {
            "start": self._supervisor.start,
            "retire": self._retire,
            "revoke": self._revoke,
            "unrevoke": self._unrevoke,
            "interrupt": self.canceller.interrupt,
            "kill": self.canceller.kill,
            "failed": self._failed,
            "help": self._help,
            "dead": self.actors.dead,
            "lost": self.actors.lost,
            "forget": self._forget,
            "kill_worker": lambda group, lane: self.keeper.kill(lane.worker, signal.SIGKILL),
            "reclaim": self.lender.reclaim,
            "gather": self.clerk.gather,
            "stuck": self.clerk.stuck,
            "broken": self._broken,
        }
        self._is_tick_armed = False

    def _connect(self, receiver: Receiver) -> None:
        """Who tells whom."""
        keeper, objects = self.keeper, self.objects
        keeper.on_exit = self.lender.worker_exited
        keeper.on_refused = self._supervisor.worker_refused
        keeper.on_data = receiver.on_data
        keeper.on_nodes = self._nodes_changed
        keeper.on_output = self._print
        keeper.on_place_lost = self.lineage.place_lost
        keeper.on_leaving = self.lineage.leaves
        keeper.on_short = self._memory_watch.node_is_short
        objects.on_over = keeper.mirrors.over
        objects.on_writer_died = keeper.mirrors.writer_died
        objects.send_soon = self.lender.send_soon
        objects.mirrored_bytes = keeper.mirrors.mirrored_bytes
        keeper.mirrors.know(objects)

    def start(self) -> None:
        """Any thread, under the session's lock. If no group is announced by the time that is released, as a signal
        handler has raised, the reactor ends at once."""
        self.reactor.post(self.end_if_idle)
        try:
            self.reactor.start()
        except RuntimeError:  # no thread is to be had
            self.keeper.give_up_host()
            raise

    # -- the turn of the reactor -----------------------------------------------------------------

    def _serve(self, item: Any) -> None:
        if type(item) is Task:
            group = item.group
            if group.is_terminating or group.core.is_broken:
                group.refuse(item)
            elif group.core.has_priorities:
                group.core.submitted(item)
            else:
                group.core.ready.append(item)
        else:
            item()

    def serve_limited(self, task: Task, timeout_s: float | None) -> None:
        """Post this for a task that may run for so long; other tasks are posted as they are."""
        self._serve(task)
        if timeout_s is not None and task.state != FINISHED:
            self.canceller.limit(task, timeout_s)

    def _settle(self) -> None:
        if self.objects.has_released:  # first, so that a worker has its ranges back before the next task wants one
            self.objects.report_released()
        if self.callables.forgotten:
            self._forget_callables()
        if self.callables.book.forgotten:
            self._forget_definitions()
        if self.lineage.freed:
            self.lineage.forget_recipes()
        if self.slots is not None:
            self.slots.settle()
        for group in self.groups:
            core = group.core
            if core.ready or core.suspects or core.placed or core.is_closing:
                core.pump()
            if core.effects:
                self._carry_out(group)
            if group.wants_direct and not core.busy and not core.ready:
                self.lender.lend_idle(group)
            if core.busy and not self._memory_watch.is_armed:
                self._memory_watch.arm()
            if not self._is_tick_armed and core.needs_tick:
                self._is_tick_armed = True
                self.reactor.call_later(limits.STALL_SECONDS, self._tick)

    def _tick(self) -> None:
        self._is_tick_armed = False
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
                    peer.send(effect[2], effect[1].is_isolated, self.callables, self.objects.lend)
                    self.reactor.flush_soon(peer.link)
                else:
                    self._effects[name](group, *effect[1:])
            group.carrying = []
            if core.ready or core.suspects or core.placed:
                core.pump()

    def _forget_callables(self) -> None:
        forgotten, self.callables.forgotten = self.callables.forgotten, []
        ids = [record.id for record in forgotten]
        for record in forgotten:
            if record.stored is not None:
                self.objects.drop(record.stored)
        for peer in self.keeper.peers.values():
            peer.forget_callables(ids)
            self.lender.send_soon(peer)

    def _forget_definitions(self) -> None:
        """Names that were bound anew, and whose former definition no payload needs any more."""
        forgotten = self.callables.book.forgotten
        ids = [forgotten.popleft() for _ in range(len(forgotten))]
        for extents in self.callables.forget_definitions(ids):
            self.objects.drop(extents)
        for peer in self.keeper.peers.values():
            if peer.forget_definitions(ids):
                self.lender.send_soon(peer)

    # -- effects ---------------------------------------------------------------------------------

    def _forget(self, group: WorkerGroup, tasks: list[Task]) -> None:
        for task in tasks:
            if task.stored is not None:
                self.objects.drop(task.stored)
            task.envelope = None  # the actor's record may live on, and with it the call of its constructor

    def need_slots(self, amounts: dict[str, float] | None = None) -> Slots:
        """What shares this machine's resources among tasks. From the session under its lock, or, if a worker is the
        first to submit something, on the reactor thread."""
        if self.slots is None or self.slots.is_closed:
            from scaleout._runtime.node.slots import Slots

            self.slots = Slots(self._settings, self, *self.keeper.capacity(self._settings, amounts or {}))
        return self.slots

    def _nodes_changed(self, nodes: list[dict[str, int]]) -> None:
        if self.slots is not None and not self.slots.is_closed:
            self.slots.nodes_changed(nodes)
        for group in self.groups:
            follower = group.follower()
            if follower is not None:
                follower(self.keeper.num_cpus)

    def _print(self, number: int, text: str) -> None:
        """What workers of other machines have written to their stdout (1) or stderr (2)."""
        self.errands.put(partial(_write, number, text))

    def _environment_of(self, peer: Peer, group: WorkerGroup) -> dict[str, str]:
        return {} if self.slots is None else self.slots.environment_of(peer, group)

    def _worker_died(self, peer: Peer) -> None:
        """Its group does not know yet."""
        self.clerk.peer_died(peer)
        if self.slots is not None:
            self.slots.worker_gone(peer)

    def _worker_gone(self, peer: Peer) -> None:
        """What follows from its death is done."""
        self.clerk.lines.worker_gone(peer)
        self._end_if_over(peer.group)

    def _help(self, group: WorkerGroup, lane: Any, task: Task) -> None:
        peer: Peer = lane.worker
        peer.send([task], False, self.callables, self.objects.lend, frames.HELP)
        self.reactor.flush_soon(peer.link)

    def _retire(self, group: WorkerGroup, lane: Any) -> None:
        lane.worker.link.queue(frame(frames.EXIT))
        self.reactor.flush_soon(lane.worker.link)

    def _revoke(self, group: WorkerGroup, lane: Any, sequence: int) -> None:
        lane.worker.words[control_page.REVOKED_FROM] = sequence
        lane.worker.seat.when_settled(partial(self._revocation_settled, group, lane, sequence))

    def _revocation_settled(self, group: WorkerGroup, lane: Any, sequence: int) -> None:
        if lane.revoked_from == sequence:  # else: dead by now, or revoked further since
            group.core.revocation_settled(lane, lane.worker.words[control_page.CLAIMED])

    def _unrevoke(self, group: WorkerGroup, lane: Any) -> None:
        lane.worker.words[control_page.REVOKED_FROM] = control_page.NOTHING_REVOKED
        group.core.lane_reopened(lane)

    def _failed(self, group: WorkerGroup, task: Task, lane: Any) -> None:
        peer: Peer = lane.worker
        index = peer.words[control_page.ITEM_INDEX]
        facts = {
            "attempts": task.attempts,
            "exitcode": peer.exitcode,
            "item_index": None if index == control_page.NO_ITEM else index,
            "pid": peer.pid,
            "label": group.label_of(task),
            "usage": peer.memory_usage,
        }
        status = frames.OUT_OF_MEMORY if self._memory_watch.has_taken(peer) else frames.WORKER_DIED
        self.clerk.note_end(task, status)
        group.finish(task, status, facts)

    def _broken(self, group: WorkerGroup) -> None:
        if group.failure is None and group.initializer is None:
            group.failure = ("refused", "several in a row died while they started")
        group.finish_all(frames.GROUP_BROKEN, group.failure)
        for peer in group.peers:
            self.keeper.kill(peer, signal.SIGTERM)

    # -- groups ----------------------------------------------------------------------------------

    def announce_group(self, group: WorkerGroup) -> None:
        """Any thread: it is opened as soon as the reactor comes to it."""
        self.opening += 1
        self.reactor.post(partial(self.open_group, group))

    def open_group(self, group: WorkerGroup) -> None:
        """It was announced by `opening`, under the session's lock."""
        self.opening -= 1
        if self.reactor.is_stopping:  # it failed in the meantime
            group.abandon(self.reactor.failure)
            return
        self.groups.append(group)
        try:
            group.core.refill()
            self._carry_out(group)
        finally:
            group.is_opened.set()

    def give_up_group(self, group: WorkerGroup) -> None:
        """Nobody has it any more; it may not even have been opened."""
        if group.is_opened.is_set():
            self.terminate_group(group)
        else:
            self.opening -= 1
            group.close_initializer()
            self.end_if_idle()

    def resize(self, group: WorkerGroup, size: int) -> None:
        if not group.is_terminating and not group.core.is_broken:
            group.core.resized(size)
            self._carry_out(group)

    def close_group(self, group: WorkerGroup) -> None:
        group.core.closing()
        self._end_if_over(group)

    def terminate_group(self, group: WorkerGroup) -> None:
        if group.has_ended.is_set() or group.is_terminating:
            return
        group.is_terminating = True
        group.core.is_closing = True
        group.finish_all(frames.SESSION_CLOSED, None)
        group.core.effects.clear()
        for peer in group.peers:
            self.keeper.kill(peer, signal.SIGTERM)
        self.reactor.call_later(limits.TERMINATE_GRACE_SECONDS, partial(self.kill_workers, group))
        self._end_if_over(group)

    def terminate_all(self) -> None:
        for group in list(self.groups):
            self.terminate_group(group)
        if not self.reactor.is_stopping:  # groups may be announced that will not come
            self.end_if_idle()

    def kill_workers(self, group: WorkerGroup) -> None:
        for peer in group.peers:
            self.keeper.kill(peer, signal.SIGKILL)

    def dump_stacks(self) -> None:
        # One after the other, as each writes in many small pieces to the same stderr.
        for position, peer in enumerate(self.keeper.peers.values()):
            self.reactor.call_later(0.02 * position, partial(self.keeper.kill, peer, identity.STACKS_SIGNAL))

    # -- the end ---------------------------------------------------------------------------------

    def _end_if_over(self, group: WorkerGroup) -> None:
        if group.peers or not group.core.is_closing or group.has_ended.is_set():
            return
        group.is_terminating = True
        group.finish_all(frames.SESSION_CLOSED, None)
        if group in self.groups:
            self.groups.remove(group)
        group.close_initializer()
        self._end_callbacks(group)
        self.end_if_idle()
        group.has_ended.set()

    def _end_callbacks(self, group: WorkerGroup) -> None:
        """Let those run that are due."""
        group.callbacks.put(None)
        self._ending = [thread for thread in (*self._ending, group.callbacks) if thread.is_running]

    def end_if_idle(self) -> None:
        """With the last group the threads end, unless a client holds the owner."""
        if not self.groups and not self.reactor.is_stopping and self.on_idle():
            self.reactor.stop()
            self.keeper.let_go()
            self.errands.put(None)
            self.records.end()

    def _at_end(self) -> None:
        """The reactor's last act: close what is open. If it failed, nobody may be left waiting."""
        for group in list(self.groups):
            group.abandon(self.reactor.failure)
            self._end_callbacks(group)
        self.groups.clear()
        if self.reactor.failure is not None:
            self.errands.put(None)
            self.records.end()
        self.keeper.close()
        self.objects.close()

    def forget(self) -> None:
        """In a forked child, where only the forking thread is: close the fds, which are the parent's; take no lock."""
        self.reactor.abandon()
        self.keeper.forget()
        self.objects.forget()

    def join(self) -> None:
        """Any other thread: wait until the threads have ended."""
        thread = self.reactor.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for side_thread in (self.errands, self.records.thread, *self._ending):
            side_thread.join()

    def join_if_over(self) -> None:
        """Any other thread."""
        if self.reactor.is_stopping:
            self.join()


def _write(number: int, text: str) -> None:
    stream = sys.stdout if number == 1 else sys.stderr
    if stream is not None:
        stream.write(text)
        stream.flush()
