"""The dispatcher when tasks wait for other tasks: stories, and the random events of `test_dispatch` with workers that
wait, are helped, block and go on."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from test_dispatch import Dispatching, SimulatedWorker, Story, make_task, short_profile

from scaleout._runtime.core.dispatch import DEAD, OPEN, Lane
from scaleout._runtime.core.tasks import SUSPECT, Task


def elastic(size: int, **arguments: Any) -> Story:
    story = Story(size, **arguments)
    story.group.is_elastic = True
    return story


def one_blocked() -> Story:
    """Worker 0 runs task 0, which waits; another was asked for in its place."""
    story = elastic(1)
    story.ready(0)
    story.submit(make_task(0))
    story.group.lane_waits(story.lanes[0])
    story.group.lane_blocked(story.lanes[0])
    assert story.carry_out() == [("start", 1)]
    return story


# -- stories ----------------------------------------------------------------------------------------


class TestBlocking:
    def test_the_slot_of_a_task_that_waits_is_used_by_another_worker(self) -> None:
        story = one_blocked()
        story.submit(make_task(1))
        assert story.ready(1) == [("send", 1, [1])]

    def test_who_goes_on_takes_a_slot_and_the_next_free_one_is_not_given_away(self) -> None:
        story = elastic(1)
        story.ready(0)
        story.submit(make_task(0), make_task(1), make_task(2))
        lane = story.lanes[0]
        story.group.lane_waits(lane)
        story.group.lane_blocked(lane)
        story.carry_out()
        story.ready(1)
        story.group.lane_continues(lane)
        assert (story.group.busy, story.group.size) == (2, 1)
        story.finish(1, 1)
        assert story.pump() == []
        story.finish(0, 1)
        assert len(story.pump()) == 1

    def test_nothing_but_help_is_sent_to_who_waits(self) -> None:
        story = elastic(1)
        story.ready(0)
        story.submit(make_task(0, short_profile()))
        story.group.lane_waits(story.lanes[0])
        assert story.submit(make_task(1, short_profile())) == []

    def test_all_wait_and_no_more_workers_are_to_be_had(self) -> None:
        story = one_blocked()
        story.submit(make_task(1))
        story.group.refused()
        assert story.die(1, 0, is_charged=False) == [("stuck",)]
        assert story.pump() == []
        story.group.lane_continues(story.lanes[0])
        assert story.pump() == []
        story.group.lane_waits(story.lanes[0])
        story.group.lane_blocked(story.lanes[0])
        assert story.carry_out() == [("start", 1)]

    def test_workers_of_a_pool_keep_their_slot(self) -> None:
        story = Story(1)
        story.ready(0)
        story.submit(make_task(0), make_task(1))
        story.group.lane_waits(story.lanes[0])
        story.group.lane_blocked(story.lanes[0])
        assert story.pump() == []
        assert (story.group.busy, story.group.blocked) == (1, 0)

    def test_a_death_while_blocked(self) -> None:
        story = elastic(1)
        story.ready(0)
        task = make_task(0)
        story.submit(task)
        story.group.lane_waits(story.lanes[0])
        story.group.lane_blocked(story.lanes[0])
        story.carry_out()
        story.die(0, claimed=1)
        assert (story.group.busy, story.group.blocked, task.state) == (0, 0, SUSPECT)
        assert story.ready(1) == [("send", 1, [0])]

    def test_a_worker_that_serves_no_longer_needs_no_second_replacement(self) -> None:
        story = elastic(1, tasks_per_worker=1)
        story.ready(0)
        assert story.submit(make_task(0)) == [("send", 0, [0]), ("retire", 0), ("start", 1)]
        story.group.lane_waits(story.lanes[0])
        story.group.lane_blocked(story.lanes[0])
        assert story.carry_out() == []

    def test_a_worker_beyond_the_slots_does_not_keep_a_busy_one_from_getting_more(self) -> None:
        story = elastic(1, cpus=2)
        story.ready(0)
        story.submit(make_task(0, short_profile()))
        story.group.lane_waits(story.lanes[0])
        story.group.lane_blocked(story.lanes[0])
        story.carry_out()
        story.ready(1)
        story.group.lane_continues(story.lanes[0])
        assert story.submit(make_task(1, short_profile())) == [("send", 0, [1])]

    def test_no_more_workers_are_lent_than_there_are_slots(self) -> None:
        story = elastic(2)
        story.ready(0, 1)
        story.group.size = 1
        assert len(story.group.lend_idle()) == 1

    def test_a_refusal_while_there_are_no_slots_breaks_nothing(self) -> None:
        story = elastic(2)
        story.ready(0)
        story.group.size = 0  # others have the resources
        story.group.refused()
        story.die(1, 0, is_charged=False)
        assert not story.group.is_broken
        story.group.size = 1
        assert story.submit(make_task(0)) == [("send", 0, [0])]

    def test_the_end_of_a_group_while_its_tasks_wait(self) -> None:
        story = elastic(1)
        story.ready(0)
        task = make_task(0)
        story.submit(task)
        lane = story.lanes[0]
        story.group.lane_waits(lane)
        story.group.lane_blocked(lane)
        assert story.group.take_all() == [task]
        story.group.lane_continues(lane)
        assert (lane.waits, story.group.blocked, story.group.busy) == (0, 0, 0)


class TestHelping:
    def waiting(self, count: int = 1, **arguments: Any) -> tuple[Story, Lane, list[Task]]:
        """Worker 0 runs task 0, which waits for the others; they are ready."""
        story = elastic(1, **arguments)
        story.ready(0)
        tasks = [make_task(i) for i in range(count + 1)]
        story.submit(*tasks)
        story.group.lane_waits(story.lanes[0])
        return story, story.lanes[0], tasks

    def test_help_runs_inside_and_needs_no_slot(self) -> None:
        story, lane, tasks = self.waiting()
        assert story.group.help_wanted(lane, tasks[1])
        assert story.carry_out() == [("help", 0, 1)]
        assert (tasks[1].sequence, story.group.busy) == (2, 1)
        assert story.finish(0, 2) is tasks[1]
        story.group.lane_continues(lane)
        assert story.finish(0, 1) is tasks[0]
        assert not story.group.has_work

    def test_what_a_worker_has_is_not_sent_again(self) -> None:
        story, lane, tasks = self.waiting()
        story.group.lane_blocked(lane)
        story.carry_out()
        assert story.ready(1) == [("send", 1, [1])]
        assert not story.group.help_wanted(lane, tasks[1])

    def test_what_is_blocked_may_only_be_helped_with_a_free_slot(self) -> None:
        story, lane, tasks = self.waiting(2)
        story.group.lane_blocked(lane)
        story.carry_out()
        story.ready(1)
        assert not story.group.help_wanted(lane, tasks[2])
        assert story.finish(1, 1) is tasks[1]
        assert story.group.help_wanted(lane, tasks[2])
        assert (story.group.busy, story.group.blocked) == (1, 0)

    def test_a_suspect_gets_and_gives_no_help(self) -> None:
        story, lane, tasks = self.waiting()
        story.die(0, claimed=1)
        assert tasks[0].state == SUSPECT
        story.ready(1)  # the other one goes first
        story.finish(1, 1)
        assert story.pump() == [("send", 1, [0])]
        story.group.lane_waits(story.lanes[1])
        story.group.submitted(make_task(7))
        assert not story.group.help_wanted(story.lanes[1], story.group.ready[0])

    def test_a_death_charges_all_that_had_begun(self) -> None:
        story, lane, tasks = self.waiting(2, max_retries=0)
        assert story.group.help_wanted(lane, tasks[1])
        story.group.lane_waits(lane)
        assert story.group.help_wanted(lane, tasks[2])  # has not been begun
        story.carry_out()
        assert story.die(0, claimed=2) == [("failed", 0, 0), ("failed", 1, 0), ("start", 1)]
        assert [task.attempts for task in tasks] == [1, 1, 0]
        assert story.ready(1) == [("send", 1, [2])]

    def test_help_is_no_task_of_those_that_a_worker_serves_for(self) -> None:
        story, lane, tasks = self.waiting(tasks_per_worker=1)
        assert story.group.help_wanted(lane, tasks[1])
        story.group.returned(lane, [2])
        assert lane.left == 0
        story.carry_out()

    def test_help_that_comes_back_undone_leaves_the_slot_free(self) -> None:
        """Or with one slot nobody would ever do it."""
        story, lane, tasks = self.waiting()
        story.group.help_wanted(lane, tasks[1])
        story.group.dropped(lambda task: task is tasks[0])
        story.group.revocation_settled(lane, claimed=1)
        assert ("start", 1) in story.pump()
        assert story.ready(1) == [("send", 1, [1])]

    def test_help_that_could_not_be_decoded_leaves_the_slot_free(self) -> None:
        story, lane, tasks = self.waiting()
        story.group.help_wanted(lane, tasks[1])
        assert story.group.undecodable(lane, 2) is tasks[1]
        story.group.lane_blocked(lane)
        assert ("start", 1) in story.carry_out()
        story.group.resubmitted(tasks[1])
        assert story.ready(1) == [("send", 1, [1])]

    def test_an_outer_task_that_could_go_on_stays_where_it_is(self) -> None:
        """It runs when what runs inside it has ended. If it took the slot, the inner one might wait for ever."""
        story, lane, tasks = self.waiting(2)
        story.group.help_wanted(lane, tasks[1])
        story.group.lane_waits(lane)  # task 1 waits too
        story.group.lane_blocked(lane)
        story.carry_out()
        story.group.lane_continues(lane, inside=1)
        assert (story.group.busy, lane.is_blocked, lane.waits) == (0, True, 1)
        assert story.ready(1) == [("send", 1, [2])]
        story.group.lane_continues(lane)
        assert (story.group.busy, lane.is_blocked) == (2, False)
        assert story.finish(0, 2) is tasks[1]
        assert (story.group.busy, lane.is_blocked) == (2, False)  # task 0 runs at last

    def test_an_outer_task_whose_wait_is_over_does_not_wait_when_its_help_has_ended(self) -> None:
        story, lane, tasks = self.waiting()
        story.group.help_wanted(lane, tasks[1])
        story.group.lane_continues(lane)
        story.finish(0, 2)
        story.group.lane_blocked(lane)  # said too late
        assert not lane.is_blocked

    def test_help_that_ends_under_another_wait_leaves_the_slot_free(self) -> None:
        """It was sent when its task had just given up waiting, and now waits for something else."""
        story, lane, tasks = self.waiting(2)
        story.group.help_wanted(lane, tasks[1])
        story.group.lane_continues(lane)
        story.group.lane_waits(lane)
        story.finish(0, 2)
        assert lane.is_blocked
        assert ("start", 1) in story.pump()
        assert story.ready(1) == [("send", 1, [2])]

    def test_the_stall_tick_is_not_needed_for_help(self) -> None:
        story, lane, tasks = self.waiting()
        story.group.help_wanted(lane, tasks[1])
        assert not story.group.needs_tick


# -- a dumb model under random events ---------------------------------------------------------------


class Want:
    """A task waits for `enough` of these; for something else if there are none. Its owner knows while it `is_open`."""

    def __init__(self, number: int, tasks: list[Task], enough: int) -> None:
        self.number = number
        self.tasks = tasks
        self.missing = enough
        self.is_open = False
        self.is_ready = False


class Level:
    """A task that was begun: the first of a worker's, or inside the one below, which waits."""

    def __init__(self, sequence: int, task: Task) -> None:
        self.sequence = sequence
        self.task = task
        self.want: Want | None = None
        self.has_waited = False
        self.is_late = False  # it was sent as help for another wait than the one under which it runs


class WaitingWorker(SimulatedWorker):
    """`running` is the innermost task, unless it waits."""

    def __init__(self, lane: Lane) -> None:
        self.levels: list[Level] = []
        self.unread: deque[tuple[Any, ...]] = deque()  # frames that it has not received
        self.helps: deque[tuple[int, Task, Want]] = deque()
        self.helping: list[Task] = []
        self.wants: list[Want] = []  # open ones, as the owner knows them
        super().__init__(lane)

    @property  # type: ignore[override]
    def running(self) -> tuple[int, Task] | None:
        top = self.levels[-1] if self.levels else None
        return (top.sequence, top.task) if top is not None and top.want is None else None

    @running.setter
    def running(self, what: tuple[int, Task] | None) -> None:
        if what is not None:
            self.levels.append(Level(*what))
        elif self.running is not None:
            self.levels.pop()

    @property
    def waits(self) -> Want | None:
        return self.levels[-1].want if self.levels else None


class Waiting(Dispatching):
    """Random events, with these. Tasks wait for younger ones only, as they do for those that they submit."""

    workers: list[Any]

    @initialize(
        size=st.integers(1, 3),
        tasks_per_worker=st.sampled_from([None, None, 1, 3]),
        max_retries=st.integers(0, 2),
        cpus=st.sampled_from([1, 4]),
        is_elastic=st.sampled_from([True, True, False]),
    )
    def start(  # type: ignore[override]
        self, size: int, tasks_per_worker: int | None, max_retries: int, cpus: int, is_elastic: bool
    ) -> None:
        self.numbers = itertools.count(1)
        self.help_for: dict[Task, Want] = {}
        self.may_be_more = is_elastic
        super().start(size, tasks_per_worker, max_retries, cpus)
        self.group.is_elastic = is_elastic
        self.group.initializer_failures = 1000  # or most groups would soon be broken

    def new_worker(self, lane: Lane) -> WaitingWorker:
        return WaitingWorker(lane)

    # -- the owner's side

    def settle(self) -> None:
        busy = self.group.busy
        self.group.pump()
        assert self.group.busy <= max(busy, self.group.size)
        self.carry_out()

    def do_send(self, lane: Lane, tasks: list[Task]) -> None:
        if lane.state != DEAD:
            assert not lane.revoked_from
            self.worker_of(lane).unread.extend(("task", task.sequence, task) for task in tasks)

    def do_help(self, lane: Lane, task: Task) -> None:
        if lane.state != DEAD:
            worker = self.worker_of(lane)
            worker.unread.append(("help", task.sequence, task, self.help_for.get(task)))

    def end(self, task: Task) -> None:
        super().end(task)
        for worker in self.workers:
            for want in list(worker.wants):
                if task in want.tasks and want.is_open:
                    want.missing -= 1
                    has_helped = task in worker.helping
                    if has_helped:
                        worker.helping.remove(task)
                    if want.missing == 0:
                        self.satisfied(worker, want)
                    elif has_helped:
                        self.help_or_block(worker, want)

    def wanted(self, worker: WaitingWorker, want: Want) -> None:
        self.group.lane_waits(worker.lane)
        want.is_open = True
        worker.wants.append(want)
        want.missing -= sum(1 for task in want.tasks if self.ended[task.index])
        if want.missing <= 0:
            self.satisfied(worker, want)
        else:
            self.help_or_block(worker, want)

    def help_or_block(self, worker: WaitingWorker, want: Want) -> None:
        busy = self.group.busy
        for task in want.tasks:
            if not self.ended[task.index] and self.group.help_wanted(worker.lane, task):
                assert self.group.busy <= max(busy, self.group.size)
                worker.helping.append(task)
                self.help_for[task] = want  # which may be over by the time that it is sent
                return
        self.group.lane_blocked(worker.lane)

    def satisfied(self, worker: WaitingWorker, want: Want) -> None:
        self.want_over(worker, want)
        worker.unread.append(("waited", want))

    def want_over(self, worker: WaitingWorker, want: Want) -> None:
        if want.is_open:
            want.is_open = False
            worker.wants.remove(want)
            inside = sum(1 for other in worker.wants if other.number > want.number)
            self.group.lane_continues(worker.lane, inside)

    def hear(self, worker: Any) -> None:
        name, what = worker.reports[0]
        if name == "want":
            worker.reports.popleft()
            self.wanted(worker, what)
        elif name == "unwant":
            worker.reports.popleft()
            self.want_over(worker, what)
        else:
            super().hear(worker)
            if name == "undecodable" and worker.lane.waits:
                self.group.lane_blocked(worker.lane)

    def bury(self, worker: Any, is_charged: bool) -> None:
        if worker.direct is not None:
            self.hand_over(worker)
        while worker.reports:
            self.hear(worker)
        for want in worker.wants:
            want.is_open = False
        worker.wants.clear()
        super().bury(worker, is_charged)

    # -- the worker's side

    def begun(self, worker: Any) -> list[Task]:
        return [level.task for level in worker.levels]

    def may_leave(self, worker: Any) -> bool:
        return super().may_leave(worker) and not worker.unread and not worker.levels

    def step(self, worker: Any) -> None:
        if worker.waits is not None:
            self.step_in_wait(worker, worker.waits)
            return
        if worker.running is None:
            while worker.unread:
                kind, *what = worker.unread.popleft()
                if kind != "waited":  # help for a wait that is over is a task like any other
                    worker.queue.append((what[0], what[1]))
        super().step(worker)

    def step_in_wait(self, worker: WaitingWorker, want: Want) -> None:
        if worker.helps:
            sequence, task, of_want = worker.helps.popleft()
            worker.claimed = sequence
            if worker.revoked_from <= sequence:
                worker.reports.append(("returned", [sequence]))
                self.return_queued(worker)
                return
            self.begin(worker, sequence, task)
            worker.levels[-1].is_late = of_want is not want
        elif worker.queue:
            self.return_queued(worker)
        elif want.is_ready:
            worker.levels[-1].want = None
        else:
            while worker.unread:
                kind, *what = worker.unread.popleft()
                if kind == "waited":
                    what[0].is_ready = True
                elif kind == "task":
                    worker.queue.append((what[0], what[1]))
                else:
                    self.return_queued(worker)
                    worker.helps.append((what[0], what[1], what[2]))

    def return_queued(self, worker: WaitingWorker) -> None:
        if worker.queue:
            worker.reports.append(("returned", [sequence for sequence, _ in worker.queue]))
            worker.queue.clear()

    @rule(data=st.data(), children=st.integers(0, 3), sink=st.integers(0, 2))
    def worker_waits(self, data: st.DataObject, children: int, sink: int) -> None:
        """Whatever has to be done first: random events alone seldom get there."""
        if not any(self.may_run(worker) for worker in self.workers):
            self.submit(1, sink, 0, 1)
            self.all_work(False)
        able = [worker for worker in self.workers if self.may_run(worker)]
        worker = data.draw(st.sampled_from(able)) if able else None
        for _ in range(6):
            if worker and not worker.running:
                self.step(worker)
        if worker and worker.running:
            self.wait(worker, data, children, sink)

    @precondition(lambda self: any(len(worker.levels) > 1 and worker.running for worker in self.workers))
    @rule(data=st.data(), children=st.integers(0, 3), sink=st.integers(0, 2))
    def help_waits(self, data: st.DataObject, children: int, sink: int) -> None:
        able = [worker for worker in self.workers if len(worker.levels) > 1 and worker.running]
        self.wait(data.draw(st.sampled_from(able)), data, children, sink)

    def wait(self, worker: WaitingWorker, data: st.DataObject, children: int, sink: int) -> None:
        level = worker.levels[-1]
        wanted: list[Task] = []
        if self.group.is_elastic:  # in a pool it waits for something else
            if not self.group.is_closing and not self.group.is_broken:
                for _ in range(children):
                    task = make_task(len(self.tasks), self.profiles[0], 10, sink)
                    self.tasks.append(task)
                    self.group.submitted(task)
                    wanted.append(task)
            younger = self.tasks[level.task.index + 1 :]
            if younger:
                wanted += data.draw(st.lists(st.sampled_from(younger), max_size=2))
        wanted = list(dict.fromkeys(wanted))
        enough = data.draw(st.integers(1, len(wanted))) if wanted else 1
        level.want = Want(next(self.numbers), wanted, enough)
        level.has_waited = True
        self.return_queued(worker)
        worker.reports.append(("want", level.want))
        if data.draw(st.booleans()):
            self.settle()

    def may_run(self, worker: WaitingWorker) -> bool:
        return bool(not worker.direct and (worker.levels or worker.unread or worker.queue))

    @precondition(lambda self: any(worker.waits for worker in self.workers))
    @rule(data=st.data())
    def waiting_worker_goes_on(self, data: st.DataObject) -> None:
        """What it was sent is there; it begins help."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.waits]))
        while worker.reports:
            self.hear(worker)
        self.settle()
        for _ in range(3):
            if not worker.running:
                self.step(worker)

    @rule(are_done=st.booleans())
    def all_work(self, are_done: bool) -> None:
        """Everybody has begun what is next."""
        for worker in list(self.workers):
            self.group.worker_ready(worker.lane)
            if are_done and worker.running and not worker.is_direct_done:
                self.step(worker)
            for _ in range(6):
                if worker.running is None and not worker.is_direct_done:
                    self.step(worker)
            while worker.reports and are_done:
                self.hear(worker)
        self.settle()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), luck=st.integers(0, 3))
    def worker_dies(self, data: st.DataObject, luck: int) -> None:  # type: ignore[override]
        if not luck:
            able = [worker for worker in self.workers if worker.levels] or self.workers
            self.bury(data.draw(st.sampled_from(able)), is_charged=True)
            self.settle()

    @rule(luck=st.integers(0, 9))
    def zygote_dies(self, luck: int) -> None:  # type: ignore[override]
        if not luck:
            for worker in list(self.workers):
                self.bury(worker, is_charged=False)
            self.settle()

    @precondition(lambda self: not self.group.is_closing)
    @rule(luck=st.integers(0, 29))
    def close(self, luck: int) -> None:
        if not luck:
            self.group.closing()
            self.settle()

    worker_becomes_ready = worker_works = None  # type: ignore[assignment]  # `all_work` does more
    lend = None  # type: ignore[assignment]  # a direct call is handed over before it waits

    @rule(sink=st.integers(0, 2), luck=st.integers(0, 3))
    def drop(self, sink: int, luck: int) -> None:  # type: ignore[override]
        if not luck:
            for task in self.group.dropped(lambda task: task.sink == sink):
                self.end(task)
            self.settle()

    @precondition(lambda self: any(worker.waits and not worker.helps for worker in self.workers))
    @rule(data=st.data())
    def worker_gives_up_waiting(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.waits and not worker.helps]))
        worker.reports.append(("unwant", worker.waits))
        worker.levels[-1].want = None

    @precondition(lambda self: any(self.waits_for_something_else(worker) for worker in self.workers))
    @rule(data=st.data())
    def something_else_arrives(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if self.waits_for_something_else(w)]))
        self.let_arrive(worker)
        self.settle()

    def waits_for_something_else(self, worker: WaitingWorker) -> bool:
        return any(not want.tasks for want in worker.wants)

    def let_arrive(self, worker: WaitingWorker) -> None:
        for want in list(worker.wants):
            if not want.tasks:
                self.satisfied(worker, want)

    def may_be_undecodable(self, worker: Any) -> bool:
        return bool(worker.running and not worker.direct and not worker.levels[-1].has_waited)

    @precondition(lambda self: any(self.may_be_undecodable(worker) for worker in self.workers))
    @rule(data=st.data())
    def worker_cannot_decode(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if self.may_be_undecodable(w)]))
        sequence, _ = worker.running
        worker.running = None
        worker.reports.append(("undecodable", sequence))

    @rule(size=st.integers(0, 4))
    def resize(self, size: int) -> None:
        """The slots are shared anew."""
        group = self.group
        if group.is_elastic and not group.is_broken:
            group.size, earlier = max(size, group.busy), group.size
            if group.size > earlier:
                group.refill()
            self.settle()

    # -- what always holds

    @invariant()
    def nothing_idles(self) -> None:
        """At the end of a turn, whatever has happened in it."""
        if not hasattr(self, "group"):
            return
        group = self.group
        self.settle()
        group.validate()
        if group.ready and group.busy < group.size and not group.is_held:
            for lane in group.lanes:
                assert lane.state != OPEN or lane.inflight or lane.revoked_from, f"{lane.worker} idles"
        for worker in self.workers if group.is_elastic and not group.is_broken else []:
            waits = worker.waits
            if waits and waits.is_open and not worker.reports and not worker.unread and not worker.helps:
                assert worker.lane.is_blocked, "nothing happens there, and it has a slot"
            has_given_up = any(name == "unwant" for name, _ in worker.reports)
            if worker.running and not has_given_up and not any(level.is_late for level in worker.levels):
                assert not worker.lane.is_blocked, "it runs without a slot"

    def teardown(self) -> None:
        if hasattr(self, "group") and self.group.is_elastic and not self.group.is_broken:
            self.group.size = max(self.group.size, 1)
            self.group.refill()
            self.carry_out()
        super().teardown()

    def heal(self) -> None:
        for worker in self.workers:
            self.let_arrive(worker)


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=250, stateful_step_count=80, deadline=None)
