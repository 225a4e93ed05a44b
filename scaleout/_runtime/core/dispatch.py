"""Which task goes to which worker of a group, what is taken back, what a death costs. Pure: facts in, effects out.

A *lane* is one worker as the dispatcher sees it. A *group* is the set of lanes behind one Pool or executor, and
its ready queue. Facts are methods in the past tense or nouns of what the user asked for; each returns nothing and
leaves effects in `group.effects`, a list of tuples that the caller carries out in order:

    ("send", lane, tasks)           hand these tasks to the worker, in this order
    ("start", count)                start that many workers for the group
    ("retire", lane)                tell the worker to exit after what it has
    ("revoke", lane, sequence)      store revoked_from; report with revocation_settled() after the settling time
    ("unrevoke", lane)              store "nothing revoked", then report lane_reopened()
    ("interrupt", lane, tasks)      these tasks were running and are not wanted any more: stop them
    ("kill", lane, task)            the task ran for too long: kill the worker if it is still at it
    ("failed", task, lane)          the task has used up its retries
    ("reclaim", lane)               a lane that was lent is needed: report with lane_came_back()
    ("help", lane, task)            hand this task to the worker, which is to run it inside the one that waits for it
    ("stuck",)                      all workers wait, no more are to be had: fail a task that one of them waits for
    ("broken",)                     the initializer keeps failing; pending tasks are in group.take_all()

Invariants (checked by `validate`, which the tests call after every fact):
- a task is in exactly one place: `ready`, `away`, or one lane's `inflight`;
- sequences in `inflight` ascend, and the worker sees them in that order;
- no lane holds more than its credit, or than what maxtasksperchild leaves it;
- at most `size` lanes have anything in flight, so Pool(1) never runs two tasks at once, not even while a worker
  that has served its time still runs its last task beside its replacement;
- nothing is sent to a lane with a revocation under way (so one word is enough for the protocol);
- a lane whose task waits for other tasks is sent nothing but help; without help it has given its slot back, if the
  group is elastic; lanes that go on after that are the only reason why more than `size` may be busy.

Rejected: a global queue that workers pull from (a round trip per task), and static assignment (uneven tasks).
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from scaleout._runtime.base import limits
from scaleout._runtime.core import tasks as lifecycle
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, PENDING, SUSPECT, Task, illegal
from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

STARTING = 0
OPEN = 1
RETIRING = 2
DEAD = 3
LENT = 4  # idle, and a submitting thread may talk to it directly: see node.direct
SERVING = (STARTING, OPEN, LENT)

PREFETCH_US = limits.PREFETCH_SECONDS * 1e6

LOOK_BACK_TASKS = 64
"""So many of the youngest ready tasks are looked at one by one before the whole queue is searched."""


class Lane:
    """One worker of a group. `claimed` facts come from its control page through the caller."""

    __slots__ = (
        "bytes_inflight",
        "finished",
        "finished_at_tick",
        "helps",
        "inflight",
        "is_blocked",
        "is_busy",
        "is_isolated",
        "is_listed",
        "is_reopening",
        "is_unwanted",
        "is_wanted",
        "left",
        "next_sequence",
        "place",
        "revoked_from",
        "state",
        "talks",
        "unreturned",
        "waits",
        "worker",
    )

    def __init__(self, worker: Any, left: int | None, place: Any = None) -> None:
        self.worker = worker
        self.place = place  # the machine that it is on; None: this one
        self.state = STARTING
        self.inflight: deque[Task] = deque()
        self.bytes_inflight = 0
        self.next_sequence = 1
        self.left = left
        self.finished = 0
        self.finished_at_tick = -1
        self.helps: dict[Task, int] = {}  # of `inflight`, what was sent as help; with how many tasks waited then
        self.is_blocked = False  # what runs there waits for other tasks, and has given its slot back
        self.is_busy = False
        self.is_isolated = False  # runs a suspect, alone
        self.is_listed = False
        self.is_reopening = False
        self.is_wanted = False  # lent, and asked for
        self.is_unwanted = False  # to leave when it is back
        self.revoked_from = 0  # 0: no revocation under way
        self.talks = False  # says more than results, and so must be listened to: it is not lent
        self.unreturned: set[int] = set()
        self.waits = 0  # how many of the tasks that run there, one inside the other, wait: it is sent nothing but help

    @property
    def is_stuck(self) -> bool:
        """Whether the innermost of the tasks that run there waits, so that nothing happens there."""
        return self.waits > (next(reversed(self.helps.values())) if self.helps else 0)


class Group:
    """The dispatcher of one worker group: `size` lanes that share a ready queue."""

    def __init__(
        self,
        size: int,
        *,
        tasks_per_worker: int | None,
        max_retries: int,
        cpus: int,
        prefetch_tasks: int = limits.PREFETCH_TASKS,
        initializer_failures: int = limits.INITIALIZER_FAILURES,
    ) -> None:
        self.size = size
        self.tasks_per_worker = tasks_per_worker
        self.max_retries = max_retries
        self.cpus = cpus
        self.prefetch_tasks = prefetch_tasks
        self.initializer_failures = initializer_failures
        self.ready: deque[Task] = deque()
        self.placed: dict[Any, deque[Task]] = {}  # what is ready, and goes only to lanes of one place: see core.places
        self.suspects = 0  # how many of `ready` are suspects: each stands behind what was ready when it was charged
        self.away: list[Task] = []  # undecodable so far: the caller sees to it and resubmits or gives up
        self.lanes: list[Lane] = []
        self.open_lanes: deque[Lane] = deque()
        self._deep: dict[
            Lane, None
        ] = {}  # had more than one task in flight when looked at last: all that have are here
        self.busy = 0  # lanes with something in flight that does not wait for other tasks
        self.blocked = 0  # lanes with something in flight that does
        self.has_priorities = False  # a task with another than the usual one has come
        self.holds_devices = False  # of each worker's own: it has no successor, nor gives its slot back, while it lives
        self.most: int | None = None  # as many lanes as could be had, when no more could
        self._stuck_with = 0  # ready tasks, when that was said last
        self.is_elastic = False  # `size` is a number of slots, and goes up and down; lanes beyond it idle
        self.asked = 0  # workers asked for by "start" that have not started yet
        self.failures_in_a_row = 0
        self.is_broken = False
        self.is_closing = False
        self.is_held = False  # what is taken back is not to be sent again: it is being cancelled
        self.spared: frozenset[Task] = frozenset()  # but not these
        self.effects: list[tuple[Any, ...]] = []
        self.story: deque[tuple[object, ...]] = deque(maxlen=64)

    # -- tasks -----------------------------------------------------------------------------------

    def submitted(self, task: Task) -> None:
        if task.state != PENDING:
            raise illegal(task, "be submitted", self.story)
        if task.priority or self.has_priorities:
            self._insert(task)
        else:
            self.ready.append(task)

    def _insert(self, task: Task) -> None:
        """Behind all that are as urgent."""
        self.has_priorities = True
        ready = self.ready
        position = len(ready)
        while position and ready[position - 1].priority < task.priority:
            position -= 1
        ready.insert(position, task)

    def finished(self, lane: Lane, sequence: int, duration_us: int) -> Task | None:
        """The worker reported a result; returns its task, or None if it is not wanted any more."""
        inflight = lane.inflight
        if inflight and inflight[0].sequence == sequence:
            task = inflight.popleft()
        else:
            found = self._find(lane, sequence)
            if found is None:
                lane.unreturned.discard(sequence)
                self._revocation_progress(lane)
                return None
            task = found
            inflight.remove(task)
        lane.bytes_inflight -= task.size_bytes
        lane.finished += 1
        task.profile.add(duration_us)
        if lane.helps:
            self._help_left(lane, task)
        if lane.revoked_from:
            lane.unreturned.discard(sequence)
            self._revocation_progress(lane)
        self._lane_freed(lane)
        if task.state == FINISHED:  # dropped while it ran
            return None
        task.state = lifecycle.ON_FINISH[task.state]
        return task

    def returned(self, lane: Lane, sequences: Iterable[int]) -> None:
        """The worker skipped these, as they were revoked before it claimed them."""
        back = []
        for sequence in sequences:
            lane.unreturned.discard(sequence)
            task = self._find(lane, sequence)
            if task is not None:
                back.append(task)
        self._take_back(lane, back)
        self._revocation_progress(lane)
        self._lane_freed(lane)

    def undecodable(self, lane: Lane, sequence: int) -> Task | None:
        """The worker lacks something to decode the task: it is ready again once the caller has seen to that."""
        task = self._find(lane, sequence)
        lane.unreturned.discard(sequence)
        if task is not None:
            self._take_back(lane, [task])
            if task.state != FINISHED:
                self._remove_from_ready(task)
                self.away.append(task)
            self._lane_freed(lane)
        self._revocation_progress(lane)
        return task if task is not None and task.state != FINISHED else None

    def resubmitted(self, task: Task) -> None:
        """An undecodable task can be decoded now. Nothing happens if it was dropped in the meantime."""
        if self._came_back(task):
            self._put_back([task])

    def gave_up(self, task: Task) -> bool:
        """An undecodable task stays so: it is finished. False if it was dropped in the meantime."""
        if not self._came_back(task):
            return False
        task.state = FINISHED
        return True

    def _came_back(self, task: Task) -> bool:
        if task in self.away:
            self.away.remove(task)
            return True
        if task.state != FINISHED:
            raise illegal(task, "come back", self.story)
        return False

    def dropped(self, unwanted: Callable[[Task], bool]) -> list[Task]:
        """Nobody wants these any more. What has not been claimed is gone at once; what runs is to be interrupted."""
        gone: list[Task] = []
        for queue in (self.ready, self.away):
            kept = [task for task in queue if not unwanted(task)]
            if len(kept) != len(queue):
                gone.extend(task for task in queue if unwanted(task))
                queue.clear()
                queue.extend(kept)
        self.suspects = sum(1 for task in self.ready if task.state == SUSPECT)
        for lane in self.lanes:
            running = [task for task in lane.inflight if task.state != FINISHED and unwanted(task)]
            if running:
                gone.extend(running)
                # From the first on, claimed or not: what is not claimed yet is skipped, and whatever is claimed after
                # it cannot be hit by the interruption that is meant for it.
                first = running[0].sequence
                if not lane.revoked_from or first < lane.revoked_from:
                    self._revoke(lane, first)
                self.effects.append(("interrupt", lane, running))
        for task in gone:
            task.state = lifecycle.ON_DROP.get(task.state, FINISHED)
        return gone

    def cancel_asked(self, task: Task, claimed: int) -> bool | None:
        """Nobody wants this one, unless it has been started; `claimed` is the last word of its lane's page.

        True: it is gone. False: it runs, or has ended. None: ask again when the revocation has settled.
        """
        if task.state == FINISHED:
            return False
        if task.state == ASSIGNED:
            lane: Any = task.runner
            if task.sequence <= claimed:
                return False
            if not lane.revoked_from or task.sequence < lane.revoked_from:
                self._revoke(lane, task.sequence)
            return None
        if task in self.away:
            self.away.remove(task)
        elif task in self.ready:
            self._remove_from_ready(task)
        else:
            return False  # somebody makes it directly
        task.state = lifecycle.ON_DROP[task.state]
        return True

    def cancel_all_asked(self, claimed_of: Callable[[Lane], int]) -> tuple[list[Task], bool]:
        """Nobody wants what has not been started, and no more will be submitted: (what is gone, whether that is all).

        What a worker is about to take, because it idles or starts, counts as started. If it is not all, nothing is sent
        until this is asked again, when the revocations have settled.
        """
        if not self.is_held:
            idle = sum(1 for lane in self.lanes if lane.state in SERVING and not lane.inflight) + self.asked
            self.spared = frozenset(islice(self.ready, idle))
        gone = [task for task in (*self.ready, *self.away) if task not in self.spared]
        spared = [task for task in self.ready if task in self.spared]
        self.ready.clear()
        self.ready.extend(spared)
        self.away.clear()
        self.suspects = sum(task.state == SUSPECT for task in spared)
        for task in gone:
            task.state = lifecycle.ON_DROP[task.state]
        self.is_held = False
        for lane in self.lanes:
            if lane.inflight and lane.state != LENT:
                first = claimed_of(lane) + 1
                if lane.inflight[-1].sequence >= first:
                    self.is_held = True
                    if not lane.revoked_from or first < lane.revoked_from:
                        self._revoke(lane, first)
        if not self.is_held:
            self.spared = frozenset()
        return gone, not self.is_held

    def expired(self, task: Task) -> None:
        """It is running, and has been for too long: it is finished, its worker is to be killed."""
        lane: Any = task.runner
        task.state = lifecycle.ON_DROP[task.state]
        if not lane.revoked_from or task.sequence < lane.revoked_from:
            self._revoke(lane, task.sequence)  # so that nothing else is claimed by then
        self.effects.append(("kill", lane, task))

    def take_all(self) -> list[Task]:
        """Every task that is not finished: for a group that ends."""
        left = [*self.ready, *self.away]
        for lane in self.lanes:
            left.extend(lane.inflight)
            lane.inflight.clear()
            lane.bytes_inflight = 0
            lane.helps.clear()
            lane.is_busy = lane.is_blocked = lane.is_isolated = False
        self.ready.clear()
        self.away.clear()
        self.suspects = 0
        self.busy = self.blocked = 0
        left = [task for task in left if task.state != FINISHED]
        for task in left:
            task.state = FINISHED
        return left

    def may_repeat(self, task: Task) -> bool:
        """Whether a task that has ended may be sent again, and so what it needs must be kept."""
        return False

    @property
    def demand(self) -> tuple[int, int]:
        """(how many slots it holds, how many more it could use)"""
        queued = self._queued
        if not self.holds_devices:
            return self.busy, queued
        # A worker that idles, or comes, has its devices already: as long as it has something to do, they are its own.
        idle = self.asked + sum(1 for lane in self.lanes if lane.state in SERVING and not lane.inflight)
        kept = min(idle, queued)
        return self.busy + kept, queued - kept

    @property
    def has_work(self) -> bool:
        return bool(self._queued or self.away or self.busy or self.blocked)

    @property
    def _queued(self) -> int:
        """How many tasks no worker has yet."""
        return len(self.ready)

    # -- workers ---------------------------------------------------------------------------------

    def refill(self) -> None:
        """Ask for as many workers as are missing; while closing, for as many as the rest of the work can use."""
        if self.is_broken:
            return
        wanted = min(self.size, self._queued) if self.is_closing else self.size
        missing = wanted - self.asked - self._usable()
        if self.holds_devices:  # an idle one would keep others from its devices
            missing -= sum(1 for lane in self.lanes if lane.state == RETIRING)
            idle = sum(1 for lane in self.lanes if lane.state in SERVING and not lane.inflight)
            missing = min(missing, self._queued - self.asked - idle)
        else:  # who runs its last task has a successor already; who has done it must be gone before there is one more
            missing -= sum(1 for lane in self.lanes if lane.state == RETIRING and not lane.inflight)
        if self.most is not None:
            missing = min(missing, self.most - self.asked - self._serving())
        if missing > 0:
            self.asked += missing
            self.effects.append(("start", missing))

    def _serving(self) -> int:
        return sum(1 for lane in self.lanes if lane.state in SERVING)

    def _usable(self) -> int:
        """A lane that is blocked has another in its place until it goes on."""
        return sum(1 for lane in self.lanes if lane.state in SERVING and not lane.is_blocked)

    def worker_started(self, worker: Any, place: Any = None) -> Lane:
        self.asked = max(0, self.asked - 1)
        lane = Lane(worker, self.tasks_per_worker, place)
        self.lanes.append(lane)
        return lane

    def worker_ready(self, lane: Lane) -> None:
        if lane.state == DEAD:
            raise InternalError(f"worker {lane.worker} is ready after its death; what happened before: {self.story}")
        self.failures_in_a_row = 0
        if lane.state == STARTING:
            lane.state = OPEN
            self._list(lane)

    def worker_died(self, lane: Lane, claimed: int, is_charged: bool = True) -> None:
        """The worker is gone and its stream was read to the end; `claimed` is the last word of its page.

        Without `is_charged` it was no fault of what ran there: the zygote died, or the worker never came to be.
        """
        was = lane.state
        if was == DEAD:
            raise InternalError(f"worker {lane.worker} died twice; what happened before: {self.story}")
        lane.state = DEAD
        self.story.append(("worker_died", lane.worker, claimed, len(lane.inflight)))
        if lane in self.lanes:
            self.lanes.remove(lane)
        if lane.is_listed:
            self.open_lanes.remove(lane)
            lane.is_listed = False
        held = list(lane.inflight)
        if lane.is_busy:
            lane.is_busy = False
            self.busy -= 1
        if lane.is_blocked:
            lane.is_blocked = False
            self.blocked -= 1
        lane.inflight.clear()
        lane.helps.clear()
        lane.bytes_inflight = 0
        lane.revoked_from = 0
        lane.is_isolated = False
        unstarted = []
        for task in held:
            if task.state == FINISHED:
                continue
            # Below the last one claimed there are only those that waited for it, or for others.
            if task.sequence <= claimed and (is_charged or not self._retries_of(task)):
                self._charge(task, lane)  # without retries "at most once" holds, whoever is to blame
            else:
                unstarted.append(task)
        self._put_back(unstarted)
        if was == STARTING and is_charged:
            self.initializer_failed()
        if self.is_broken and unstarted:  # what came back will not run anywhere
            self.effects.append(("broken",))
        self.refill()
        self._look_if_stuck()

    def initializer_failed(self) -> None:
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= self.initializer_failures and not self.is_broken:
            self.is_broken = True
            self.effects.append(("broken",))

    def refused(self) -> None:
        """A worker in `lanes` could not be started: the group goes on with the others; without any, it is broken."""
        others = self._serving() - 1
        self.most = others + self.asked
        self._shrink(self.most)

    def start_refused(self, count: int) -> None:
        """So many of the workers that "start" asked for will not come."""
        self.asked = max(0, self.asked - count)
        self.most = self.asked + self._serving()
        self._shrink(self.most)
        self._look_if_stuck()

    def _shrink(self, size: int) -> None:
        self.size = max(0, min(self.size, size))
        if size <= 0 and not self.is_broken:  # `self.size` may be 0 for a while, without harm, if it is elastic
            self.is_broken = True
            self.effects.append(("broken",))

    def lane_reopened(self, lane: Lane) -> None:
        """The caller has cleared the revocation word: the lane may be given tasks again."""
        if not lane.is_reopening:
            return  # revoked anew since
        lane.is_reopening = False
        lane.revoked_from = 0
        self._lane_freed(lane)

    def resized(self, size: int) -> None:
        self.size = size
        excess = self._usable() - size
        for lane in sorted(self.lanes, key=lambda lane: len(lane.inflight)):
            if excess <= 0:
                break
            if lane.state in (OPEN, STARTING):
                self._retire(lane)
                excess -= 1
            elif lane.state == LENT and not lane.is_wanted:
                lane.is_wanted = True
                self.effects.append(("reclaim", lane))
        self.refill()

    def lane_unwanted(self, lane: Lane) -> None:
        """Its worker is to be elsewhere: it does what it has, and another one takes its place."""
        if lane.state in (OPEN, STARTING):
            self._retire(lane)
            self.refill()
        elif lane.state == LENT:
            lane.is_unwanted = True
            if not lane.is_wanted:
                lane.is_wanted = True
                self.effects.append(("reclaim", lane))

    def slots_lost(self) -> None:
        """`size` has become smaller: whoever idles with devices leaves, so that others get them."""
        if self.holds_devices:
            self._retire_idle()

    def closing(self) -> None:
        """No more tasks will come; workers leave once nothing is left to do."""
        self.is_closing = True
        self._want_lanes()
        self._retire_idle()

    # -- direct calls ----------------------------------------------------------------------------

    def lend_idle(self) -> list[Lane]:
        """Nothing is ready and nothing runs: threads that make one call after another may use the lanes themselves."""
        if self.has_work or self.is_closing or self.tasks_per_worker is not None:
            return []
        lent = [lane for lane in islice(self.open_lanes, self.size) if not lane.talks]
        for lane in lent:
            self._unlist(lane)
            lane.state = LENT
            lane.is_wanted = False
        return lent

    def lane_came_back(self, lane: Lane) -> None:
        """Nobody talks to it directly any more."""
        if lane.state == LENT:
            lane.state = OPEN
            if lane.is_unwanted:
                self._retire(lane)
                self.refill()
                return
            if self._usable() > self.size and not self.is_elastic:  # resized in the meantime
                self._retire(lane)
                return
            self._list(lane)
            if self.is_closing:
                self._retire_idle()

    def lane_given_up(self, lane: Lane) -> None:
        """The worker is about to be killed: nothing more for it, and another in its place."""
        if lane.state == OPEN:
            self._unlist(lane)
            lane.state = RETIRING
            self.refill()

    def taken_over(self, lane: Lane, task: Task) -> None:
        """A direct call turned out unusual: its task, already on the worker, is one like any other from now on."""
        task.state = lifecycle.ON_ASSIGN[task.state]
        task.runner = lane
        self._unlist(lane)
        lane.inflight.append(task)
        self._deep[lane] = None
        lane.bytes_inflight += task.size_bytes
        lane.is_busy = True
        self.busy += 1

    def _want_lanes(self) -> None:
        for lane in self.lanes:
            if lane.state == LENT and not lane.is_wanted:
                lane.is_wanted = True
                self.effects.append(("reclaim", lane))

    # -- tasks that wait for tasks ---------------------------------------------------------------

    def lane_waits(self, lane: Lane) -> None:
        """What runs there waits for other tasks, and has returned what was queued behind it. Offer it help, or say that
        it is blocked."""
        lane.waits += 1
        self._unlist(lane)

    def lane_blocked(self, lane: Lane) -> None:
        """It waits, and there is nothing that it could do meanwhile: its slot is free."""
        if self.is_elastic and lane.is_stuck:
            self._block(lane)
            self.refill()
            self._look_if_stuck()

    def lane_continues(self, lane: Lane, inside: int = 0) -> None:
        """It has what it waited for, and takes a slot, be there one or not: the next one that becomes free is not given
        away then.

        `inside`: so many that began to wait there later still do. What has waited goes on after them, not now.
        """
        lane.waits -= 1
        self.most = None  # there may be room again
        self._stuck_with = 0
        for help, waits in lane.helps.items():
            if waits > lane.waits - inside:
                lane.helps[help] = waits - 1
        if not inside:
            self._unblock(lane)
        self._lane_freed(lane)

    def _look_if_stuck(self) -> None:
        """Whether all workers wait, no further one is to be had, and there is more to do: for ever."""
        if self.most is None or not self.is_elastic or self.asked or self._queued == self._stuck_with:
            return
        if all(lane.is_blocked for lane in self.lanes):
            self._stuck_with = self._queued  # once; who waits for what only changes with that
            self.effects.append(("stuck",))

    def _block(self, lane: Lane) -> None:
        if self.is_elastic and not self.holds_devices and lane.inflight and not lane.is_blocked:
            lane.is_blocked = True
            self.blocked += 1
            if lane.is_busy:
                lane.is_busy = False
                self.busy -= 1

    def _unblock(self, lane: Lane) -> None:
        if lane.is_blocked:
            lane.is_blocked = False
            self.blocked -= 1
            if lane.inflight:
                lane.is_busy = True
                self.busy += 1

    def _help_left(self, lane: Lane, task: Task) -> None:
        """Done or not, if it was the last help: who waits there may be waiting for something else."""
        if task in lane.helps:
            del lane.helps[task]
            if lane.is_stuck:
                self._block(lane)

    def help_wanted(self, lane: Lane, task: Task) -> bool:
        """What runs on the lane waits for this task: it may run there at once, if no worker has it yet.

        A suspect may not, nor anything inside a suspect: the wrong one would be blamed for a death.
        """
        if task.state != PENDING or lane.state not in (OPEN, RETIRING) or lane.is_isolated or lane.revoked_from:
            return False
        if (lane.is_blocked and self.busy >= self.size) or self.is_held or not self._take_from_ready(task):
            return False
        self._unblock(lane)
        task.state = lifecycle.ON_ASSIGN[task.state]
        task.sequence = lane.next_sequence
        task.runner = lane
        lane.next_sequence += 1
        lane.inflight.append(task)
        self._deep[lane] = None
        lane.helps[task] = lane.waits
        lane.bytes_inflight += task.size_bytes
        self.effects.append(("help", lane, task))
        return True

    def _take_from_ready(self, task: Task) -> bool:
        """Looks at the end first: what a task waits for is mostly what it has just submitted."""
        ready = self.ready
        for position in range(len(ready) - 1, max(-1, len(ready) - 1 - LOOK_BACK_TASKS), -1):
            if ready[position] is task:
                del ready[position]
                return True
        try:
            ready.remove(task)
        except ValueError:
            return False  # it waits for values of its own, or is on its way back
        return True

    # -- revocation ------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called every STALL_SECONDS while `needs_tick`: take back what is stuck behind a long task."""
        deep = self._look_at_deep()
        has_idle = bool(deep) and self.busy < self.size
        has_idle = has_idle and any(lane.state == OPEN and not lane.inflight for lane in self.lanes)
        for lane in deep:
            queued = len(lane.inflight) - 1
            if lane.finished == lane.finished_at_tick:
                first = lane.inflight[0].sequence + 1
                if not lane.revoked_from or first < lane.revoked_from:  # it was left some, and those are stuck now
                    self._revoke(lane, first)
            elif has_idle and not self.ready and not lane.revoked_from and lane.inflight[-1].place is None:
                keep = (queued + 1) // 2
                self._revoke(lane, lane.inflight[keep].sequence)
            lane.finished_at_tick = lane.finished

    @property
    def needs_tick(self) -> bool:
        return bool(self._deep) and bool(self._look_at_deep())

    def _look_at_deep(self) -> list[Lane]:
        """Those that have something behind what they run. (A cluster may have thousands that have not.)"""
        for lane in [lane for lane in self._deep if len(lane.inflight) < 2]:
            del self._deep[lane]
        return [lane for lane in self._deep if not lane.waits]

    def revocation_settled(self, lane: Lane, claimed: int) -> None:
        """At least the settling time after "revoke": what the worker has not claimed is ours again."""
        first = max(lane.revoked_from, claimed + 1)
        if not lane.revoked_from or lane.state == DEAD:
            return
        self._take_back(lane, [task for task in lane.inflight if task.sequence >= first])
        self._lane_freed(lane)

    def _revoke(self, lane: Lane, first: int) -> None:
        """Also to lower the word of a revocation under way: what that one took back may still come as returned."""
        if not lane.revoked_from:
            lane.unreturned = set()
        lane.is_reopening = False  # an "unrevoke" that is not carried out yet stands before this "revoke"
        lane.revoked_from = first
        lane.unreturned.update(task.sequence for task in lane.inflight if task.sequence >= first)
        if lane.is_listed:
            self.open_lanes.remove(lane)
            lane.is_listed = False
        self.story.append(("revoke", lane.worker, first))
        self.effects.append(("revoke", lane, first))

    def _revocation_progress(self, lane: Lane) -> None:
        if lane.revoked_from and not lane.unreturned and not lane.is_reopening:
            lane.is_reopening = True
            self.effects.append(("unrevoke", lane))

    def _take_back(self, lane: Lane, back: list[Task]) -> None:
        if not back:
            return
        for task in back:
            lane.inflight.remove(task)
            lane.bytes_inflight -= task.size_bytes
            if task in lane.helps:
                self._help_left(lane, task)
            elif lane.left is not None:  # help does not count: it is part of what it helps
                lane.left += 1
        self._put_back([task for task in back if task.state != FINISHED])

    def _put_back(self, tasks: list[Task]) -> None:
        """To the front of the queue, in this order. What was charged before stays a suspect."""
        for task in tasks:
            if task.state == ASSIGNED:
                if task.attempts:
                    task.state = lifecycle.ON_CHARGE[task.state]
                else:
                    task.state = lifecycle.ON_TAKE_BACK[task.state]
            self.suspects += task.state == SUSPECT
        self.ready.extendleft(reversed(tasks))

    def _remove_from_ready(self, task: Task) -> None:
        self.ready.remove(task)
        self.suspects -= task.state == SUSPECT

    # -- assignment ------------------------------------------------------------------------------

    def pump(self) -> None:
        """Give ready tasks to lanes with room."""
        if self.is_held:
            return
        ready = self.ready
        while ready and self.open_lanes:
            if self.suspects and ready[0].state == SUSPECT:
                if self._isolate():
                    continue
                break  # it waits for a lane to itself; until then no lane is filled up with what stands behind it
            lane = self.open_lanes[0]
            if not lane.inflight and self.busy >= self.size:
                busy = next((lane for lane in self.open_lanes if lane.inflight), None)
                if busy is None:
                    break
                lane = busy  # the idle one has to wait for a slot; this one may have more queued
            held = len(lane.inflight)
            room = self._credit(lane, ready[0]) - held
            if room <= 0:
                self._unlist(lane)
                continue
            # An idle lane gets its share among the idle: those before it have theirs, and stand behind it again.
            sharing = len(self.open_lanes) if held else min(len(self.open_lanes), self.size - self.busy)
            self._assign(lane, min(room, len(ready) // sharing or 1), ready)
        if ready and (self.blocked or self.holds_devices):
            self.refill()
            self._look_if_stuck()
        if self.holds_devices:
            self._retire_surplus()
        if ready or self.is_closing:
            self._want_lanes()
        if self.is_closing:
            self._retire_idle()
            self.refill()

    def _credit(self, lane: Lane, task: Task) -> int:
        if self.size > self.cpus:
            return 1
        profile = task.profile
        if profile.samples < limits.TRUSTED_SAMPLES:
            return 1
        depth = int(PREFETCH_US / profile.slow_us) if profile.slow_us > 1.0 else self.prefetch_tasks
        return max(1, min(depth, self.prefetch_tasks))

    def _assign(self, lane: Lane, count: int, ready: deque[Task]) -> None:
        batch: list[Task] = []
        if not lane.is_busy:
            lane.is_busy = True
            self.busy += 1
        if lane.left is not None:
            count = min(count, lane.left)
        if self.suspects and not lane.is_isolated and ready is self.ready:
            count = self._unsuspected(count)
        sequence = lane.next_sequence
        size = lane.bytes_inflight
        while len(batch) < count and ready:
            task = ready[0]
            if size and size + task.size_bytes > limits.PREFETCH_BYTES:
                break
            ready.popleft()
            size += task.size_bytes
            task.state = lifecycle.ON_ASSIGN[task.state]
            task.sequence = sequence
            task.runner = lane
            sequence += 1
            batch.append(task)
        if not batch:  # the next one is too large to wait behind what is there
            self._unlist(lane)
            return
        lane.next_sequence = sequence
        lane.bytes_inflight = size
        lane.inflight.extend(batch)
        if len(lane.inflight) > 1:
            self._deep[lane] = None
        self.effects.append(("send", lane, batch))
        if lane.left is not None:
            lane.left -= len(batch)
            if lane.left <= 0:
                self._retire(lane)
                self.refill()
                return
        # Whoever got a full share waits; a lane with room left over goes to the back.
        self._unlist(lane)
        if lane.is_isolated:
            return
        if len(lane.inflight) * 2 <= self._credit(lane, batch[0]) and size < limits.PREFETCH_BYTES:
            self._list(lane)

    def _isolate(self) -> bool:
        """A charged task is alone on its lane: nothing is claimed behind it that its death could harm."""
        if self.busy >= self.size:
            return False
        for lane in self.open_lanes:
            if not lane.inflight:
                lane.is_isolated = True
                self.suspects -= 1
                self._assign(lane, 1, self.ready)
                return True
        return False

    def _unsuspected(self, count: int) -> int:
        """How many of the next `count` ready tasks stand before the first suspect."""
        for position, task in enumerate(self.ready):
            if position >= count or task.state == SUSPECT:
                return position
        return count

    def _charge(self, task: Task, lane: Lane) -> None:
        task.attempts += 1
        if task.attempts > self._retries_of(task):
            task.state = lifecycle.ON_FINISH[task.state]
            self.effects.append(("failed", task, lane))
        else:
            task.state = lifecycle.ON_CHARGE[task.state]
            self.ready.append(task)
            self.suspects += 1

    def _retries_of(self, task: Task) -> int:
        return self.max_retries if task.max_retries is None else task.max_retries

    def _lane_freed(self, lane: Lane) -> None:
        """Something left the lane: it may take more, or leave."""
        if not lane.inflight and lane.is_busy:
            lane.is_busy = lane.is_isolated = False
            self.busy -= 1
        if lane.state != OPEN or lane.is_listed or lane.revoked_from or lane.waits:
            return
        held = len(lane.inflight)
        if not held:
            lane.is_listed = True
            self.open_lanes.appendleft(lane)
        elif held * 2 <= self.prefetch_tasks and not lane.is_isolated:  # the most that the credit can be
            if held * 2 <= self._credit(lane, lane.inflight[-1]):
                self._list(lane)

    def _list(self, lane: Lane) -> None:
        if not lane.is_listed and lane.state == OPEN and not lane.revoked_from and not lane.waits:
            lane.is_listed = True
            if lane.inflight:
                self.open_lanes.append(lane)
            else:
                self.open_lanes.appendleft(lane)

    def _unlist(self, lane: Lane) -> None:
        if lane.is_listed:
            lane.is_listed = False
            if self.open_lanes[0] is lane:
                self.open_lanes.popleft()
            else:
                self.open_lanes.remove(lane)

    def _retire(self, lane: Lane) -> None:
        self._unlist(lane)
        lane.state = RETIRING
        self.effects.append(("retire", lane))

    def _retire_idle(self) -> None:
        if self._queued or self.away:
            return
        for lane in self.lanes:
            if lane.state in (OPEN, STARTING) and not lane.inflight:
                self._retire(lane)

    def _retire_surplus(self) -> None:
        """Lanes for which there is no task: they have devices that others could use."""
        idle = [lane for lane in self.lanes if lane.state in (OPEN, STARTING) and not lane.inflight]
        for lane in sorted(idle, key=lambda lane: -lane.state)[self._queued :]:
            self._retire(lane)

    def _find(self, lane: Lane, sequence: int) -> Task | None:
        for task in lane.inflight:
            if task.sequence == sequence:
                return task
        return None

    # -- checking --------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise if an invariant of this module does not hold. For tests: it walks everything."""
        seen: set[int] = set()
        places: list[Iterable[Task]] = [self.ready, self.away, *self.placed.values()]
        places += [lane.inflight for lane in self.lanes]
        for place in places:
            for task in place:
                if id(task) in seen:
                    raise illegal(task, "be in two places", self.story)
                seen.add(id(task))
        busy = 0
        for lane in self.lanes:
            busy += bool(lane.inflight) and not lane.is_blocked
            assert not (lane.waits and lane.is_listed)
            assert lane.is_stuck or not lane.is_blocked
            assert lane.waits >= 0 and all(task in lane.inflight for task in lane.helps)
            sequences = [task.sequence for task in lane.inflight]
            assert sequences == sorted(sequences), sequences
            assert lane.bytes_inflight == sum(task.size_bytes for task in lane.inflight)
            assert not (lane.is_listed and (lane.revoked_from or lane.state != OPEN))
            assert not lane.is_isolated or len(lane.inflight) == 1
            if lane.left is not None and self.tasks_per_worker is not None:
                served = len(lane.inflight) - len(lane.helps)
                assert lane.left >= 0 and served <= self.tasks_per_worker - lane.left
        assert self.suspects == sum(task.state == SUSPECT for task in self.ready)
        assert self.blocked == sum(lane.is_blocked for lane in self.lanes)
        assert busy == self.busy, (busy, self.busy)
        assert busy <= self.size or self.is_closing or self.is_elastic, (busy, self.size)
        assert len(self.open_lanes) == sum(lane.is_listed for lane in self.lanes)
