"""The dispatcher against stories, against a dumb model under random events, and its control page protocol against all
interleavings."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleout._runtime.base import limits
from scaleout._runtime.core.dispatch import DEAD, LENT, OPEN, RETIRING, SERVING, Group, Lane
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, PENDING, SUSPECT, Profile, Task
from scaleout.errors import InternalError

NOTHING_REVOKED = 1 << 62


def make_task(index: int, profile: Profile | None = None, size_bytes: int = 10, sink: object = None) -> Task:
    return Task(None, None, 0, b"x" * size_bytes, (), None, sink, index, profile or Profile())


def short_profile() -> Profile:
    """Of a function that is known to be short, so that it is prefetched."""
    profile = Profile()
    for _ in range(5):
        profile.add(1)
    return profile


class Story:
    """A group and the workers it asked for, named 0, 1, 2 in the order of their start. Effects are carried out on
    paper: what was sent, revoked, retired is looked up in the lists here."""

    def __init__(self, size: int, **arguments: Any) -> None:
        arguments = {"tasks_per_worker": None, "max_retries": 3, "cpus": 2, **arguments}
        self.group = Group(size, **arguments)
        self.lanes: list[Lane] = []
        self.log: list[tuple[Any, ...]] = []
        self.group.refill()
        self.carry_out()

    def carry_out(self) -> list[tuple[Any, ...]]:
        """Carries all effects out; returns those that are new, with lanes by number and tasks by index."""
        new = []
        while self.group.effects:
            effects, self.group.effects = self.group.effects, []
            for name, *rest in effects:
                if name == "start":
                    for _ in range(rest[0]):
                        self.lanes.append(self.group.worker_started(len(self.lanes)))
                new.append((name, *(self.shown(part) for part in rest)))
            self.group.validate()
        self.group.validate()
        self.log += new
        return new

    def shown(self, part: Any) -> Any:
        if isinstance(part, Lane):
            return part.worker
        if isinstance(part, Task):
            return part.index
        if isinstance(part, list):
            return [task.index for task in part]
        return part

    def ready(self, *numbers: int) -> list[tuple[Any, ...]]:
        for number in numbers:
            self.group.worker_ready(self.lanes[number])
        return self.pump()

    def submit(self, *tasks: Task) -> list[tuple[Any, ...]]:
        for task in tasks:
            self.group.submitted(task)
        return self.pump()

    def pump(self) -> list[tuple[Any, ...]]:
        self.group.pump()
        return self.carry_out()

    def finish(self, number: int, sequence: int, duration_us: int = 1) -> Task | None:
        return self.group.finished(self.lanes[number], sequence, duration_us)

    def die(self, number: int, claimed: int, is_charged: bool = True) -> list[tuple[Any, ...]]:
        self.group.worker_died(self.lanes[number], claimed, is_charged)
        self.group.pump()
        return self.carry_out()


# -- stories ----------------------------------------------------------------------------------------


def test_a_group_asks_for_its_workers_once() -> None:
    story = Story(2)
    assert story.log == [("start", 2)]
    story.group.refill()
    assert story.carry_out() == []


def test_each_worker_gets_a_share() -> None:
    story = Story(2)
    story.ready(0, 1)
    effects = story.submit(*(make_task(i, short_profile()) for i in range(4)))
    assert {name for name, *_ in effects} == {"send"}
    assert {lane for _, lane, _ in effects} == {0, 1}
    assert sorted(index for _, _, tasks in effects for index in tasks) == [0, 1, 2, 3]


def test_the_shares_are_equal() -> None:
    story = Story(2)
    story.ready(0, 1)
    effects = story.submit(*(make_task(i, short_profile()) for i in range(4)))
    assert effects == [("send", 1, [0, 1]), ("send", 0, [2, 3])]


def test_an_unknown_function_is_not_prefetched() -> None:
    story = Story(1)
    story.ready(0)
    profile = Profile()
    assert story.submit(*(make_task(i, profile) for i in range(9))) == [("send", 0, [0])]
    story.finish(0, 1)
    assert story.pump() == [("send", 0, [1])]
    story.finish(0, 2)
    assert story.pump() == [("send", 0, [2, 3, 4, 5, 6, 7, 8])]


def test_a_slow_function_is_not_prefetched() -> None:
    story = Story(1)
    story.ready(0)
    profile = Profile()
    for _ in range(10):
        profile.add(1_000_000)
    assert story.submit(*(make_task(i, profile) for i in range(9))) == [("send", 0, [0])]


def test_what_is_in_flight_is_bounded_in_bytes() -> None:
    story = Story(1)
    story.ready(0)
    half = limits.PREFETCH_BYTES // 2
    profile = short_profile()
    assert story.submit(*(make_task(i, profile, half) for i in range(5))) == [("send", 0, [0, 1])]
    assert story.finish(0, 1).index == 0  # type: ignore[union-attr]
    assert story.pump() == [("send", 0, [2])]


def test_a_task_larger_than_the_bound_goes_alone() -> None:
    story = Story(1)
    story.ready(0)
    profile = short_profile()
    tasks = [make_task(i, profile, 2 * limits.PREFETCH_BYTES) for i in range(2)]
    assert story.submit(*tasks) == [("send", 0, [0])]


def test_a_death_charges_what_was_claimed_and_nothing_else() -> None:
    story = Story(1)
    story.ready(0)
    profile = short_profile()
    tasks = [make_task(i, profile) for i in range(4)]
    story.submit(*tasks)
    story.finish(0, 1)
    assert story.die(0, claimed=2) == [("start", 1)]
    assert [task.attempts for task in tasks] == [0, 1, 0, 0]
    assert story.ready(1) == [("send", 1, [2, 3])]  # the suspect comes after the others, and then alone
    story.finish(1, 1)
    story.finish(1, 2)
    assert story.pump() == [("send", 1, [1])]


def test_a_death_before_the_claim_charges_nobody() -> None:
    story = Story(1, max_retries=0)
    story.ready(0)
    task = make_task(0)
    story.submit(task)
    story.die(0, claimed=0)
    assert task.attempts == 0
    assert story.ready(1) == [("send", 1, [0])]


def test_a_death_after_the_result_charges_nobody() -> None:
    story = Story(1, max_retries=0)
    story.ready(0)
    story.submit(make_task(0))
    story.finish(0, 1)
    assert story.die(0, claimed=1) == [("start", 1)]


def test_a_suspect_fails_after_its_retries() -> None:
    story = Story(1, max_retries=2)
    task = make_task(0)
    story.submit(task)
    for attempt in range(3):
        assert story.ready(attempt) == [("send", attempt, [0])]
        effects = story.die(attempt, claimed=1)
        assert (("failed", 0, attempt) in effects) == (attempt == 2)
    assert task.state == FINISHED
    assert task.attempts == 3


def test_a_suspect_is_alone_on_its_worker_only() -> None:
    story = Story(2, max_retries=3)
    story.ready(0, 1)
    profile = short_profile()
    story.submit(make_task(0), make_task(1))
    ((_, first, _), (_, other, _)) = story.log[-2:]
    story.die(first, claimed=1)
    story.ready(2)  # 1 still runs on the other worker; that is no reason to wait
    assert ("send", 2, [0]) in story.log
    assert story.submit(*(make_task(i, profile) for i in range(2, 5))) == []  # nothing goes behind the suspect
    story.finish(other, 1)
    assert story.pump()[0] == ("send", other, [2, 3, 4])


def test_a_suspect_keeps_its_place_among_what_comes_later() -> None:
    story = Story(1, max_retries=3)
    story.ready(0)
    profile = short_profile()
    story.submit(make_task(0, profile), make_task(1, profile))
    story.die(0, claimed=1)
    story.submit(make_task(2, profile), make_task(3, profile))
    assert story.ready(1) == [("send", 1, [1])]
    story.finish(1, 1)
    assert story.pump() == [("send", 1, [0])]
    story.finish(1, 2)
    assert story.pump() == [("send", 1, [2, 3])]


def test_a_suspect_stays_one_when_its_worker_dies_unstarted() -> None:
    story = Story(1)
    story.ready(0)
    task = make_task(0)
    story.submit(task)
    story.die(0, claimed=1)
    story.ready(1)
    story.die(1, claimed=0)
    assert (task.attempts, task.state) == (1, SUSPECT)
    assert story.ready(2) == [("send", 2, [0])]
    assert story.lanes[2].is_isolated


def test_an_uncharged_death_is_no_failure_of_the_initializer() -> None:
    """The zygote's death takes all workers along, also those that are starting."""
    story = Story(5)
    for number in range(5):
        story.die(number, claimed=0, is_charged=False)
    assert not story.group.is_broken
    assert len(story.lanes) == 10


def test_three_failing_initializers_in_a_row_break_the_group() -> None:
    story = Story(2)
    story.submit(make_task(0))
    story.die(0, 0)
    story.ready(1)
    story.die(2, 0)
    story.die(3, 0)
    assert not story.group.is_broken
    assert ("broken",) in story.die(4, 0)
    assert story.die(1, 0) == [("broken",)]  # the task it had fails too, and no worker is asked for any more


def test_a_refused_worker_makes_the_group_smaller() -> None:
    story = Story(3)
    story.ready(0)
    for number, size in ((1, 2), (2, 1)):
        story.group.refused()
        story.die(number, 0, is_charged=False)
        assert story.group.size == size
    assert not story.group.is_broken
    assert story.submit(make_task(0)) == [("send", 0, [0])]


def test_a_group_all_of_whose_workers_are_refused_is_broken() -> None:
    story = Story(2)
    for number in range(2):
        story.group.refused()
        story.die(number, 0, is_charged=False)
    assert story.group.is_broken
    assert ("broken",) in story.log


def test_workers_that_were_asked_for_but_never_came() -> None:
    story = Story(1)
    story.group.resized(4)
    assert story.group.effects == [("start", 3)]
    story.group.effects.clear()
    story.group.start_refused(2)  # one of them was started
    story.lanes.append(story.group.worker_started(1))
    assert (story.group.size, story.group.asked) == (2, 0)
    story.carry_out()


def test_workers_that_have_served_their_time_are_replaced_one_for_one() -> None:
    story = Story(2, tasks_per_worker=1)
    story.ready(0, 1)
    story.submit(make_task(0), make_task(1), make_task(2))
    assert len(story.lanes) == 4
    assert [lane.state for lane in story.lanes[:2]] == [RETIRING, RETIRING]
    assert story.ready(2, 3) == []  # both lanes that may be busy are
    story.finish(0, 1)
    assert ("send", 2, [2]) in story.pump() or ("send", 3, [2]) in story.log


def test_workers_that_take_long_to_leave_do_not_pile_up() -> None:
    story = Story(2, tasks_per_worker=1)
    story.ready(0, 1)
    story.submit(*(make_task(i) for i in range(6)))
    story.ready(2, 3)
    story.finish(0, 1)
    story.finish(1, 1)
    assert [name for name, *_ in story.pump()] == ["send", "retire", "send", "retire"]  # and nobody is started
    for number in (2, 3):
        story.finish(number, 1)
    assert (story.pump(), len(story.group.lanes)) == ([], 4)
    assert ("start", 1) not in story.die(0, claimed=1) + story.die(1, claimed=1)
    assert ("start", 1) in story.die(2, claimed=1)


def test_chunks_beyond_what_a_worker_has_left_are_not_sent() -> None:
    story = Story(1, tasks_per_worker=3)
    story.ready(0)
    profile = short_profile()
    effects = story.submit(*(make_task(i, profile) for i in range(9)))
    assert effects == [("send", 0, [0, 1, 2]), ("retire", 0), ("start", 1)]


class TestClosing:
    def test_idle_workers_are_retired(self) -> None:
        story = Story(2)
        story.ready(0, 1)
        story.submit(make_task(0))
        story.group.closing()
        (retired,) = story.carry_out()
        assert retired[0] == "retire"

    def test_workers_are_replaced_while_there_is_work(self) -> None:
        story = Story(1, tasks_per_worker=1)
        story.ready(0)
        story.submit(*(make_task(i) for i in range(3)))
        story.group.closing()
        for number in range(3):
            story.finish(number, 1)
            story.die(number, 1, is_charged=False)
            if number < 2:
                story.ready(number + 1)
        assert [effect for effect in story.log if effect[0] == "send"] == [("send", i, [i]) for i in range(3)]
        assert len(story.lanes) == 3  # and none beyond

    def test_a_charged_task_gets_a_worker(self) -> None:
        story = Story(2)
        story.ready(0, 1)
        story.submit(make_task(0))
        busy = next(number for number in (0, 1) if story.lanes[number].inflight)
        story.group.closing()
        story.carry_out()
        story.die(1 - busy, 0, is_charged=False)
        assert story.die(busy, 1) == [("start", 1)]
        assert story.ready(2) == [("send", 2, [0])]

    def test_what_is_taken_back_from_a_retired_worker_gets_one(self) -> None:
        story = Story(1, tasks_per_worker=3)
        story.ready(0)
        profile = short_profile()
        story.submit(*(make_task(i, profile) for i in range(3)))
        story.group.closing()
        story.carry_out()
        story.die(1, 0, is_charged=False)  # the replacement, which had nothing to do
        story.group.tick()
        story.group.tick()
        assert ("revoke", 0, 2) in story.carry_out()
        story.group.revocation_settled(story.lanes[0], claimed=1)
        assert ("start", 1) in story.pump()


class TestTakingBack:
    def stalled(self, count: int = 4, **arguments: Any) -> Story:
        """Worker 0 runs task 0, the others are behind it, worker 1 is idle, and the revocation is under way."""
        story = Story(2, **arguments)
        story.ready(0)
        profile = short_profile()
        story.submit(*(make_task(i, profile) for i in range(count)))
        story.group.tick()
        assert story.carry_out() == []
        story.ready(1)
        story.group.tick()
        story.carry_out()
        assert story.lanes[0].revoked_from
        return story

    def test_what_is_behind_a_long_task_goes_elsewhere(self) -> None:
        story = self.stalled()
        assert ("revoke", 0, 2) in story.log
        story.group.revocation_settled(story.lanes[0], claimed=1)
        assert story.pump() == [("send", 1, [1, 2, 3])]

    def test_what_a_revocation_has_left_there_goes_too_if_it_is_stuck(self) -> None:
        """Also while the worker, which is stuck, has not said yet that it skips what was taken back first."""
        story = Story(2)
        story.ready(0)
        profile = short_profile()
        story.submit(*(make_task(i, profile) for i in range(9)))
        story.finish(0, 1)
        story.ready(1)
        lane = story.lanes[0]
        story.group.tick()
        assert story.carry_out() == [("revoke", 0, 6)]
        story.group.revocation_settled(lane, claimed=2)
        assert story.pump() == [("send", 1, [5, 6, 7, 8])]
        story.group.tick()
        assert story.carry_out() == [("revoke", 0, 3)]
        story.group.revocation_settled(lane, claimed=2)
        assert [task.index for task in lane.inflight] == [1]

    def test_the_word_is_cleared_when_all_have_come_back(self) -> None:
        story = self.stalled()
        lane = story.lanes[0]
        story.group.revocation_settled(lane, claimed=1)
        story.finish(0, 1)
        assert not any(name == "unrevoke" for name, *_ in story.pump())
        story.group.returned(lane, [2, 3])
        assert not any(name == "unrevoke" for name, *_ in story.pump())
        story.group.returned(lane, [4])
        assert ("unrevoke", 0) in story.pump()
        story.group.lane_reopened(lane)
        assert story.submit(make_task(9)) == [("send", 0, [9])]

    def test_what_was_claimed_in_the_meantime_ends_where_it_is(self) -> None:
        story = self.stalled()
        story.group.revocation_settled(story.lanes[0], claimed=3)
        assert story.pump() == [("send", 1, [3])]
        assert story.finish(0, 2).index == 1  # type: ignore[union-attr]
        story.group.returned(story.lanes[0], [3, 4])  # claimed, and skipped
        assert story.group.ready[0].index == 2

    def test_a_late_result_of_what_was_taken_back_is_none(self) -> None:
        story = self.stalled()
        story.group.revocation_settled(story.lanes[0], claimed=1)
        assert story.finish(0, 2) is None

    def test_death_during_a_revocation(self) -> None:
        story = self.stalled()
        assert story.die(0, claimed=1)
        assert [task.index for task in story.lanes[1].inflight] == [1, 2, 3]
        story.group.revocation_settled(story.lanes[0], claimed=1)  # the timer comes late
        story.carry_out()


class TestDropping:
    def test_waiting_tasks_are_gone_at_once(self) -> None:
        story = Story(1)
        tasks = [make_task(i, sink=i % 2) for i in range(4)]
        story.submit(*tasks)
        assert [task.index for task in story.group.dropped(lambda task: task.sink == 1)] == [1, 3]
        assert story.ready(0)[0][:2] == ("send", 0)
        assert [task.state for task in tasks] == [ASSIGNED, FINISHED, PENDING, FINISHED]

    def test_the_running_one_is_interrupted_and_its_result_nobody_s(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        assert len(story.group.dropped(lambda task: True)) == 1
        assert story.carry_out() == [("revoke", 0, 1), ("interrupt", 0, [0])]
        assert story.finish(0, 1) is None

    def test_a_task_is_dropped_once(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        story.group.dropped(lambda task: True)
        assert story.group.dropped(lambda task: True) == []

    def test_neighbours_that_are_wanted_are_run(self) -> None:
        """What is claimed while the interruption is under way could be hit by it, so it must not be claimed."""
        story = Story(1)
        story.ready(0)
        profile = short_profile()
        story.submit(*(make_task(i, profile, sink=i) for i in range(3)))
        story.group.dropped(lambda task: task.sink == 0)
        assert ("revoke", 0, 1) in story.carry_out()
        story.group.revocation_settled(story.lanes[0], claimed=1)
        assert [task.index for task in story.group.ready] == [1, 2]

    def test_a_revocation_under_way_is_extended(self) -> None:
        story = TestTakingBack().stalled()
        story.group.dropped(lambda task: task.index == 0)
        assert ("revoke", 0, 1) in story.carry_out()
        lane = story.lanes[0]
        story.group.revocation_settled(lane, claimed=0)
        story.group.returned(lane, [1, 2, 3, 4])
        story.carry_out()
        story.group.lane_reopened(lane)
        story.pump()
        assert story.group.has_work

    def test_dropping_while_the_word_is_about_to_be_cleared(self) -> None:
        """Both effects stand in one batch; the lane must not be given tasks that its word revokes."""
        story = TestTakingBack().stalled()
        lane = story.lanes[0]
        story.group.revocation_settled(lane, claimed=1)
        story.group.returned(lane, [2, 3, 4])
        story.group.dropped(lambda task: task.index == 0)
        names = [effect[0] for effect in story.group.effects]
        assert names.index("unrevoke") < names.index("revoke")
        story.group.lane_reopened(lane)  # carried out in order
        assert lane.revoked_from == 1
        assert not lane.is_listed


class TestUndecodable:
    def test_it_waits_outside_and_comes_back_first(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0), make_task(1))
        task = story.group.undecodable(story.lanes[0], 1)
        assert task is not None
        assert story.pump() == [("send", 0, [1])]
        story.group.resubmitted(task)
        story.finish(0, 2)
        assert story.pump() == [("send", 0, [0])]

    def test_giving_up(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        task = story.group.undecodable(story.lanes[0], 1)
        assert task is not None
        assert story.group.gave_up(task)
        assert task.state == FINISHED

    def test_dropped_in_the_meantime(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        task = story.group.undecodable(story.lanes[0], 1)
        assert task is not None
        assert story.group.dropped(lambda task: True) == [task]
        assert not story.group.gave_up(task)
        story.group.resubmitted(task)
        assert not story.group.has_work

    def test_dropped_before(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        story.group.dropped(lambda task: True)
        assert story.group.undecodable(story.lanes[0], 1) is None
        story.carry_out()

    def test_closing_waits_for_it(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        task = story.group.undecodable(story.lanes[0], 1)
        story.group.closing()
        assert story.pump() == []
        assert task is not None
        story.group.resubmitted(task)
        assert story.pump() == [("send", 0, [0])]

    def test_the_end_of_the_group_takes_it_along(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0))
        task = story.group.undecodable(story.lanes[0], 1)
        assert story.group.take_all() == [task]
        assert task is not None
        assert not story.group.gave_up(task)


class TestDevices:
    """A group whose workers have devices: none idles with one, none is there twice."""

    def test_workers_are_asked_for_only_if_there_is_something_to_do(self) -> None:
        group = Group(2, tasks_per_worker=1, max_retries=0, cpus=4)
        group.holds_devices = group.is_elastic = True
        group.refill()
        assert group.effects == []
        group.submitted(make_task(0))
        group.pump()
        group.pump()
        assert group.effects == [("start", 1)]
        lane = group.worker_started("w")
        group.worker_ready(lane)
        group.pump()
        assert [name for name, *_ in group.effects] == ["start", "send", "retire"]
        task = group.finished(lane, 1, 1)
        assert task is not None and task.state == FINISHED
        group.worker_died(lane, 1)
        group.pump()
        assert len(group.effects) == 3  # no successor

    def test_a_successor_waits_until_the_predecessor_is_gone(self) -> None:
        group = Group(1, tasks_per_worker=1, max_retries=0, cpus=4)
        group.holds_devices = group.is_elastic = True
        group.submitted(make_task(0))
        group.submitted(make_task(1))
        group.pump()
        lane = group.worker_started("w")
        group.worker_ready(lane)
        group.pump()
        group.finished(lane, 1, 1)
        group.pump()
        assert [name for name, *_ in group.effects] == ["start", "send", "retire"]
        group.worker_died(lane, 1)
        assert group.effects[-1] == ("start", 1)

    def test_who_idles_leaves_when_slots_are_lost(self) -> None:
        group = Group(1, tasks_per_worker=1, max_retries=0, cpus=4)
        group.holds_devices = group.is_elastic = True
        group.submitted(make_task(0))
        group.pump()
        lane = group.worker_started("w")
        group.dropped(lambda task: True)
        group.worker_ready(lane)
        group.size = 0
        group.slots_lost()
        assert group.effects == [("start", 1), ("retire", lane)]


def snapshot(group: Group) -> Any:
    return (
        [(task.index, task.state) for task in (*group.ready, *group.away)],
        [(lane.worker, lane.state, [task.index for task in lane.inflight], lane.revoked_from) for lane in group.lanes],
        (group.suspects, group.busy, group.asked, group.failures_in_a_row, group.is_broken),
        len(group.effects),
    )


def illegal_events(story: Story, task: Task) -> dict[str, Callable[[], object]]:
    group = story.group
    return {
        "submit an assigned task": lambda: group.submitted(task),
        "resubmit an assigned task": lambda: group.resubmitted(task),
        "give up an assigned task": lambda: group.gave_up(task),
        "a dead worker dies": lambda: group.worker_died(story.lanes[0], 0),
        "a dead worker is ready": lambda: group.worker_ready(story.lanes[0]),
    }


@pytest.mark.parametrize("event", illegal_events(Story(1), make_task(0)))
def test_an_illegal_event_raises_and_leaves_the_state_untouched(event: str) -> None:
    story = Story(1)
    story.ready(0)
    story.die(0, 0)
    story.ready(1)
    task = make_task(7)
    story.submit(task)
    before = snapshot(story.group)
    with pytest.raises(InternalError, match="worker_died"):  # what happened before is told
        illegal_events(story, task)[event]()
    assert snapshot(story.group) == before
    story.group.validate()


# -- a dumb model under random events ---------------------------------------------------------------


class SimulatedWorker:
    """A worker as it is: it claims, looks at its word, runs or skips; what it says arrives later."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.queue: deque[tuple[int, Task]] = deque()
        self.claimed = 0
        self.revoked_from = NOTHING_REVOKED
        self.running: tuple[int, Task] | None = None
        self.reports: deque[tuple[Any, ...]] = deque()
        self.is_told_to_exit = False
        self.settling: list[int] = []
        self.direct: Task | None = None  # what a submitting thread has it run, past the dispatcher
        self.is_direct_done = False
        self.is_reclaimed = False  # while the direct call is under way


class Dispatching(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 3),
        tasks_per_worker=st.sampled_from([None, None, 1, 3]),
        max_retries=st.integers(0, 2),
        cpus=st.sampled_from([1, 4]),
    )
    def start(self, size: int, tasks_per_worker: int | None, max_retries: int, cpus: int) -> None:
        self.group = self.new_group(size, tasks_per_worker=tasks_per_worker, max_retries=max_retries, cpus=cpus)
        self.max_retries = max_retries
        self.workers: list[SimulatedWorker] = []
        self.tasks: list[Task] = []
        self.ended: Counter[int] = Counter()
        self.starts: Counter[int] = Counter()  # begun and charged or completed
        self.excused: Counter[int] = Counter()  # begun, and ended by no fault of its own
        self.away: list[Task] = []
        self.profiles = [Profile(), short_profile()]
        self.group.refill()
        self.carry_out()

    def new_group(self, size: int, **arguments: Any) -> Group:
        return Group(size, **arguments)

    def new_place(self) -> Any:
        """Of a worker."""
        return None

    # -- the owner's side

    def carry_out(self) -> None:
        group = self.group
        while group.effects:
            effects, group.effects = group.effects, []
            for name, *rest in effects:
                getattr(self, "do_" + name)(*rest)
            group.pump()

    def worker_of(self, lane: Lane) -> SimulatedWorker:
        return next(worker for worker in self.workers if worker.lane is lane)

    def do_start(self, count: int) -> None:
        for _ in range(count):
            lane = self.group.worker_started(f"w{len(self.ended)}-{id(self) % 97}", self.new_place())
            self.workers.append(self.new_worker(lane))

    def new_worker(self, lane: Lane) -> SimulatedWorker:
        return SimulatedWorker(lane)

    def do_send(self, lane: Lane, tasks: list[Task]) -> None:
        if lane.state != DEAD:
            assert not lane.revoked_from and not self.worker_of(lane).is_told_to_exit
            self.worker_of(lane).queue.extend((task.sequence, task) for task in tasks)

    def do_retire(self, lane: Lane) -> None:
        self.worker_of(lane).is_told_to_exit = True

    def do_revoke(self, lane: Lane, sequence: int) -> None:
        worker = self.worker_of(lane)
        worker.revoked_from = sequence
        worker.settling.append(sequence)

    def do_unrevoke(self, lane: Lane) -> None:
        self.worker_of(lane).revoked_from = NOTHING_REVOKED
        self.group.lane_reopened(lane)

    def do_interrupt(self, lane: Lane, tasks: list[Task]) -> None:
        pass  # the running one may end at any time anyhow

    def do_reclaim(self, lane: Lane) -> None:
        worker = self.worker_of(lane)
        if worker.direct is None:
            self.group.lane_came_back(lane)
        else:
            worker.is_reclaimed = True

    def do_failed(self, task: Task, lane: Lane) -> None:
        assert self.starts[task.index] == self.max_retries + 1
        self.end(task)

    def do_broken(self) -> None:
        for task in self.group.take_all():
            self.end(task)

    def end(self, task: Task) -> None:
        assert task.state == FINISHED
        self.ended[task.index] += 1
        assert self.ended[task.index] == 1, f"task {task.index} ended twice"

    # -- what may happen

    @rule(count=st.integers(1, 6), sink=st.integers(0, 2), kind=st.integers(0, 1), size=st.sampled_from([1, 1 << 19]))
    def submit(self, count: int, sink: int, kind: int, size: int) -> None:
        if self.group.is_closing or self.group.is_broken:
            return
        for _ in range(count):
            task = make_task(len(self.tasks), self.profiles[kind], size, sink)
            self.tasks.append(task)
            self.place(task)
            self.group.submitted(task)
        self.settle()

    def place(self, task: Task) -> None:
        """Where it is to run, if there is a choice."""

    def settle(self) -> None:
        self.group.pump()
        self.carry_out()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_becomes_ready(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.group.worker_ready(worker.lane)
        self.settle()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), steps=st.integers(1, 6))
    def worker_works(self, data: st.DataObject, steps: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        for _ in range(steps):
            self.step(worker)

    def step(self, worker: SimulatedWorker) -> None:
        """Begin what is next, or end what runs."""
        if worker.running is not None:
            sequence, task = worker.running
            worker.running = None
            self.starts[task.index] += 1
            if task is worker.direct:
                worker.is_direct_done = True  # its caller reads the answer
            else:
                worker.reports.append(("finished", sequence))
        elif worker.queue:
            sequence, task = worker.queue.popleft()
            worker.claimed = sequence
            if worker.revoked_from <= sequence:
                skipped = [sequence, *(number for number, _ in worker.queue if number > sequence)]
                worker.queue = deque(entry for entry in worker.queue if entry[0] < sequence)
                worker.reports.append(("returned", skipped))
                return
            self.begin(worker, sequence, task)

    def begin(self, worker: SimulatedWorker, sequence: int, task: Task) -> None:
        elsewhere = [other for other in self.workers if task in self.begun(other)]
        assert not elsewhere, f"task {task.index} runs on two workers"
        again = self.starts[task.index]
        assert again <= self.max_retries, f"task {task.index} is begun for the {again + 1}th time"
        worker.running = (sequence, task)
        assert self.may_be_more or sum(1 for other in self.workers if self.begun(other)) <= self.group.size

    may_be_more = False  # workers at work than the group's size

    def begun(self, worker: SimulatedWorker) -> list[Task]:
        """What the worker has begun and not ended."""
        return [worker.running[1]] if worker.running is not None else []

    def may_leave(self, worker: SimulatedWorker) -> bool:
        return worker.is_told_to_exit and not worker.queue and not worker.running

    @rule(are_ready=st.booleans())
    def lend(self, are_ready: bool) -> None:
        for worker in self.workers if are_ready else []:
            self.group.worker_ready(worker.lane)
        self.settle()
        lent = self.group.lend_idle()
        assert all(not lane.inflight for lane in lent)
        self.settle()

    def idle_lent(self) -> list[SimulatedWorker]:
        return [w for w in self.workers if w.lane.state == LENT and w.direct is None]

    @precondition(lambda self: self.idle_lent())
    @rule(data=st.data())
    def direct_call(self, data: st.DataObject) -> None:
        """A thread claims a lent worker and sends it a call itself."""
        worker = data.draw(st.sampled_from(self.idle_lent()))
        lane = worker.lane
        task = make_task(len(self.tasks), self.profiles[0], 10, 0)
        self.tasks.append(task)
        task.sequence = lane.next_sequence
        lane.next_sequence += 1
        worker.direct = task
        worker.queue.append((task.sequence, task))

    @precondition(lambda self: any(worker.is_direct_done for worker in self.workers))
    @rule(data=st.data())
    def direct_answer_is_read(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.is_direct_done]))
        self.read_direct_answer(worker)
        self.settle()

    def read_direct_answer(self, worker: SimulatedWorker) -> None:
        assert worker.direct is not None
        worker.direct.state = FINISHED
        self.end(worker.direct)
        worker.direct = None
        worker.is_direct_done = False
        if worker.is_reclaimed:
            worker.is_reclaimed = False
            self.group.lane_came_back(worker.lane)

    @precondition(lambda self: any(worker.direct for worker in self.workers))
    @rule(data=st.data(), is_broken=st.booleans())
    def direct_call_is_handed_over(self, data: st.DataObject, is_broken: bool) -> None:
        """Its answer is unusual, or an exception has struck its caller, who leaves nobody knows what half read."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.direct]))
        self.hand_over(worker, is_broken)
        self.settle()

    def hand_over(self, worker: SimulatedWorker, is_broken: bool = False) -> None:
        task, worker.direct = worker.direct, None
        assert task is not None
        is_done, worker.is_direct_done = worker.is_direct_done, False
        worker.is_reclaimed = False
        self.group.lane_came_back(worker.lane)
        if is_broken:
            task.state = FINISHED
            self.end(task)
            worker.running = None
            worker.queue.clear()
            worker.is_told_to_exit = True
            self.group.lane_given_up(worker.lane)
        else:
            self.group.taken_over(worker.lane, task)
            if is_done:
                worker.reports.append(("finished", task.sequence))

    @precondition(lambda self: any(worker.running and not worker.direct for worker in self.workers))
    @rule(data=st.data())
    def worker_cannot_decode(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.running and not w.direct]))
        sequence, _ = worker.running  # type: ignore[misc]
        worker.running = None
        worker.reports.append(("undecodable", sequence))

    @precondition(lambda self: any(worker.reports for worker in self.workers))
    @rule(data=st.data())
    def reports_arrive(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.reports]))
        for _ in range(data.draw(st.integers(1, len(worker.reports)))):
            self.hear(worker)
        if data.draw(st.booleans()):  # else further facts come in the same turn
            self.settle()

    def hear(self, worker: SimulatedWorker) -> None:
        name, what = worker.reports.popleft()
        if name == "finished":
            task = self.group.finished(worker.lane, what, 1)
            if task is not None:
                self.end(task)
        elif name == "returned":
            self.group.returned(worker.lane, what)
        else:
            task = self.group.undecodable(worker.lane, what)
            if task is not None:
                self.away.append(task)

    @precondition(lambda self: self.away)
    @rule(data=st.data(), can_be_decoded=st.booleans())
    def undecodable_task_is_seen_to(self, data: st.DataObject, can_be_decoded: bool) -> None:
        task = data.draw(st.sampled_from(self.away))
        self.away.remove(task)
        if can_be_decoded:
            self.group.resubmitted(task)
        elif self.group.gave_up(task):
            self.end(task)
        self.settle()

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        self.bury(data.draw(st.sampled_from(self.workers)), is_charged=True)
        self.settle()

    @rule()
    def zygote_dies(self) -> None:
        for worker in list(self.workers):
            self.bury(worker, is_charged=False)
        self.settle()

    @precondition(lambda self: any(self.may_leave(worker) for worker in self.workers))
    @rule(data=st.data())
    def worker_exits(self, data: st.DataObject) -> None:
        leaving = [worker for worker in self.workers if self.may_leave(worker)]
        self.bury(data.draw(st.sampled_from(leaving)), is_charged=True)
        self.settle()

    def bury(self, worker: SimulatedWorker, is_charged: bool) -> None:
        if worker.direct is not None:
            self.hand_over(worker)
        elif worker.lane.state == LENT:
            self.group.lane_came_back(worker.lane)
        while worker.reports:  # its stream is read to the end
            self.hear(worker)
        for task in self.begun(worker):
            if is_charged or not self.max_retries:  # without retries it runs at most once, whoever is to blame
                self.starts[task.index] += 1
            else:
                self.excused[task.index] += 1
        self.group.worker_died(worker.lane, worker.claimed, is_charged)
        self.carry_out()  # before the worker is forgotten, as the owner does
        self.workers.remove(worker)

    @rule()
    def tick(self) -> None:
        self.group.tick()
        self.carry_out()

    @precondition(lambda self: any(worker.settling for worker in self.workers))
    @rule(data=st.data())
    def revocation_settles(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.settling]))
        sequence = worker.settling.pop(0)
        if worker.lane.revoked_from == sequence:
            self.group.revocation_settled(worker.lane, worker.claimed)
        self.settle()

    @rule(sink=st.integers(0, 2))
    def drop(self, sink: int) -> None:
        for task in self.group.dropped(lambda task: task.sink == sink):
            self.end(task)
        self.settle()

    @precondition(lambda self: not self.group.is_closing and not self.group.is_broken and not self.group.busy)
    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        if not any(worker.direct for worker in self.workers):
            self.group.resized(size)
            self.settle()

    @precondition(lambda self: not self.group.is_closing)
    @rule(luck=st.integers(0, 5))
    def close(self, luck: int) -> None:
        if not luck:
            self.group.closing()
            self.settle()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "group"):
            self.group.validate()
            assert self.may_be_more or sum(lane.state == OPEN for lane in self.group.lanes) <= self.group.size

    def heal(self) -> None:
        """What a subclass has broken."""

    def teardown(self) -> None:
        """Healed: every worker works, every report arrives, every timer fires. All must come to an end."""
        if not hasattr(self, "group"):
            return
        for _ in range(3000):
            if len(self.ended) == len(self.tasks) and not self.group.has_work:
                if not any(self.may_leave(worker) for worker in self.workers):  # they may be in the way of others
                    break
            self.heal()
            for task in self.away:
                self.group.resubmitted(task)
            self.away.clear()
            for worker in list(self.workers):
                self.group.worker_ready(worker.lane)
                self.step(worker)
                if worker.is_direct_done:
                    self.read_direct_answer(worker)
                while worker.reports:
                    self.hear(worker)
                while worker.settling:
                    if worker.lane.revoked_from == worker.settling.pop(0):
                        self.group.revocation_settled(worker.lane, worker.claimed)
                self.carry_out()
                if self.may_leave(worker):
                    self.bury(worker, is_charged=True)
            self.group.tick()
            self.settle()
        lost = [task.index for task in self.tasks if not self.ended[task.index]]
        assert not lost, f"tasks {lost} never ended"
        assert not self.group.has_work
        if not self.group.is_closing and not self.group.is_broken:
            serving = [lane for lane in self.group.lanes if lane.state in SERVING]
            assert len(serving) == self.group.size or self.may_be_more, (len(serving), self.group.size)
            assert len(serving) >= self.group.size


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


# -- the control page protocol, over all interleavings ----------------------------------------------
#
# The worker stores `claimed` and loads `revoked_from`; the owner stores `revoked_from` and loads `claimed`. Each store
# goes into its processor's store buffer first and becomes visible to the other side at any later step. The owner's
# waiting time is modelled as what it is taken to guarantee: when it is over, the owner's store is visible, and so is
# every store that the worker had issued before that moment.

TASKS = (1, 2, 3)

# State: (worker, owner, memory, facts)
#   worker  = (next task, pc, buffered claimed or None, is it older than the owner's store becoming visible)
#   owner   = (pc, buffered revoked or None)
#   memory  = (claimed, revoked_from)
#   facts   = (started, results, returned, taken back, claimed as read)


def successors(state: Any, revoked: int, waits: bool, may_die: bool) -> Iterator[Any]:
    worker, owner, memory, facts = state
    number, pc, buffered, is_old = worker
    owner_pc, owner_buffered = owner
    claimed, revoked_from = memory
    started, results, returned, taken = facts

    # the worker
    if pc == "claim":
        if number > TASKS[-1]:
            yield (number, "done", buffered, is_old), owner, memory, facts
        elif buffered is None:
            yield (number, "look", number, owner_buffered is not None or owner_pc == "store"), owner, memory, facts
    elif pc == "look":
        if revoked_from <= number:
            rest = frozenset(task for task in TASKS if task >= number)
            yield (number, "done", buffered, is_old), owner, memory, (started, results, returned | rest, taken)
        else:
            yield (number, "run", buffered, is_old), owner, memory, (started | {number}, results, returned, taken)
    elif pc == "run":
        # A result is a system call, which drains the buffer; so does a death.
        yield (
            (number + 1, "claim", None, False),
            owner,
            (buffered or claimed, revoked_from),
            (
                started,
                results | {number},
                returned,
                taken,
            ),
        )
    if may_die and pc in ("claim", "look", "run"):
        yield (number, "dead", None, False), owner, (buffered or claimed, revoked_from), facts

    # the buffers drain
    if buffered is not None:
        yield (number, pc, None, False), owner, (buffered, revoked_from), facts
    if owner_buffered is not None:
        yield worker, (owner_pc, None), (claimed, owner_buffered), facts

    # the owner
    if owner_pc == "store":
        yield worker, ("wait", revoked), memory, facts
    elif owner_pc == "wait":
        if not waits or (owner_buffered is None and not (buffered is not None and is_old)):
            first = max(revoked, claimed + 1)
            back = frozenset(task for task in TASKS if task >= first) - results - returned
            yield worker, ("done", owner_buffered), memory, (started, results, returned, taken | back)


def explore(revoked: int, waits: bool, may_die: bool) -> tuple[int, list[str]]:
    """The number of states reached, and what is wrong with any of them."""
    nothing: frozenset[int] = frozenset()
    first = ((1, "claim", None, False), ("store", None), (0, NOTHING_REVOKED), (nothing, nothing, nothing, nothing))
    seen = {first}
    stack = [first]
    wrong = []
    while stack:
        state = stack.pop()
        worker, owner, memory, (started, results, returned, taken) = state
        if taken & started:
            wrong.append(f"{set(taken & started)} was taken back and runs: {state}")
        if taken & results:
            wrong.append(f"{set(taken & results)} was taken back and has a result: {state}")
        if worker[1] in ("done", "dead") and owner[0] == "done":
            charged = {memory[0]} - results - taken if worker[1] == "dead" else set()
            uncharged = set(TASKS) - results - taken - charged if worker[1] == "dead" else set()
            if uncharged & started:
                wrong.append(f"{uncharged & started} began and its death is not charged: {state}")
            if worker[1] == "done" and not (results | returned | taken) >= set(TASKS):
                wrong.append(f"{set(TASKS) - results - returned - taken} is lost: {state}")
        for following in successors(state, revoked, waits, may_die):
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return len(seen), wrong


@pytest.mark.parametrize("may_die", [False, True])
@pytest.mark.parametrize("revoked", [1, 2, 3])
def test_no_interleaving_runs_a_task_that_was_taken_back_or_loses_one(revoked: int, may_die: bool) -> None:
    states, wrong = explore(revoked, waits=True, may_die=may_die)
    assert states > 50
    assert wrong == []


@pytest.mark.parametrize("revoked", [1, 2, 3])
def test_without_the_wait_the_model_finds_the_race(revoked: int) -> None:
    """Or the test above would prove nothing."""
    assert explore(revoked, waits=False, may_die=False)[1]
