"""Tasks that should run where what they need is. Pure: as `core.dispatch`, of which this is a group with one queue more
for each *place*, that is, machine.

A task with a `place` goes to lanes of that place only. So that nobody idles for long beside it: while a lane of another
place has nothing to do, or the place has no lane at all, and the task at the head of the queue has stood there from one
tick to the next ("delay scheduling": Zaharia et al., EuroSys 2010), it is given up:

    ("gather", task, place)    bring there what it needs, give it that place, and report with resubmitted() or gave_up()

The same for a task whose worker died while it ran: it is to run alone, on whatever lane is free first, so what it needs
is to be where it can go anywhere from (`place` None).
"""

from __future__ import annotations

from collections import deque

from scaleout._runtime.core import tasks as lifecycle
from scaleout._runtime.core.dispatch import OPEN, SERVING, Group, Lane
from scaleout._runtime.core.tasks import PENDING, SUSPECT, Task, illegal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


class PlacedGroup(Group):
    """See the module's docstring. Tasks without a place are dispatched as in any other group.

    Invariants, besides the group's: a task in `placed[place]` has that place, and no queue in `placed` is empty.
    """

    def __init__(self, size: int, **arguments: Any) -> None:
        super().__init__(size, **arguments)
        self._stood: dict[Any, Task] = {}  # by place, what was at the head of its queue at the last tick
        self._gathered: set[Task] = set()  # of `away`, those that wait for what they need to come here
        self._is_placed_first = False

    # -- tasks -----------------------------------------------------------------------------------

    def submitted(self, task: Task) -> None:
        if task.place is None:
            super().submitted(task)
        elif task.state != PENDING:
            raise illegal(task, "be submitted", self.story)
        else:
            queue = self.placed.setdefault(task.place, deque())
            position = len(queue)
            while position and queue[position - 1].priority < task.priority:
                position -= 1
            queue.insert(position, task)

    def place_lost(self, place: Any) -> list[Task]:
        """What lies there only is gone: these are not ready any more, and nobody else knows of them."""
        self._stood.pop(place, None)
        return list(self.placed.pop(place, ()))

    def dropped(self, unwanted: Callable[[Task], bool]) -> list[Task]:
        gone = [task for queue in self.placed.values() for task in queue if unwanted(task)]
        for task in gone:
            self._remove_from_ready(task)
            task.state = lifecycle.ON_DROP[task.state]
        gone += super().dropped(unwanted)
        self._gathered.intersection_update(self.away)
        return gone

    def cancel_asked(self, task: Task, claimed: int) -> bool | None:
        if task.state == PENDING and task in self.placed.get(task.place, ()):
            self._remove_from_ready(task)
            task.state = lifecycle.ON_DROP[task.state]
            return True
        return super().cancel_asked(task, claimed)

    def cancel_all_asked(self, claimed_of: Callable[[Lane], int]) -> tuple[list[Task], bool]:
        placed = self._drop_placed()
        gone, is_all = super().cancel_all_asked(claimed_of)
        return placed + gone, is_all

    def take_all(self) -> list[Task]:
        return self._drop_placed() + super().take_all()

    def _drop_placed(self) -> list[Task]:
        placed = [task for queue in self.placed.values() for task in queue]
        self.placed.clear()
        self._stood.clear()
        for task in placed:
            task.state = lifecycle.ON_DROP[task.state]
        return placed

    @property
    def _queued(self) -> int:
        return len(self.ready) + sum(map(len, self.placed.values()))

    def help_wanted(self, lane: Lane, task: Task) -> bool:
        return task.place in (None, lane.place) and super().help_wanted(lane, task)

    def _take_from_ready(self, task: Task) -> bool:
        if task.place is None:
            return super()._take_from_ready(task)
        if task not in self.placed.get(task.place, ()):
            return False
        self._remove_from_ready(task)
        return True

    def _remove_from_ready(self, task: Task) -> None:
        if task.place is None:
            super()._remove_from_ready(task)
        else:
            queue = self.placed[task.place]
            queue.remove(task)
            self._drop_if_empty(task.place)

    def _drop_if_empty(self, place: Any) -> None:
        if not self.placed[place]:
            del self.placed[place]
            self._stood.pop(place, None)

    def _put_back(self, tasks: list[Task]) -> None:
        super()._put_back([task for task in tasks if task.place is None])
        for task in reversed(tasks):
            if task.place is not None:
                task.state = lifecycle.ON_TAKE_BACK.get(task.state, task.state)
                self.placed.setdefault(task.place, deque()).appendleft(task)

    def _charge(self, task: Task, lane: Lane) -> None:
        super()._charge(task, lane)
        if task.state == SUSPECT and task.place is not None:
            self.ready.remove(task)
            self.suspects -= 1
            self._gather(task, None)

    # -- assignment ------------------------------------------------------------------------------

    def pump(self) -> None:
        """Whoever is served first takes what the other would take too: that changes with each time that one is."""
        before = len(self.effects)
        if self.placed and self._is_placed_first:
            self._pump_placed()
        super().pump()
        if self.placed:
            self._pump_placed()
            if self.blocked or self.holds_devices:
                self.refill()
                self._look_if_stuck()
        if len(self.effects) > before:
            self._is_placed_first = not self._is_placed_first

    def _pump_placed(self) -> None:
        if self.is_held or (self.suspects and self.ready[0].state == SUSPECT):
            return  # that one needs a lane for itself, and none would ever be empty
        for place in list(self.placed):
            queue = self.placed[place]
            while queue and self._serve_placed(place, queue):
                pass
            self._drop_if_empty(place)

    def _serve_placed(self, place: Any, queue: deque[Task]) -> bool:
        """Whether a lane of the place has taken something."""
        lanes = [lane for lane in self.open_lanes if lane.place is place and (lane.inflight or self.busy < self.size)]
        for lane in lanes:
            room = self._credit(lane, queue[0]) - len(lane.inflight)
            if room > 0:
                before = len(queue)
                self._assign(lane, min(room, len(queue) // len(lanes) or 1), queue)
                if len(queue) < before:  # else the first is too large to stand behind what is there
                    return True
        return False

    # -- giving a place up -----------------------------------------------------------------------

    def tick(self) -> None:
        super().tick()
        serving = [lane for lane in self.lanes if lane.state in SERVING]
        idle = [lane for lane in serving if lane.state == OPEN and not lane.inflight and not lane.waits]
        idle = idle[len(self._gathered) : max(0, self.size - self.busy)]
        for place in list(self.placed):
            head = self.placed[place][0]
            if self._stood.get(place) is not head:
                self._stood[place] = head
                continue
            if not any(lane.place is place for lane in serving):
                for number, task in enumerate(self.place_lost(place) if serving else ()):
                    self._gather(task, serving[number % len(serving)].place)
                continue
            others = [lane for lane in idle if lane.place is not place]
            if others:
                idle.remove(others[0])
                del self._stood[place]
                self._remove_from_ready(head)
                self._gather(head, others[0].place)

    @property
    def needs_tick(self) -> bool:
        return bool(self.placed) or super().needs_tick

    def _gather(self, task: Task, place: Any) -> None:
        task.place = None
        self.away.append(task)
        self._gathered.add(task)
        self.effects.append(("gather", task, place))

    def _came_back(self, task: Task) -> bool:
        self._gathered.discard(task)
        return super()._came_back(task)

    # -- checking --------------------------------------------------------------------------------

    def validate(self) -> None:
        super().validate()
        assert all(self.placed.values()), "an empty queue"
        for place, queue in self.placed.items():
            assert all(task.place is place and task.state == PENDING for task in queue)
        assert self._gathered <= set(self.away)
        runs: Iterable[tuple[Lane, Task]] = ((lane, task) for lane in self.lanes for task in lane.inflight)
        assert all(task.place in (None, lane.place) for lane, task in runs)
