"""The calls of one actor: in which order they reach it, and what its death costs. Pure: facts in, effects out.

    STARTING --created--> ALIVE --worker_died--> STARTING (again, if it may) or DEAD
    any but DEAD --creation_failed, killed--> DEAD

The calls of one caller reach the actor in the order in which they were made; one that still waits for a value it
depends on holds back those that its caller made after it, and nobody else's.

To the owner a mailbox looks like a `dispatch.Group` with one lane, with the same facts and effects, and a few more:

    ("dead", tasks)                 the actor is dead: these calls fail, and all that come
    ("lost", tasks)                 it is not, but these had begun when its process died: they fail
    ("kill_worker", lane)           its process is to end
    ("forget", tasks)               these are not sent again: what was kept for that can go

What a death costs: calls that had begun are charged. They fail, unless they may be retried (`max_task_retries`); what
had been sent and not begun is sent again if the actor is started again (`restarts_left`, -1: always). A death that is
not charged (it was the zygote's) costs no restart, but an actor that has none is dead by it too. With a *log*
(`keeps_log`) the actor is brought back to where it was: what it did since its last checkpoint is done again, in the
same order, before anything else; results that were delivered are not delivered again. Such a call stays FINISHED while
it is done again, so that nobody takes it for one that can still be cancelled or run out of time.

Calls come back undone when the worker waits inside a call, or lacks a name. They keep their `order`: what was still on
its way to the worker then comes back later, and stands behind them again. Nothing is sent until all are back, or the
worker, which gives back whatever it reads until its owner has heard of that, might never see the end of it.

Rejected: a `Group` of size 1. It takes back what is queued, runs what was charged last and alone, and so mixes up the
order.
"""

from __future__ import annotations

from collections import deque

from scaleout._runtime.base import limits
from scaleout._runtime.core import tasks as lifecycle
from scaleout._runtime.core.dispatch import DEAD as LANE_DEAD
from scaleout._runtime.core.dispatch import LENT, OPEN, RETIRING, STARTING, Lane
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, PENDING, Task, illegal
from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

CREATING = 0
ALIVE = 1
DEAD = 2
STATE_NAMES = ("STARTING", "ALIVE", "DEAD")

ALWAYS = -1

FIRST = -(1 << 62)
"""The `order` of the constructor's call. What is done again has a negative one too."""


class Mailbox:
    """See the module's docstring. `creation` is the call of the constructor, the first that the actor gets."""

    def __init__(
        self,
        creation: Task,
        *,
        restarts: int,
        task_retries: int,
        keeps_log: bool = False,
        window: int | None = None,
        is_concurrent: bool = False,
    ) -> None:
        self.creation = creation
        self.restarts_left = restarts
        self.max_retries = task_retries
        self.keeps_log = keeps_log
        self.is_concurrent = is_concurrent  # runs several calls at once, so no caller may have it for himself
        self.window = window or limits.ACTOR_WINDOW_TASKS
        self.state = CREATING
        self.size = 1
        self.ready: deque[Task] = deque()
        self.away: list[Task] = []
        self.lanes: list[Lane] = []
        self.log: deque[Task] = deque()  # done since the last checkpoint
        self.replaying: set[Task] = set()  # sent again only for what they change
        self.restart: Task | None = None  # brings back the last checkpoint, after the constructor
        self.waiting = 0  # of `ready`, those that wait for a value
        self.busy = 0
        self.blocked = 0
        self.asked = 0
        self.deaths = 0
        self.failures_in_a_row = 0
        self.creation_deaths = 0  # in a row, while the constructor ran
        self.is_broken = False
        self.is_closing = False
        self.is_elastic = False
        self.has_priorities = False  # its calls have an order already
        self.placed: dict[Any, deque[Task]] = {}  # nor does any wait for a place
        self.effects: list[tuple[Any, ...]] = []
        self.story: deque[tuple[object, ...]] = deque(maxlen=64)
        self._has_begun = False  # the constructor was sent to the present worker
        self._sent = 0  # how many calls were
        self._keeps_creation = True  # it may be sent again
        self._condemned: Lane | None = None  # its process is being killed: calls wait for the next
        creation.order = FIRST
        self.needs_tick = False

    # -- calls -----------------------------------------------------------------------------------

    def submitted(self, task: Task) -> None:
        if task.state != PENDING:
            raise illegal(task, "be submitted", self.story)
        self.ready.append(task)
        if task.envelope is not None and task.envelope.waiting:
            self.waiting += 1

    def dependencies_there(self, task: Task) -> None:
        """What the call waited for is there."""
        self._count_waiting()

    def withdrawn(self, task: Task) -> None:
        """It will not be made: what it waited for has failed, or nobody wants it."""
        if task in self.ready:
            self.ready.remove(task)
            self._count_waiting()

    def _count_waiting(self) -> None:
        self.waiting = sum(1 for task in self.ready if _waits(task))

    def finished(self, lane: Lane, sequence: int, duration_us: int) -> Task | None:
        """The actor has answered a call; None if nobody wants the answer."""
        task = self._remove(lane, sequence)
        if task is None:
            return None
        lane.finished += 1
        task.profile.add(duration_us)
        if task is self.creation and self.state == CREATING:
            self.state = ALIVE
            self.creation_deaths = 0
            self.story.append(("created",))
            if not self._may_start_again(is_charged=False):
                self._keeps_creation = False
                self.effects.append(("forget", [task]))
        is_wanted = task.state != FINISHED
        if self.keeps_log and not self._starts(task):
            # What a call held was let go when it was dropped: without stored arguments it can be made again even so.
            if is_wanted or task in self.replaying or task.stored is None:
                self.log.append(task)
        self.replaying.discard(task)
        if not is_wanted:
            return None
        task.state = lifecycle.ON_FINISH[task.state]
        return task

    def checkpointed(self, restart: Task) -> None:
        """The actor has saved its state, as of the last call that it has answered; `restart` brings it back."""
        if self.state == DEAD:
            self.effects.append(("forget", [restart]))
            return
        forgotten = [*self.log, *([self.restart] if self.restart is not None else [])]
        self.restart = restart
        restart.order = FIRST + 1
        self.log.clear()
        self.effects.append(("forget", forgotten))

    def returned(self, lane: Lane, sequences: Iterable[int]) -> None:
        """The worker waits inside a call, and what is queued behind that is to be sent again."""
        back = [task for sequence in sequences if (task := self._remove(lane, sequence)) is not None]
        if back:
            first = min(task.sequence for task in back)
            lane.revoked_from = min(first, lane.revoked_from) if lane.revoked_from else first
            self._put_back(back)
            self._look_behind(lane)

    def undecodable(self, lane: Lane, sequence: int) -> Task | None:
        """The worker lacks a name that the call needs. What was sent after it is to be sent again too, to keep the
        order: the worker skips that."""
        task = self._remove(lane, sequence)
        if task is None:
            return None
        self.returned(lane, [other.sequence for other in lane.inflight if other.sequence > sequence])
        if task not in self.replaying:
            if task.state == FINISHED:
                return None
            task.state = lifecycle.ON_TAKE_BACK[task.state]
        self.away.append(task)
        return task

    def resubmitted(self, task: Task) -> None:
        """It can be decoded now. Nothing happens if it was dropped in the meantime, or starts the actor anew."""
        if task in self.away:
            self.away.remove(task)
            self._put_back([task])

    def gave_up(self, task: Task) -> bool:
        """It stays undecodable: it is finished. False if it was in the meantime."""
        if task not in self.away:
            return False
        self.away.remove(task)
        if task in self.replaying or task is self.restart:
            self._die([])  # it cannot be brought back to where it was
            return False
        if task is self.creation:
            self._keeps_creation = False
        task.state = FINISHED
        return True

    def dropped(self, unwanted: Callable[[Task], bool]) -> list[Task]:
        """Nobody wants these any more: what is not sent is gone, what was sent is interrupted if it has begun."""
        gone = [task for task in (*self.ready, *self.away) if self._is_open(task) and unwanted(task)]
        if gone:
            left = set(gone)
            self.ready = deque(task for task in self.ready if task not in left)
            self.away = [task for task in self.away if task not in left]
            self._count_waiting()
        for lane in self.lanes:
            running = [task for task in lane.inflight if self._is_open(task) and unwanted(task)]
            if running:
                gone.extend(running)
                self.effects.append(("interrupt", lane, running))
        for task in gone:
            task.state = FINISHED
        return gone

    def cancel_asked(self, task: Task, claimed: int) -> bool | None:
        """Nobody wants this one, unless it has been sent. True: it is gone."""
        if task.state != PENDING or self._starts(task):
            return False
        if task in self.away:
            self.away.remove(task)
        elif task in self.ready:
            self.withdrawn(task)
        else:
            return False  # somebody makes it directly
        task.state = FINISHED
        return True

    def cancel_all_asked(self, claimed_of: Callable[[Lane], int]) -> tuple[list[Task], bool]:
        return self.dropped(lambda task: task.state == PENDING), True

    def _starts(self, task: Task) -> bool:
        return task is self.creation or task is self.restart

    def _is_open(self, task: Task) -> bool:
        """Whether it is a call that somebody is still to be told the end of."""
        return task.state != FINISHED and not self._starts(task)

    def expired(self, task: Task) -> None:
        """It has run for too long: its worker is to be killed, and the actor with it."""
        lane: Any = task.runner
        task.state = lifecycle.ON_DROP[task.state]
        self.effects.append(("kill", lane, task))

    def take_all(self) -> list[Task]:
        left = [*self.ready, *self.away]
        for lane in self.lanes:
            left.extend(lane.inflight)
            lane.inflight.clear()
            lane.bytes_inflight = lane.revoked_from = 0
        self.ready.clear()
        self.away.clear()
        self.waiting = self.busy = 0
        left = [task for task in left if self._is_open(task)]
        for task in left:
            task.state = FINISHED
        return left

    def may_repeat(self, task: Task) -> bool:
        """Those of the log, and what starts the actor. What is never sent again is told by "forget"."""
        return self.state != DEAD and (self.keeps_log or task is self.creation or task is self.restart)

    @property
    def demand(self) -> tuple[int, int]:
        """(whether the actor holds its resources, whether it wants them): as long as it lives."""
        if self.lanes or self.asked:
            return 1, 0
        return 0, int(self.state != DEAD and not (self.is_closing and not self.has_work))

    @property
    def suspects(self) -> int:
        """Whoever drives a group pumps it while it has something ready, or suspects: here, the constructor's call."""
        return int(not self._has_begun and self.state != DEAD and any(lane.state == OPEN for lane in self.lanes))

    @property
    def has_work(self) -> bool:
        return bool(self.ready or self.away or any(lane.inflight for lane in self.lanes))

    # -- the worker ------------------------------------------------------------------------------

    def refill(self) -> None:
        if self.is_broken or self.state == DEAD or self.size < 1 or self.asked or self._serving():
            return
        self.asked = 1
        self.effects.append(("start", 1))

    def _serving(self) -> bool:
        return any(lane.state in (STARTING, OPEN, LENT, RETIRING) for lane in self.lanes)

    def worker_started(self, worker: Any, place: Any = None) -> Lane:
        self.asked = 0
        lane = Lane(worker, None, place)
        self.lanes.append(lane)
        self._has_begun = False
        return lane

    def worker_ready(self, lane: Lane) -> None:
        if lane.state == LANE_DEAD:
            raise InternalError(f"worker {lane.worker} is ready after its death; what happened before: {self.story}")
        self.failures_in_a_row = 0
        if lane.state == STARTING:
            lane.state = OPEN

    def worker_died(self, lane: Lane, claimed: int, is_charged: bool = True) -> None:
        """See the module's docstring for what it costs."""
        if lane.state == LANE_DEAD:
            raise InternalError(f"worker {lane.worker} died twice; what happened before: {self.story}")
        was_ready = lane.state != STARTING
        lane.state = LANE_DEAD
        self.lanes.remove(lane)
        self._condemned = None
        held = [task for task in lane.inflight if not self._starts(task)]
        lane.inflight.clear()
        lane.bytes_inflight = lane.revoked_from = 0
        self.busy = 0
        self.story.append(("worker_died", lane.worker, claimed, len(held)))
        if self.state == DEAD:
            return
        if not was_ready:
            if is_charged:
                self.initializer_failed()
        elif self.state == CREATING and is_charged and self._died_in_constructor(held):
            return
        may_restart = not self.is_broken and self._may_start_again(is_charged) and not self._is_over(held)
        lost = []
        again = []
        for task in held:
            if task in self.replaying:
                again.append(task)
            elif task.state == FINISHED:
                pass
            elif task.sequence <= claimed and self._is_used_up(task, is_charged):
                task.state = lifecycle.ON_FINISH[task.state]
                lost.append(task)
            else:
                task.state = lifecycle.ON_TAKE_BACK[task.state]
                again.append(task)
        if not may_restart:
            self._die([*lost, *(task for task in again if task.state != FINISHED)])
            return
        if is_charged and self.restarts_left > 0:
            self.restarts_left -= 1
        self.deaths += 1
        if lost:
            self.effects.append(("lost", lost))
        for start in (self.creation, self.restart):
            if start is not None:
                start.state = PENDING
                self._take_out(start)
        self._put_back(again)
        if self.keeps_log:
            self._replay()
        self.state = CREATING
        self.refill()

    def _may_start_again(self, is_charged: bool) -> bool:
        """Whoever is to blame: without restarts, an actor whose state is gone must not go on as if it were not."""
        return self.restarts_left != 0 or (not is_charged and (self.keeps_log or self.state == CREATING))

    def _is_used_up(self, task: Task, is_charged: bool) -> bool:
        """Whether a call that had begun when the process died is not to be made again."""
        retries = self.max_retries if task.max_retries is None else task.max_retries
        if self.keeps_log and retries != ALWAYS:
            retries = max(retries, limits.REPLAY_ATTEMPTS)
        if is_charged or not retries:  # without retries "at most once" holds, whoever is to blame
            task.attempts += 1
        return retries != ALWAYS and task.attempts > retries

    def _replay(self) -> None:
        """What was done since the last checkpoint goes before all else; then, if that was just being done again, the
        rest of it."""
        rest = sorted((task for task in (*self.ready, *self.away) if task in self.replaying), key=_order)
        for order, task in enumerate((*self.log, *rest), -len(self.log) - len(rest)):
            task.order = order
        self.replaying.update(self.log)
        self.ready.extendleft(reversed(self.log))
        self.log.clear()

    def _take_out(self, task: Task) -> None:
        """What starts the actor is sent anew, wherever it is."""
        if task in self.away:
            self.away.remove(task)
        if task in self.ready:
            self.ready.remove(task)

    def _died_in_constructor(self, held: list[Task]) -> bool:
        """Its process died before the constructor had returned: if it always does, it is not started for ever."""
        self.creation_deaths += 1
        if self.creation_deaths < limits.INITIALIZER_FAILURES:
            return False
        self._die([task for task in held if task.state != FINISHED])
        return True

    def _is_over(self, held: list[Task]) -> bool:
        """Nobody will call it any more, so there is no need to start it again."""
        return self.is_closing and not any(self._is_open(task) for task in (*held, *self.ready, *self.away))

    def initializer_failed(self) -> None:
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= limits.INITIALIZER_FAILURES:
            self._die([])

    def refused(self) -> None:
        """Its worker could not be started."""
        self._die([])

    def start_refused(self, count: int) -> None:
        self.asked = 0
        self.refused()

    def creation_failed(self) -> None:
        """The constructor raised."""
        self._die([])

    def killed(self, may_restart: bool) -> None:
        """Somebody has decided so. Its worker is killed too: the usual death, if it may be started again."""
        if may_restart:
            for lane in self.lanes:
                self._condemned = lane
                self.effects.append(("kill_worker", lane))
        else:
            self._die([])

    def _die(self, calls: list[Task]) -> None:
        if self.state == DEAD:
            return
        self.state = DEAD
        self.is_broken = True  # what comes is refused
        self.story.append(("dead",))
        calls.extend(self.take_all())
        for task in calls:
            task.state = FINISHED
        self.effects.append(("dead", calls))
        forgotten = [*self.log, *self.replaying]
        if self._keeps_creation:
            forgotten.append(self.creation)
        if self.restart is not None:
            forgotten.append(self.restart)
        if forgotten:
            self.effects.append(("forget", forgotten))
        self.log.clear()
        self.replaying.clear()
        for lane in self.lanes:
            self.effects.append(("kill_worker", lane))

    def resized(self, size: int) -> None:
        self.size = size
        self.refill()

    def slots_lost(self) -> None:
        pass

    def closing(self) -> None:
        """Nobody holds a handle any more: it ends when its calls are done."""
        self.is_closing = True
        self._retire_if_over()

    @property
    def takes_lines(self) -> bool:
        """Whether workers may call it without our knowing: not if a call is ever to be made again, or beside others."""
        is_plain = not (self.keeps_log or self.is_concurrent or self.max_retries)
        return is_plain and self.state == ALIVE and not self.is_closing and self._condemned is None

    def has_calls_of(self, caller: int) -> bool:
        """Whether calls of this worker are not done."""
        for place in (self.ready, self.away, *(lane.inflight for lane in self.lanes)):
            if any(task.envelope is not None and task.envelope.caller == caller for task in place):
                return True
        return False

    # -- direct calls ----------------------------------------------------------------------------

    def lend_idle(self) -> list[Lane]:
        if self.has_work or self.is_closing or self.state != ALIVE or self.keeps_log or self.is_concurrent:
            return []
        lent = [lane for lane in self.lanes if lane.state == OPEN and not lane.talks and lane is not self._condemned]
        for lane in lent:
            lane.state = LENT
            lane.is_wanted = False
        return lent

    def lane_came_back(self, lane: Lane) -> None:
        if lane.state == LENT:
            lane.state = OPEN
            self._retire_if_over()

    def lane_given_up(self, lane: Lane) -> None:
        if lane.state == OPEN:
            lane.state = RETIRING

    def taken_over(self, lane: Lane, task: Task) -> None:
        task.state = lifecycle.ON_ASSIGN[task.state]
        task.runner = lane
        if not task.order:
            self._number(task)
        lane.inflight.append(task)
        lane.bytes_inflight += task.size_bytes
        self.busy = 1

    # -- tasks that wait for tasks: an actor has a process of its own, and no slot to give back ------

    def lane_waits(self, lane: Lane) -> None:
        lane.waits += 1

    def lane_blocked(self, lane: Lane) -> None:
        pass

    def lane_continues(self, lane: Lane, inside: int = 0) -> None:
        lane.waits -= 1

    def help_wanted(self, lane: Lane, task: Task) -> bool:
        return False

    def tick(self) -> None:
        pass

    def revocation_settled(self, lane: Lane, claimed: int) -> None:
        pass

    def lane_reopened(self, lane: Lane) -> None:
        pass

    # -- sending ---------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what the actor has room for."""
        if self.state == DEAD:
            return
        for lane in self.lanes:
            if lane.state == LENT and (self.ready or self.is_closing) and not lane.is_wanted:
                lane.is_wanted = True
                self.effects.append(("reclaim", lane))
            if lane.state == OPEN and not lane.waits and not lane.revoked_from and lane is not self._condemned:
                self._send(lane)
        self._retire_if_over()

    def _send(self, lane: Lane) -> None:
        batch: list[Task] = []
        if not self._has_begun:
            if _waits(self.creation):
                return
            self._has_begun = True
            batch.append(self.creation)
            if self.restart is not None:
                batch.append(self.restart)
        room = self.window - len(lane.inflight)
        size = lane.bytes_inflight
        ready = self.ready
        if self.away:
            pass  # one of them is to be seen to first
        elif not self.waiting:
            room -= len(batch)
            while ready and room > 0 and (not size or self._may_have(size + ready[0].size_bytes)):
                task = ready.popleft()
                size += task.size_bytes
                room -= 1
                batch.append(task)
        else:
            batch.extend(self._choose(room - len(batch), size))
        if not batch:
            return
        replaying = self.replaying
        sequence = lane.next_sequence
        size = lane.bytes_inflight
        for task in batch:
            if not replaying or task not in replaying:
                task.state = lifecycle.ON_ASSIGN[task.state]
            if not task.order:
                self._number(task)
            task.sequence = sequence
            task.runner = lane
            sequence += 1
            size += task.size_bytes
        lane.next_sequence = sequence
        lane.bytes_inflight = size
        lane.inflight.extend(batch)
        self.busy = 1
        self.effects.append(("send", lane, batch))

    def _may_have(self, size_bytes: int) -> bool:
        """Whether so much may be with the worker at once. With one that does several calls beside one another each may
        wait for what a later one does."""
        return self.is_concurrent or size_bytes <= limits.PREFETCH_BYTES

    def _number(self, task: Task) -> None:
        self._sent += 1
        task.order = self._sent

    def _choose(self, room: int, size: int) -> list[Task]:
        """The calls that may go, where some wait for values: those of callers that none of theirs holds back."""
        held_back = set()
        chosen: list[Task] = []
        left: deque[Task] = deque()
        for task in self.ready:
            caller = task.envelope.caller if task.envelope is not None else 0
            if _waits(task):
                held_back.add(caller)
            elif caller not in held_back and size and not self._may_have(size + task.size_bytes):
                room = 0  # nor for those behind it: they might be smaller, and what is done again has one order
            if caller in held_back or len(chosen) >= room:
                left.append(task)
            else:
                size += task.size_bytes
                chosen.append(task)
        self.ready = left
        return chosen

    def _remove(self, lane: Lane, sequence: int) -> Task | None:
        inflight = lane.inflight
        if inflight and inflight[0].sequence == sequence:
            task = inflight.popleft()
        else:
            found = next((task for task in inflight if task.sequence == sequence), None)
            if found is None:
                return None
            task = found
            inflight.remove(task)
        lane.bytes_inflight -= task.size_bytes
        if not inflight:
            self.busy = 0
        if lane.revoked_from:
            self._look_behind(lane)
        return task

    def _look_behind(self, lane: Lane) -> None:
        """Whether something that was sent after what has come back is still on its way."""
        if not (lane.inflight and lane.inflight[-1].sequence > lane.revoked_from):
            lane.revoked_from = 0

    def _put_back(self, tasks: list[Task]) -> None:
        """Before all that was never sent, in order."""
        back = [task for task in tasks if task.state != FINISHED or task in self.replaying]
        for task in back:
            if task.state == ASSIGNED:
                task.state = lifecycle.ON_TAKE_BACK[task.state]
        while self.ready and self.ready[0].order:
            back.append(self.ready.popleft())
        back.sort(key=_order)
        self.ready.extendleft(reversed(back))

    def _retire_if_over(self) -> None:
        if self.is_closing and not self.has_work:
            for lane in self.lanes:
                if lane.state in (OPEN, STARTING):
                    lane.state = RETIRING
                    self.effects.append(("retire", lane))
            if not self.lanes and not self.asked:  # it has no process that would end
                self._die([])

    def validate(self) -> None:
        """Raise if something does not hold that always should. For tests."""
        assert self.waiting == sum(1 for task in self.ready if _waits(task))
        assert len(self.lanes) <= 1 or all(lane.state == RETIRING for lane in self.lanes[:-1])
        seen: set[Task] = set()
        for place in (self.ready, self.away, self.log, *(lane.inflight for lane in self.lanes)):
            for task in place:
                if task in seen:
                    raise illegal(task, "be in two places", self.story)
                seen.add(task)
        orders = [task.order for task in self.ready]
        sent = [order for order in orders if order]
        assert orders[: len(sent)] == sorted(sent), orders
        for lane in self.lanes:
            sequences = [task.sequence for task in lane.inflight]
            assert sequences == sorted(sequences), sequences
            assert not lane.revoked_from or sequences[-1] > lane.revoked_from
            assert lane.bytes_inflight == sum(task.size_bytes for task in lane.inflight)
            for task in lane.inflight:
                assert task.state in (ASSIGNED, FINISHED)
        assert self.busy == int(any(lane.inflight for lane in self.lanes))
        for task in (*self.ready, *self.away):
            assert task.state == (FINISHED if task in self.replaying else PENDING)
        assert all(task.state == FINISHED for task in (*self.log, *self.replaying))
        assert not self.log or self.keeps_log
        if self.state == DEAD:
            assert not seen and not self.replaying


def _waits(task: Task) -> bool:
    return task.envelope is not None and bool(task.envelope.waiting)


def _order(task: Task) -> int:
    return task.order
