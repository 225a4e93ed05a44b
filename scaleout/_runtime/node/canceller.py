"""Tasks that nobody wants any more: dropped, cancelled, or at work for too long.

What has not been started is taken back by the core's revocations, which take a moment to settle; so these questions are
asked again until the answer is known. What runs is interrupted, then killed.

Methods run on the reactor thread unless they say "any thread".
"""

from __future__ import annotations

import signal
import threading
import time
import weakref
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.core.tasks import Task
    from scaleout._runtime.node.group import WorkerGroup
    from scaleout._runtime.node.keeper import ZygoteKeeper
    from scaleout._runtime.node.peer import Peer
    from scaleout._runtime.node.reactor import Reactor


def is_running(task: Task) -> bool:
    """Whether a worker has started it. Any thread, so what it sees may change under it: it looks twice."""
    lane: Any = task.runner
    sequence = task.sequence
    if task.state != ASSIGNED or lane is None:
        return False
    try:
        claimed = lane.worker.words[control_page.CLAIMED]
    except ValueError:  # the worker is gone
        return False
    return bool(claimed >= sequence and task.state == ASSIGNED and task.runner is lane and task.sequence == sequence)


class Canceller:
    """See the module's docstring."""

    def __init__(self, reactor: Reactor, keeper: ZygoteKeeper) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self.note_end: Callable[[Task, int], None] = lambda task, status: None
        self._began: weakref.WeakKeyDictionary[Task, Any] = weakref.WeakKeyDictionary()

    # -- cancelling: only what has not been started ----------------------------------------------

    def cancel(self, task: Task) -> bool:
        """Any thread: whether the task was taken back before any worker started it; its sink has been told CANCELLED
        then."""
        answer: list[bool] = []
        self._ask(lambda done: self._cancel(task, answer, done))
        return answer == [True]

    def cancel_pending(self, group: WorkerGroup) -> None:
        """Any thread: take back everything of the group that no worker has started. No more must be submitted."""
        self._ask(lambda done: self._cancel_pending(group, done))

    def _ask(self, question: Callable[[Any], None]) -> None:
        """Have the reactor work on `question(done)`, and wait until it releases `done`."""
        if threading.get_ident() == self._reactor.thread.ident:
            return  # in a finalizer, that must not wait for what it interrupts
        done = threading.Lock()
        done.acquire()
        self._reactor.post(partial(question, done))
        while not done.acquire(True, 1.0) and not self._reactor.is_stopping:
            pass

    def _cancel(self, task: Task, answer: list[bool], done: Any) -> None:
        claimed = task.runner.worker.words[control_page.CLAIMED] if task.state == ASSIGNED else 0
        is_gone = task.group.core.cancel_asked(task, claimed)
        if is_gone is None:
            self._reactor.call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._cancel, task, answer, done))
            return
        if is_gone:
            task.group.finish(task, frames.CANCELLED, None)
        answer.append(is_gone)
        done.release()

    def _cancel_pending(self, group: WorkerGroup, done: Any) -> None:
        gone, is_all = group.core.cancel_all_asked(lambda lane: lane.worker.words[control_page.CLAIMED])
        for task in gone:
            group.finish(task, frames.CANCELLED, None)
        if is_all:
            done.release()
        else:
            self._reactor.call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._cancel_pending, group, done))

    # -- dropping: also what runs ----------------------------------------------------------------

    def drop_one(self, task: Task, status: int, kill: bool) -> None:
        """The same for one task, that its sink is told `status` of."""
        if task.state != FINISHED:
            self.drop(task.group, lambda other: other is task, True, kill, status)

    def drop(
        self,
        group: WorkerGroup,
        unwanted: Callable[[Task], bool],
        interrupt: bool,
        kill: bool,
        status: int = frames.DROPPED,
    ) -> None:
        """Without `interrupt`, what runs may run to its end; its result goes nowhere. With `kill`, it is not asked."""
        effects = group.core.effects
        earlier = len(effects)
        for task in group.core.dropped(unwanted):
            group.finish(task, status, None)
        if not interrupt:
            effects[earlier:] = [effect for effect in effects[earlier:] if effect[0] != "interrupt"]
        elif kill:
            late = [effect for effect in effects[earlier:] if effect[0] == "interrupt"]
            effects[earlier:] = [effect for effect in effects[earlier:] if effect[0] != "interrupt"]
            effects.extend(("kill", lane, task) for _, lane, tasks in late for task in tasks)

    def interrupt(self, group: WorkerGroup, lane: Any, tasks: list[Task]) -> None:
        """What runs there is not wanted: SIGINT if it is indeed running, SIGKILL if that does not help."""
        peer: Peer = lane.worker
        sequences = frozenset(task.sequence for task in tasks)
        if group.keeps_order and group.core.is_concurrent:
            self._tell_actor(peer, tasks)
            return
        if not self._signal_if_running(peer, sequences, signal.SIGINT):
            # Either it is claimed at this very moment and will show, or the revocation keeps it from being claimed.
            peer.seat.when_settled(partial(self._signal_if_running, peer, sequences, signal.SIGINT))
        if group.keeps_order:
            return  # other calls need the actor
        still = partial(self._signal_if_running, peer, sequences, signal.SIGKILL)
        self._reactor.call_later(limits.INTERRUPT_GRACE_SECONDS, still)

    def _tell_actor(self, peer: Peer, tasks: list[Task]) -> None:
        """An event loop can end a single call; what runs in a thread goes on."""
        for task in tasks:
            peer.link.queue(frame(frames.CANCEL, number=task.sequence))
        self._reactor.flush_soon(peer.link)

    def kill(self, group: WorkerGroup, lane: Any, task: Task) -> None:
        """The worker that runs this goes with it, once the revocation keeps it from claiming anything else."""
        if group.keeps_order and group.core.is_concurrent:
            if group.hello["actor"]["is_async"]:
                self._tell_actor(lane.worker, [task])
            elif lane.worker.words[control_page.CLAIMED] >= task.sequence:
                self._keeper.kill_for_task(lane.worker)
            return
        late = partial(self._signal_if_running, lane.worker, frozenset([task.sequence]), signal.SIGKILL)
        lane.worker.seat.when_settled(late)

    def _signal_if_running(self, peer: Peer, sequences: frozenset[int], signum: int) -> bool:
        """Whether the worker has claimed one of these tasks and not answered; the signal goes to it then."""
        if peer.has_exited.is_set() or peer.exit_status is not None:
            return False
        running = peer.words[control_page.RUNNING]
        wanted = [task.sequence for task in peer.lane.inflight if task.sequence in sequences]
        # What waits for another task, which runs inside it, cannot be interrupted; it can be killed.
        if running not in wanted and (signum == signal.SIGINT or not (wanted and peer.lane.waits)):
            return False
        if signum == signal.SIGINT:
            peer.words[control_page.INTERRUPTED] = running
            self._keeper.kill(peer, signum)
        else:
            self._keeper.kill_for_task(peer)
        return True

    # -- limits of time --------------------------------------------------------------------------

    def limit(self, task: Task, timeout_s: float) -> None:
        """The task's time runs from when its worker claims it."""
        self._look_later(weakref.ref(task), timeout_s, timeout_s)

    def _look_later(self, found: Any, timeout_s: float, delay_s: float) -> None:
        delay_s = min(delay_s, limits.LONGEST_WAIT_SECONDS)
        self._reactor.call_later(delay_s, partial(self._look_at_time, found, timeout_s))

    def _look_at_time(self, found: Any, timeout_s: float) -> None:
        """If the task has not been claimed yet, its time is not up."""
        task = found()
        if task is None or task.state == FINISHED:
            return
        left_s = timeout_s
        if task.state == ASSIGNED:
            peer: Peer = task.runner.worker
            if getattr(task.group.core, "is_concurrent", False):
                left_s = self._left_of_concurrent(task, peer, timeout_s)
            elif peer.words[control_page.RUNNING] == task.sequence:
                left_s -= (time.monotonic_ns() - peer.words[control_page.SINCE_NS]) / 1e9
            if left_s <= 0:
                task.group.core.expired(task)
                self.note_end(task, frames.TIMED_OUT)
                facts = {"timeout_s": timeout_s, "pid": peer.pid, "label": task.group.label_of(task)}
                task.group.finish(task, frames.TIMED_OUT, facts)
                return
        self._look_later(found, timeout_s, left_s)

    def _left_of_concurrent(self, task: Task, peer: Peer, timeout_s: float) -> float:
        """Of several calls at once the control page does not say when each began: its time runs from the first look
        that finds it begun."""
        if peer.words[control_page.CLAIMED] < task.sequence:
            return timeout_s
        now = time.monotonic()
        key = (peer, task.sequence)
        began = self._began.setdefault(task, (key, now))
        if began[0] != key:
            began = self._began[task] = (key, now)
        return timeout_s - (now - began[1])
