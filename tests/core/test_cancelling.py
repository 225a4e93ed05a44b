"""The dispatcher when tasks are cancelled or run out of time, and when the group is resized: stories, and the random
events of `test_dispatch` with these added."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from test_dispatch import Dispatching, Story, make_task, short_profile

from scaleout._runtime.core.dispatch import Lane
from scaleout._runtime.core.tasks import FINISHED, PENDING, Task


def test_what_waits_is_cancelled_at_once() -> None:
    story = Story(1)
    task = make_task(0)
    story.submit(task)
    assert story.group.cancel_asked(task, 0) is True
    assert task.state == FINISHED and not story.group.has_work
    assert story.group.cancel_asked(task, 0) is False


def test_what_runs_is_not_cancelled() -> None:
    story = Story(1)
    story.ready(0)
    task = make_task(0)
    story.submit(task)
    assert story.group.cancel_asked(task, claimed=1) is False
    assert story.finish(0, 1) is task


def test_what_is_prefetched_is_cancelled_when_the_revocation_has_settled() -> None:
    story = Story(1)
    story.ready(0)
    tasks = [make_task(i, short_profile()) for i in range(4)]
    story.submit(*tasks)
    assert story.group.cancel_asked(tasks[2], claimed=1) is None
    assert story.carry_out() == [("revoke", 0, 3)]
    assert story.group.cancel_asked(tasks[2], claimed=1) is None  # asked again too early: nothing new
    assert story.carry_out() == []
    story.group.revocation_settled(story.lanes[0], claimed=1)
    assert story.group.cancel_asked(tasks[2], claimed=1) is True
    assert [task.state for task in tasks[2:]] == [FINISHED, PENDING]


def test_of_all_that_is_cancelled_idle_workers_keep_what_they_are_about_to_take() -> None:
    story = Story(2)
    tasks = [make_task(i) for i in range(5)]
    story.submit(*tasks)
    gone, is_all = story.group.cancel_all_asked(lambda lane: 0)
    assert ([task.index for task in gone], is_all) == ([2, 3, 4], True)
    effects = story.ready(0, 1)
    assert sorted(index for _, _, indexes in effects for index in indexes) == [0, 1]


def test_nothing_is_sent_while_all_is_being_cancelled() -> None:
    story = Story(1)
    story.ready(0)
    tasks = [make_task(i, short_profile()) for i in range(4)]
    story.submit(*tasks)
    assert story.group.cancel_all_asked(lambda lane: 1) == ([], False)
    assert story.carry_out() == [("revoke", 0, 2)]
    story.group.revocation_settled(story.lanes[0], claimed=1)
    assert story.pump() == []
    gone, is_all = story.group.cancel_all_asked(lambda lane: 1)
    assert ([task.index for task in gone], is_all) == ([1, 2, 3], True)
    assert story.finish(0, 1) is tasks[0]


def test_a_task_that_is_out_of_time_is_finished_and_its_worker_killed() -> None:
    story = Story(1)
    story.ready(0)
    tasks = [make_task(i, short_profile()) for i in range(3)]
    story.submit(*tasks)
    story.group.expired(tasks[0])
    assert tasks[0].state == FINISHED
    assert story.carry_out() == [("revoke", 0, 1), ("kill", 0, 0)]
    story.die(0, claimed=1)
    assert [task.attempts for task in tasks] == [0, 0, 0]
    effects = story.ready(1)
    assert [name_and_tasks for name, *name_and_tasks in effects if name == "send"] == [[1, [1, 2]]]


def test_a_worker_that_is_being_killed_gets_nothing_more_though_its_task_ends_before() -> None:
    story = Story(1)
    story.ready(0)
    task = make_task(0)
    story.submit(task)
    story.group.expired(task)
    story.carry_out()
    story.group.lane_given_up(story.lanes[0])
    assert story.carry_out() == [("start", 1)]
    assert story.finish(0, 1) is None
    assert story.carry_out() == [("unrevoke", 0)]
    story.group.lane_reopened(story.lanes[0])
    assert story.submit(make_task(1)) == []
    story.die(0, claimed=1)
    assert story.ready(1) == [("send", 1, [1])]


def test_a_task_with_retries_of_its_own() -> None:
    story = Story(1, max_retries=0)
    story.ready(0)
    task = make_task(0)
    task.max_retries = 1
    story.submit(task)
    assert ("failed", 0, 0) not in story.die(0, claimed=1)
    story.ready(1)
    assert ("failed", 0, 1) in story.die(1, claimed=1)


class Cancelling(Dispatching):
    """Random events, with these."""

    def do_kill(self, lane: Lane, task: Task) -> None:
        self.group.lane_given_up(lane)  # what is still sent there shows in `do_send`
        self.worker_of(lane).is_told_to_exit = True

    def claimed_by(self, lane: Lane) -> int:
        return self.worker_of(lane).claimed

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.ask_to_cancel(data.draw(st.sampled_from(self.tasks)))

    def ask_to_cancel(self, task: Task) -> None:
        lane: Any = task.runner
        is_assigned = lane is not None and task in lane.inflight
        if self.group.cancel_asked(task, self.claimed_by(lane) if is_assigned else 0):
            assert not any(worker.running and worker.running[1] is task for worker in self.workers)
            self.end(task)
            if task in self.away:
                self.away.remove(task)
        self.settle()

    @rule(luck=st.integers(0, 9))
    def cancel_all(self, luck: int) -> None:
        if not luck or self.group.is_held:
            self.group.is_closing = True  # nothing is submitted any more
            self.ask_to_cancel_all()

    def ask_to_cancel_all(self) -> None:
        gone, is_all = self.group.cancel_all_asked(self.claimed_by)
        for task in gone:
            self.end(task)
            if task in self.away:
                self.away.remove(task)
        assert is_all or any(lane.revoked_from for lane in self.group.lanes)
        self.settle()

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @rule(data=st.data())
    def time_is_up(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.running]))
        task = worker.running[1]  # type: ignore[index]
        if task.state != FINISHED:
            self.group.expired(task)
            self.end(task)
            self.settle()

    @rule(size=st.integers(1, 4))
    def resize(self, size: int) -> None:
        if size >= self.group.size and not self.group.is_closing:  # executors only grow
            self.group.resized(size)
            self.settle()

    def teardown(self) -> None:
        for _ in range(100):
            if not hasattr(self, "group") or not self.group.is_held:
                break
            for worker in list(self.workers):
                while worker.settling:
                    if worker.lane.revoked_from == worker.settling.pop(0):
                        self.group.revocation_settled(worker.lane, worker.claimed)
                while worker.reports:
                    self.hear(worker)
            self.settle()
            self.ask_to_cancel_all()
        super().teardown()


TestCancelling = Cancelling.TestCase
TestCancelling.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
