"""Tasks that are to run where what they need is: stories, and the dispatcher's model with places."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from test_dispatch import make_task, short_profile
from test_waiting import Waiting

from scaleout._runtime.core.dispatch import Group, Lane
from scaleout._runtime.core.places import PlacedGroup
from scaleout._runtime.core.tasks import FINISHED, PENDING, Profile, Task


class Story:
    """A group with a lane for each of these places."""

    def __init__(self, *places: str, max_retries: int = 3) -> None:
        self.group = PlacedGroup(len(places), tasks_per_worker=None, max_retries=max_retries, cpus=len(places))
        self.lanes = [self.group.worker_started(number, place) for number, place in enumerate(places)]
        for lane in self.lanes:
            self.group.worker_ready(lane)

    def submit(self, *tasks: Task) -> list[Any]:
        for task in tasks:
            self.group.submitted(task)
        return self.pump()

    def pump(self) -> list[Any]:
        self.group.pump()
        return self.effects()

    def tick(self) -> list[Any]:
        self.group.tick()
        return self.effects()

    def effects(self) -> list[Any]:
        self.group.validate()
        effects, self.group.effects = self.group.effects, []
        return [tuple(shown(part) for part in effect) for effect in effects]


def shown(part: Any) -> Any:
    if isinstance(part, Lane):
        return part.place
    if isinstance(part, Task):
        return part.index
    return [task.index for task in part] if isinstance(part, list) else part


def placed(index: int, place: str | None, profile: Profile | None = None) -> Task:
    task = make_task(index, profile)
    task.place = place
    return task


def test_a_task_goes_where_what_it_needs_is() -> None:
    story = Story("a", "b")
    assert story.submit(placed(0, "b")) == [("send", "b", [0])]
    assert story.submit(placed(1, "b"), placed(2, None)) == [("send", "a", [2])]
    story.group.finished(story.lanes[1], 1, 1)
    assert story.pump() == [("send", "b", [1])]


def test_those_without_a_place_do_not_starve_those_with_one_nor_they_them() -> None:
    story = Story("a")
    for index in range(0, 12, 2):
        story.group.submitted(placed(index, "a"))
        story.group.submitted(placed(index + 1, None))
    order = []
    for sequence in range(1, 13):
        ((_, _, sent),) = story.pump()
        order += sent
        story.group.finished(story.lanes[0], sequence, 1000)
    assert sorted(order) == list(range(12))
    assert {index % 2 for index in order[:3]} == {0, 1}


def test_who_stands_while_another_place_idles_is_gathered_after_a_whole_tick() -> None:
    story = Story("a", "b")
    tasks = [placed(index, "a") for index in range(3)]
    assert story.submit(*tasks) == [("send", "a", [0])]
    assert story.tick() == []
    assert story.tick() == [("gather", 1, "b")]
    assert story.tick() == story.tick() == []  # one for each lane that idles
    assert tasks[1].place is None
    tasks[1].place = "b"
    story.group.resubmitted(tasks[1])
    assert story.pump() == [("send", "b", [1])]
    story.group.finished(story.lanes[0], 1, 1)
    assert story.pump() == [("send", "a", [2])]


def test_nobody_is_gathered_where_nobody_idles_unless_the_place_has_no_lane() -> None:
    story = Story("a", "b")
    story.submit(placed(0, "a"), placed(1, None), placed(2, "a"), placed(3, "c"))
    assert story.tick() == []
    assert story.tick() == [("gather", 3, "a")]


def test_a_lost_place() -> None:
    story = Story("a", "b")
    tasks = [placed(index, "a") for index in range(3)]
    story.submit(*tasks)
    story.group.worker_died(story.lanes[0], 1, is_charged=False)
    assert story.effects() == [("start", 1)]
    assert story.group.place_lost("a") == tasks
    assert [task.state for task in tasks] == [PENDING] * 3 and not story.group.has_work


def test_who_is_charged_runs_alone_anywhere() -> None:
    story = Story("a", "b")
    task = placed(0, "a")
    story.submit(task)
    story.group.worker_died(story.lanes[0], 1)
    assert story.effects() == [("gather", 0, None), ("start", 1)]
    assert task.place is None
    story.group.resubmitted(task)
    assert story.pump() == [("send", "b", [0])]
    assert story.lanes[1].is_isolated


def test_help_only_from_where_it_can_run() -> None:
    story = Story("a", "b")
    story.group.is_elastic = True
    story.submit(placed(0, None), placed(1, None))
    story.submit(placed(2, "a"))
    waits, other = story.lanes[1], story.lanes[0]
    assert (waits.place, other.place) == ("b", "a")
    task = story.group.placed["a"][0]
    story.group.lane_waits(waits)
    assert not story.group.help_wanted(waits, task)
    story.group.lane_waits(other)
    assert story.group.help_wanted(other, task)
    assert story.effects() == [("help", "a", 2)]


def test_cancelling_and_dropping() -> None:
    story = Story("a", "b")
    short = short_profile()
    tasks = [placed(index, "a", short) for index in range(4)]
    story.submit(placed(9, "a"), placed(8, "b"))
    for task in tasks:
        story.group.submitted(task)
    assert story.group.cancel_asked(tasks[1], 0) is True
    assert story.group.dropped(lambda task: task is tasks[2]) == [tasks[2]]
    assert {*story.group.take_all()} >= {tasks[0], tasks[3]}
    assert all(task.state == FINISHED for task in tasks)
    assert not story.group.has_work


def test_priorities_hold_within_a_place() -> None:
    story = Story("a")
    story.submit(placed(0, "a"))
    urgent = placed(3, "a")
    urgent.priority = 1
    story.submit(placed(1, "a"), placed(2, "a"), urgent)
    assert [task.index for task in story.group.placed["a"]] == [3, 1, 2]


# -- the model --------------------------------------------------------------------------------------


class Placed(Waiting):
    """Workers are on one of two machines, and some tasks can only run on one."""

    PLACES = ("a", "b")

    group: PlacedGroup

    def new_group(self, size: int, **arguments: Any) -> Group:
        self.gathering: list[tuple[Task, Any]] = []
        self.turn = 0
        return PlacedGroup(size, **arguments)

    def new_place(self) -> Any:
        self.turn += 1
        return self.PLACES[self.turn % 2]

    def place(self, task: Task) -> None:
        task.place = (None, "a", "b", "a")[task.index % 4]

    def do_gather(self, task: Task, place: Any) -> None:
        self.gathering.append((task, place))

    def do_send(self, lane: Lane, tasks: list[Task]) -> None:
        assert all(task.place in (None, lane.place) for task in tasks)
        super().do_send(lane, tasks)

    def do_help(self, lane: Lane, task: Task) -> None:
        assert task.place in (None, lane.place)
        super().do_help(lane, task)

    @precondition(lambda self: self.gathering)
    @rule(data=st.data(), is_there=st.booleans())
    def it_is_gathered(self, data: st.DataObject, is_there: bool) -> None:
        task, place = data.draw(st.sampled_from(self.gathering))
        self.gathering.remove((task, place))
        if is_there:
            task.place = place
            self.group.resubmitted(task)
        elif self.group.gave_up(task):
            self.end(task)
        self.settle()

    @rule(place=st.sampled_from(PLACES))
    def machine_dies(self, place: str) -> None:
        for worker in list(self.workers):
            if worker.lane.place == place:
                self.bury(worker, is_charged=False)
        other = "b" if place == "a" else "a"
        for task in self.group.place_lost(place):
            task.place = None if task.index % 3 else other  # it was made again there
            self.group.submitted(task)
        self.settle()

    def heal(self) -> None:
        super().heal()
        for task, place in self.gathering:
            task.place = place
            self.group.resubmitted(task)
        self.gathering.clear()


TestPlaced = Placed.TestCase
TestPlaced.settings = settings(max_examples=250, stateful_step_count=80, deadline=None)
