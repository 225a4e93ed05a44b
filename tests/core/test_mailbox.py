"""The calls of one actor: each transition and effect as a story, and random events against a dumb model of an actor
that writes down what it has done."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scaleout._runtime.base import limits
from scaleout._runtime.core.dispatch import DEAD as LANE_DEAD
from scaleout._runtime.core.dispatch import LENT, RETIRING, Lane
from scaleout._runtime.core.mailbox import ALIVE, ALWAYS, CREATING, DEAD, Mailbox
from scaleout._runtime.core.tasks import ASSIGNED, FINISHED, PENDING, Profile, Task
from scaleout.errors import InternalError


class Envelope:
    """As much of one as a mailbox looks at."""

    def __init__(self, caller: Any, waiting: int) -> None:
        self.caller = caller
        self.waiting = waiting


def make_call(index: int, caller: Any = 0, waiting: int = 0, size_bytes: int = 10) -> Task:
    task = Task(None, None, 0, b"x" * size_bytes, (), None, None, index, Profile())
    if caller or waiting:
        task.envelope = Envelope(caller, waiting)
    return task


CREATION = -1
RESTART = -2


class Story:
    """A mailbox whose effects are carried out on paper. Its processes are named 0, 1, 2 in the order of their start,
    the constructor's call and the one that restores a checkpoint "create" and "restore"."""

    def __init__(self, restarts: int = 0, task_retries: int = 0, is_ready: bool = True, **arguments: Any) -> None:
        self.creation = make_call(CREATION)
        self.box = Mailbox(self.creation, restarts=restarts, task_retries=task_retries, **arguments)
        self.lanes: list[Lane] = []
        self.box.refill()
        self.carry_out()
        if is_ready:
            assert self.ready() == [("send", 0, ["create"])]
            self.finish(1)
            self.carry_out()

    @property
    def lane(self) -> Lane:
        return self.lanes[-1]

    def carry_out(self) -> list[tuple[Any, ...]]:
        shown = []
        while self.box.effects:
            effects, self.box.effects = self.box.effects, []
            for name, *rest in effects:
                if name == "start":
                    self.lanes.append(self.box.worker_started(len(self.lanes)))
                shown.append((name, *(self.shown(part) for part in rest)))
            self.box.validate()
        self.box.validate()
        return shown

    def shown(self, part: Any) -> Any:
        if isinstance(part, Lane):
            return part.worker
        if isinstance(part, list):
            return [self.shown(task) for task in part]
        if isinstance(part, Task):
            return {CREATION: "create", RESTART: "restore"}.get(part.index, part.index)
        return part

    def pump(self) -> list[tuple[Any, ...]]:
        self.box.pump()
        return self.carry_out()

    def ready(self) -> list[tuple[Any, ...]]:
        self.box.worker_ready(self.lane)
        return self.pump()

    def submit(self, *calls: Task) -> list[tuple[Any, ...]]:
        for call in calls:
            self.box.submitted(call)
        return self.pump()

    def finish(self, sequence: int) -> Task | None:
        return self.box.finished(self.lane, sequence, 1)

    def die(self, claimed: int, is_charged: bool = True) -> list[tuple[Any, ...]]:
        self.box.worker_died(self.lane, claimed, is_charged)
        return self.pump()

    def checkpoint(self) -> list[tuple[Any, ...]]:
        self.box.checkpointed(make_call(RESTART))
        return self.carry_out()


# -- its life ---------------------------------------------------------------------------------------


class TestLife:
    def test_the_constructor_runs_before_the_first_call_and_without_one(self) -> None:
        story = Story(is_ready=False)
        assert (story.box.state, story.box.suspects) == (CREATING, 0)
        story.box.worker_ready(story.lane)
        assert story.box.suspects  # so that whoever drives it pumps
        assert story.pump() == [("send", 0, ["create"])]
        assert not story.box.suspects
        assert story.finish(1) is story.creation
        assert story.box.state == ALIVE

    def test_calls_follow_the_constructor_at_once(self) -> None:
        story = Story(is_ready=False)
        story.submit(make_call(0), make_call(1))
        assert story.ready() == [("send", 0, ["create", 0, 1])]

    def test_the_constructor_waits_for_what_it_depends_on(self) -> None:
        story = Story(is_ready=False)
        story.creation.envelope = Envelope(0, 1)
        story.submit(make_call(0))
        assert story.ready() == []
        story.creation.envelope.waiting = 0
        assert story.pump() == [("send", 0, ["create", 0])]

    def test_a_constructor_that_raises_is_the_end(self) -> None:
        story = Story(is_ready=False, restarts=ALWAYS)
        calls = [make_call(0), make_call(1)]
        story.submit(calls[0])
        story.ready()
        story.submit(calls[1])
        assert story.finish(1) is story.creation
        story.box.creation_failed()
        assert story.carry_out() == [("dead", [0, 1]), ("forget", ["create"]), ("kill_worker", 0)]
        assert (story.box.state, story.box.is_broken) == (DEAD, True)
        assert [call.state for call in calls] == [FINISHED, FINISHED]

    def test_a_death_without_restarts_is_the_end(self) -> None:
        story = Story()
        story.submit(make_call(0), make_call(1))
        assert story.die(claimed=2) == [("dead", [0, 1])]
        assert story.box.state == DEAD
        story.box.refill()
        assert story.carry_out() == []

    def test_a_death_with_a_restart(self) -> None:
        story = Story(restarts=1)
        story.submit(make_call(0), make_call(1))
        assert story.die(claimed=2) == [("lost", [0]), ("start", 1)]
        assert (story.box.state, story.box.deaths, story.box.restarts_left) == (CREATING, 1, 0)
        assert story.ready() == [("send", 1, ["create", 1])]
        story.finish(1)
        assert story.carry_out() == [("forget", ["create"])]  # it will not be started again
        assert story.die(claimed=1) == [("dead", [1])]

    def test_a_death_that_is_nobody_s_fault_costs_no_restart(self) -> None:
        story = Story(restarts=1, task_retries=1)
        task = make_call(0)
        story.submit(task)
        assert story.die(claimed=2, is_charged=False) == [("start", 1)]
        assert (task.attempts, story.ready()) == (0, [("send", 1, ["create", 0])])
        assert story.box.restarts_left == 1

    def test_without_restarts_a_state_that_is_gone_is_not_made_anew_whoever_is_to_blame(self) -> None:
        story = Story()
        story.submit(make_call(0))
        assert story.die(claimed=2, is_charged=False) == [("dead", [0])]
        log = Story(keeps_log=True)  # this state can be brought back
        assert log.die(claimed=1, is_charged=False) == [("start", 1)]

    def test_without_retries_a_call_begins_at_most_once_whoever_is_to_blame(self) -> None:
        story = Story(restarts=1, task_retries=0)
        story.submit(make_call(0), make_call(1))
        assert story.die(claimed=2, is_charged=False) == [("lost", [0]), ("start", 1)]
        assert story.ready() == [("send", 1, ["create", 1])]

    def test_calls_have_retries_of_their_own(self) -> None:
        story = Story(restarts=ALWAYS, task_retries=0)
        task = make_call(0)
        task.max_retries = 1
        story.submit(task)
        assert story.die(claimed=2) == [("start", 1)]
        assert story.ready() == [("send", 1, ["create", 0])]
        assert story.die(claimed=2) == [("lost", [0]), ("start", 1)]

    def test_a_process_that_always_dies_in_the_constructor_is_not_started_for_ever(self) -> None:
        story = Story(restarts=ALWAYS, is_ready=False)
        story.submit(make_call(0))
        for _ in range(limits.INITIALIZER_FAILURES - 1):
            story.ready()
            assert story.die(claimed=1) == [("start", 1)]
        story.ready()
        assert story.die(claimed=1) == [("dead", [0]), ("forget", ["create"])]

    def test_a_process_that_never_becomes_ready_is_not_started_for_ever(self) -> None:
        story = Story(restarts=ALWAYS, is_ready=False)
        for _ in range(limits.INITIALIZER_FAILURES - 1):
            assert story.die(claimed=0) == [("start", 1)]
        assert story.die(claimed=0) == [("dead", []), ("forget", ["create"])]

    def test_the_zygote_s_death_is_no_failure_of_the_constructor(self) -> None:
        story = Story(is_ready=False)
        for _ in range(2 * limits.INITIALIZER_FAILURES):
            assert story.die(claimed=0, is_charged=False) == [("start", 1)]

    def test_a_process_that_cannot_be_had(self) -> None:
        story = Story(is_ready=False)
        story.submit(make_call(0))
        story.box.refused()
        assert story.carry_out() == [("dead", [0]), ("forget", ["create"]), ("kill_worker", 0)]
        assert story.die(claimed=0, is_charged=False) == []

    def test_a_process_that_was_not_even_started(self) -> None:
        box = Mailbox(make_call(CREATION), restarts=0, task_retries=0)
        box.refill()
        box.start_refused(1)
        assert (box.state, box.asked) == (DEAD, 0)

    def test_it_waits_for_its_resources(self) -> None:
        box = Mailbox(make_call(CREATION), restarts=0, task_retries=0)
        box.size = 0
        box.refill()
        assert (box.effects, box.demand) == ([], (0, 1))
        box.resized(1)
        assert (box.effects, box.demand) == ([("start", 1)], (1, 0))

    def test_killed_with_a_restart_is_the_usual_death(self) -> None:
        story = Story(restarts=1)
        story.box.killed(True)
        assert story.carry_out() == [("kill_worker", 0)]
        assert story.die(claimed=1) == [("start", 1)]

    def test_a_call_made_after_the_kill_is_for_the_next_process(self) -> None:
        story = Story(restarts=1)
        story.box.killed(True)
        assert story.submit(make_call(0)) == [("kill_worker", 0)]
        assert story.box.lend_idle() == []
        assert story.die(claimed=1) == [("start", 1)]
        assert story.ready() == [("send", 1, ["create", 0])]

    def test_killed_for_good(self) -> None:
        story = Story(restarts=ALWAYS)
        story.submit(make_call(0))
        story.box.killed(False)
        assert story.carry_out() == [("dead", [0]), ("forget", ["create"]), ("kill_worker", 0)]
        story.box.killed(False)
        assert story.carry_out() == []
        assert story.die(claimed=2) == []

    def test_killed_before_the_constructor_was_sent(self) -> None:
        """It must not run then: what it needs has been let go."""
        story = Story(is_ready=False)
        story.box.killed(False)
        story.carry_out()
        assert (story.ready(), story.box.suspects) == ([], 0)

    def test_closing_lets_the_calls_end(self) -> None:
        story = Story()
        story.submit(make_call(0))
        story.box.closing()
        assert story.pump() == []
        story.finish(2)
        assert story.pump() == [("retire", 0)]
        assert story.die(claimed=2) == [("dead", [])]

    def test_closing_waits_for_what_waits(self) -> None:
        story = Story()
        call = make_call(0, waiting=1)
        story.submit(call)
        story.box.closing()
        assert story.pump() == []
        story.box.withdrawn(call)
        assert story.pump() == [("retire", 0)]

    def test_closing_one_that_never_got_a_process(self) -> None:
        box = Mailbox(make_call(CREATION), restarts=0, task_retries=0)
        box.size = 0
        box.closing()
        assert [name for name, *_ in box.effects] == ["dead", "forget"]

    def test_nobody_starts_it_again_for_calls_that_are_not_wanted(self) -> None:
        story = Story(restarts=ALWAYS)
        story.submit(make_call(0))
        story.box.dropped(lambda task: True)
        story.box.closing()
        story.carry_out()
        assert story.die(claimed=2) == [("dead", []), ("forget", ["create"])]

    def test_the_end_of_the_session(self) -> None:
        story = Story(keeps_log=True)
        calls = [make_call(i, waiting=i) for i in range(2)]
        story.submit(*calls)
        assert story.box.take_all() == [calls[1], calls[0]]
        assert story.box.take_all() == []
        story.box.validate()


# -- calls ------------------------------------------------------------------------------------------


class TestOrder:
    def test_calls_go_in_their_order_as_far_as_the_window_reaches(self) -> None:
        story = Story(window=2)
        assert story.submit(*(make_call(i) for i in range(3))) == [("send", 0, [0, 1])]
        assert story.finish(2).index == 0  # type: ignore[union-attr]
        assert story.pump() == [("send", 0, [2])]

    @pytest.mark.parametrize("waiting", [0, 1])
    def test_what_is_in_flight_is_bounded_in_bytes(self, waiting: int) -> None:
        story = Story()
        half = limits.PREFETCH_BYTES // 2
        calls = [make_call(9, 1, waiting), *(make_call(i, size_bytes=half) for i in range(3))]
        (effect,) = story.submit(*calls[waiting:])
        assert effect == ("send", 0, [0, 1] if waiting else [9, 0])

    @pytest.mark.parametrize("waiting", [0, 1])
    def test_calls_that_run_beside_one_another_are_bounded_in_number_alone(self, waiting: int) -> None:
        """Each may wait for what a later one does."""
        story = Story(is_concurrent=True, window=5)
        calls = [make_call(9, 1, waiting), *(make_call(i, size_bytes=limits.PREFETCH_BYTES) for i in range(6))]
        assert story.submit(*calls[waiting:]) == [("send", 0, [0, 1, 2, 3, 4] if waiting else [9, 0, 1, 2, 3])]

    def test_channels_of_a_caller_do_not_hold_back_one_another(self) -> None:
        story = Story()
        calls = [make_call(0, (1, 7), 1), make_call(1, (1, 8)), make_call(2, (1, 7)), make_call(3, 1)]
        assert story.submit(*calls) == [("send", 0, [1, 3])]

    def test_a_call_that_waits_holds_back_its_caller_s_others(self) -> None:
        story = Story()
        waiting = make_call(0, caller=1, waiting=1)
        calls = [waiting, make_call(1, caller=1), make_call(2, caller=2), make_call(3, caller=1)]
        assert story.submit(*calls) == [("send", 0, [2])]
        waiting.envelope.waiting = 0
        story.box.dependencies_there(waiting)
        assert story.pump() == [("send", 0, [0, 1, 3])]

    def test_a_call_whose_value_never_comes_holds_back_nobody(self) -> None:
        story = Story()
        waiting = make_call(0, waiting=1)
        assert story.submit(waiting, make_call(1)) == []
        story.box.withdrawn(waiting)
        story.box.withdrawn(waiting)
        assert story.pump() == [("send", 0, [1])]

    def test_what_comes_back_keeps_its_place(self) -> None:
        story = Story()
        story.submit(*(make_call(i) for i in range(3)))
        story.box.returned(story.lane, [3, 4])
        story.box.lane_waits(story.lane)
        assert story.submit(make_call(3)) == []
        story.finish(2)
        story.box.lane_continues(story.lane)
        assert story.pump() == [("send", 0, [1, 2, 3])]

    def test_what_comes_back_later_was_made_later(self) -> None:
        """It was on its way when the worker gave back the others."""
        story = Story()
        story.submit(*(make_call(i) for i in range(2)))
        story.submit(make_call(2))
        story.box.returned(story.lane, [3])
        assert story.submit(make_call(3)) == []  # not before all are back
        story.box.lane_waits(story.lane)
        story.box.returned(story.lane, [4])
        story.box.lane_continues(story.lane)
        assert story.pump() == [("send", 0, [1, 2, 3])]

    def test_what_had_been_sent_when_the_process_died_goes_first_and_in_order(self) -> None:
        story = Story(restarts=1, task_retries=1)
        story.submit(*(make_call(i) for i in range(4)))
        story.box.returned(story.lane, [3])
        story.box.lane_waits(story.lane)
        story.submit(make_call(4))
        assert story.die(claimed=2) == [("start", 1)]
        assert story.ready() == [("send", 1, ["create", 0, 1, 2, 3, 4])]

    def test_what_cannot_be_decoded_holds_back_all(self) -> None:
        story = Story()
        calls = [make_call(i) for i in range(3)]
        story.submit(*calls)
        assert story.box.undecodable(story.lane, 2) is calls[0]
        assert (story.box.busy, story.pump()) == (0, [])
        story.box.resubmitted(calls[0])
        assert story.pump() == [("send", 0, [0, 1, 2])]

    def test_what_cannot_be_decoded_ever(self) -> None:
        story = Story()
        calls = [make_call(i) for i in range(2)]
        story.submit(*calls)
        story.box.undecodable(story.lane, 2)
        assert story.box.gave_up(calls[0])
        assert not story.box.gave_up(calls[0])
        assert story.pump() == [("send", 0, [1])]

    def test_an_undecodable_constructor_comes_again_before_all(self) -> None:
        story = Story(is_ready=False)
        story.submit(make_call(0))
        story.ready()
        assert story.box.undecodable(story.lane, 1) is story.creation
        story.box.resubmitted(story.creation)
        assert story.pump() == [("send", 0, ["create", 0])]

    def test_an_undecodable_constructor_when_the_process_dies(self) -> None:
        story = Story(is_ready=False, restarts=1)
        story.submit(make_call(0))
        story.ready()
        story.box.undecodable(story.lane, 1)
        assert story.die(claimed=1) == [("start", 1)]
        story.box.resubmitted(story.creation)  # too late
        assert story.ready() == [("send", 1, ["create", 0])]

    def test_a_constructor_that_is_given_up_is_let_go_by_who_says_so(self) -> None:
        story = Story(is_ready=False)
        story.ready()
        story.box.undecodable(story.lane, 1)
        assert story.box.gave_up(story.creation)
        story.box.creation_failed()
        assert story.carry_out() == [("dead", []), ("kill_worker", 0)]


class TestUnwanted:
    def test_cancelling_what_was_not_sent(self) -> None:
        story = Story(window=1)
        calls = [make_call(i) for i in range(2)]
        story.submit(*calls)
        assert story.box.cancel_asked(calls[0], claimed=0) is False
        assert story.box.cancel_asked(calls[1], claimed=0) is True
        assert [call.state for call in calls] == [ASSIGNED, FINISHED]

    def test_cancelling_what_cannot_be_decoded(self) -> None:
        story = Story()
        calls = [make_call(i) for i in range(2)]
        story.submit(*calls)
        story.box.undecodable(story.lane, 2)
        assert story.box.cancel_asked(calls[0], claimed=0) is True
        story.box.resubmitted(calls[0])
        assert story.pump() == [("send", 0, [1])]

    def test_a_direct_call_is_not_cancelled(self) -> None:
        story = Story()
        call = make_call(0)
        assert story.box.cancel_asked(call, claimed=0) is False
        assert call.state == PENDING

    def test_cancelling_all(self) -> None:
        story = Story(window=1)
        story.submit(*(make_call(i) for i in range(3)))
        gone, is_all = story.box.cancel_all_asked(lambda lane: 0)
        assert ([call.index for call in gone], is_all) == ([1, 2], True)

    def test_dropping(self) -> None:
        story = Story(window=1)
        story.submit(make_call(0), make_call(1), make_call(2, waiting=1))
        assert [call.index for call in story.box.dropped(lambda call: call.index != 1)] == [2, 0]
        assert story.carry_out() == [("interrupt", 0, [0])]
        assert story.box.dropped(lambda call: call.index != 1) == []
        assert story.finish(2) is None
        assert story.pump() == [("send", 0, [1])]

    def test_the_constructor_is_not_dropped(self) -> None:
        story = Story(is_ready=False)
        story.ready()
        assert story.box.dropped(lambda call: True) == []

    def test_out_of_time(self) -> None:
        story = Story(restarts=1)
        call = make_call(0)
        story.submit(call)
        story.box.expired(call)
        assert story.carry_out() == [("kill", 0, 0)]
        assert story.die(claimed=2) == [("start", 1)]
        assert story.ready() == [("send", 1, ["create"])]


# -- the log ----------------------------------------------------------------------------------------


class TestLog:
    def story(self, done: int = 0, **arguments: Any) -> Story:
        story = Story(**{"restarts": ALWAYS, "keeps_log": True, **arguments})
        calls = [make_call(i) for i in range(done)]
        story.submit(*calls)
        for call in calls:
            story.pump()
            assert story.finish(call.sequence) is call
        return story

    def test_what_was_done_is_done_again_before_anything_else(self) -> None:
        story = self.story(2)
        story.submit(make_call(2), make_call(3))
        assert story.die(claimed=4) == [("start", 1)]
        assert story.ready() == [("send", 1, ["create", 0, 1, 2, 3])]

    def test_what_was_delivered_is_not_delivered_again(self) -> None:
        story = self.story(1)
        (call,) = story.box.log
        story.die(claimed=2)
        story.ready()
        story.finish(1)
        assert story.finish(2) is None
        assert (list(story.box.log), story.box.replaying) == ([call], set())

    def test_a_death_while_it_is_done_again(self) -> None:
        """0 is done again, 1 on its way, 2 and 3 beyond the window; 4 was never sent."""
        story = self.story(4, window=2)
        story.submit(make_call(4, waiting=1))
        story.die(claimed=5)
        assert story.ready() == [("send", 1, ["create", 0])]
        story.finish(1)
        story.pump()
        story.finish(2)
        assert [call.index for call in story.box.log] == [0]
        assert story.die(claimed=3) == [("start", 1)]
        assert story.ready() == [("send", 2, ["create", 0])]
        story.finish(1)
        assert story.pump() == [("send", 2, [1])]
        assert sorted(call.index for call in story.box.replaying) == [0, 1, 2, 3]

    def test_from_the_last_checkpoint_on(self) -> None:
        story = self.story(2)
        assert story.checkpoint() == [("forget", [0, 1])]
        story.submit(make_call(2))
        story.finish(4)
        story.die(claimed=4)
        assert story.ready() == [("send", 1, ["create", "restore", 2])]
        assert story.checkpoint() == [("forget", ["restore"])]

    def test_a_checkpoint_that_comes_after_the_end(self) -> None:
        story = self.story(1)
        story.box.killed(False)
        assert story.carry_out() == [("dead", []), ("forget", [0, "create"]), ("kill_worker", 0)]
        assert story.checkpoint() == [("forget", ["restore"])]

    def test_the_end_while_it_is_done_again_forgets_it_all_once(self) -> None:
        story = self.story(2)
        story.checkpoint()
        story.submit(make_call(2), make_call(3))
        for sequence in (4, 5):
            story.finish(sequence)
        story.die(claimed=5)
        story.submit(make_call(4))
        story.ready()
        for sequence in (1, 2, 3):
            story.finish(sequence)
        story.box.killed(False)
        dead, forget, kill = story.carry_out()
        assert (dead, kill) == (("dead", [4]), ("kill_worker", 1))
        assert sorted(forget[1], key=str) == [2, 3, "create", "restore"]

    def test_a_small_call_does_not_overtake_a_large_one_that_is_done_again(self) -> None:
        story = self.story()
        half = limits.PREFETCH_BYTES // 2
        calls = [make_call(0, 1), make_call(1, 2, 0, half), make_call(2, 2, 0, half), make_call(3, 1)]
        for call in calls:
            story.submit(call)
            story.finish(call.sequence)
        story.submit(make_call(4, 1, waiting=1))
        story.die(claimed=5)
        assert story.ready() == [("send", 1, ["create", 0, 1])]

    def test_nobody_can_cancel_what_is_done_again(self) -> None:
        story = self.story(2)
        calls = list(story.box.log)
        story.die(claimed=3)
        assert story.box.cancel_asked(calls[0], claimed=0) is False
        assert story.box.dropped(lambda call: True) == []
        assert story.ready() == [("send", 1, ["create", 0, 1])]
        assert story.box.dropped(lambda call: True) == []

    def test_what_is_done_again_may_come_back(self) -> None:
        story = self.story(2)
        calls = list(story.box.log)
        story.die(claimed=3)
        story.submit(make_call(2))
        story.ready()
        assert story.box.undecodable(story.lane, 2) is calls[0]
        story.box.resubmitted(calls[0])
        assert story.pump() == [("send", 1, [0, 1, 2])]

    def test_it_cannot_be_brought_back_without_one_of_its_calls(self) -> None:
        story = self.story(1)
        (call,) = story.box.log
        story.die(claimed=2)
        story.ready()
        story.box.undecodable(story.lane, 2)
        assert not story.box.gave_up(call)  # it was delivered long ago
        assert story.carry_out() == [("dead", []), ("forget", [0, "create"]), ("kill_worker", 1)]

    def test_a_call_that_was_dropped_when_it_ran_is_done_again_if_it_holds_nothing(self) -> None:
        story = self.story()
        calls = [make_call(0), make_call(1)]
        calls[1].stored = object()
        story.submit(*calls)
        story.box.dropped(lambda call: True)
        story.finish(2)
        story.finish(3)
        assert list(story.box.log) == [calls[0]]

    def test_a_call_that_kills_is_not_made_for_ever(self) -> None:
        story = self.story(1)
        story.submit(make_call(1))
        for _ in range(limits.REPLAY_ATTEMPTS):
            story.finish(1)
            assert story.die(claimed=3) == [("start", 1)]
            story.ready()
        story.finish(1)
        assert story.die(claimed=3) == [("lost", [1]), ("start", 1)]

    def test_what_may_be_sent_again_is_kept(self) -> None:
        call = make_call(0)
        assert self.story().box.may_repeat(call)
        story = Story()
        assert not story.box.may_repeat(call)
        assert story.box.may_repeat(story.creation)
        story.box.killed(False)
        assert not story.box.may_repeat(story.creation)

    def test_its_processes_are_not_lent(self) -> None:
        assert self.story().box.lend_idle() == []


# -- direct calls -----------------------------------------------------------------------------------


class TestLending:
    def test_an_idle_one_is_lent_and_comes_back_when_it_is_needed(self) -> None:
        story = Story()
        assert story.box.lend_idle() == [story.lane]
        assert story.lane.state == LENT
        assert story.submit(make_call(0)) == [("reclaim", 0)]
        assert story.pump() == []
        story.box.lane_came_back(story.lane)
        assert story.pump() == [("send", 0, [0])]

    def test_not_while_it_has_work_or_starts_or_closes(self) -> None:
        story = Story(is_ready=False)
        assert story.box.lend_idle() == []
        story.ready()
        assert story.box.lend_idle() == []
        story.finish(1)
        story.box.submitted(make_call(0, waiting=1))
        assert story.box.lend_idle() == []
        assert Story(is_concurrent=True).box.lend_idle() == []

    def test_a_direct_call_goes_on_as_one_like_any_other(self) -> None:
        story = Story(restarts=1)
        story.box.lend_idle()
        call = make_call(0)
        call.sequence = story.lane.next_sequence
        story.lane.next_sequence += 1
        story.box.lane_came_back(story.lane)
        story.box.taken_over(story.lane, call)
        assert story.submit(make_call(1)) == [("send", 0, [1])]
        assert story.die(claimed=2) == [("lost", [0]), ("start", 1)]

    def test_closing_wants_it_back(self) -> None:
        story = Story()
        story.box.lend_idle()
        story.box.closing()
        assert story.pump() == [("reclaim", 0)]
        story.box.lane_came_back(story.lane)
        assert story.carry_out() == [("retire", 0)]

    def test_one_that_is_given_up_gets_nothing_more(self) -> None:
        story = Story(restarts=1)
        story.box.lane_given_up(story.lane)
        assert story.submit(make_call(0)) == []
        assert story.lane.state == RETIRING
        assert story.die(claimed=1) == [("start", 1)]

    def test_it_gets_no_help_and_gives_no_slot_back(self) -> None:
        story = Story()
        story.submit(make_call(0))
        story.box.lane_waits(story.lane)
        story.box.lane_blocked(story.lane)
        assert not story.box.help_wanted(story.lane, make_call(1))
        assert (story.box.blocked, story.box.demand) == (0, (1, 0))


# -- illegal events ---------------------------------------------------------------------------------


def snapshot(box: Mailbox) -> Any:
    return (
        box.state,
        [(call.index, call.state, call.order) for call in (*box.ready, *box.away, *box.log)],
        [(lane.worker, lane.state, list(lane.inflight), lane.waits, lane.revoked_from) for lane in box.lanes],
        (box.waiting, box.busy, box.asked, box.restarts_left, box.deaths, box.failures_in_a_row, len(box.effects)),
    )


def illegal_events(story: Story, call: Task) -> dict[str, Callable[[], object]]:
    return {
        "submit what was sent": lambda: story.box.submitted(call),
        "a dead worker dies": lambda: story.box.worker_died(story.lanes[0], 0),
        "a dead worker is ready": lambda: story.box.worker_ready(story.lanes[0]),
    }


@pytest.mark.parametrize("event", illegal_events(Story(), make_call(0)))
def test_an_illegal_event_raises_and_leaves_the_state_untouched(event: str) -> None:
    story = Story(restarts=1)
    story.die(claimed=1)
    story.ready()
    call = make_call(7)
    story.submit(call)
    before = snapshot(story.box)
    with pytest.raises(InternalError, match="worker_died"):  # what happened before is told
        illegal_events(story, call)[event]()
    assert snapshot(story.box) == before
    story.box.validate()


def late_events(story: Story, call: Task) -> dict[str, Callable[[], object]]:
    return {
        "resubmitted": lambda: story.box.resubmitted(call),
        "gave up": lambda: story.box.gave_up(call) or None,
        "withdrawn": lambda: story.box.withdrawn(call),
        "dependencies there": lambda: story.box.dependencies_there(call),
        "finished": lambda: story.finish(99),
        "returned": lambda: story.box.returned(story.lane, [99]),
        "undecodable": lambda: story.box.undecodable(story.lane, 99),
        "lane came back": lambda: story.box.lane_came_back(story.lane),
        "revocation settled": lambda: story.box.revocation_settled(story.lane, 0),
        "lane reopened": lambda: story.box.lane_reopened(story.lane),
        "tick": lambda: story.box.tick(),
    }


@pytest.mark.parametrize("event", late_events(Story(), make_call(0)))
def test_an_event_that_comes_too_late_changes_nothing(event: str) -> None:
    story = Story()
    call = make_call(7)
    story.submit(call)
    before = snapshot(story.box)
    assert late_events(story, call)[event]() is None
    assert snapshot(story.box) == before


# -- a dumb model under random events ---------------------------------------------------------------


class Process:
    """An actor's process: it takes its calls in order. What it says arrives later."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.unread: deque[Any] = deque()  # calls, and what else it was sent
        self.running: Task | None = None
        self.is_fresh = False  # it was begun just now
        self.claimed = 0
        self.waits = False
        self.is_skipping = False
        self.unheard = 0  # how often it has given back calls and was not told yet that its owner knows
        self.done: list[int] | None = None  # what the actor has done; None before its constructor has returned
        self.calls_since_checkpoint = 0
        self.reports: deque[tuple[Any, ...]] = deque()
        self.is_told_to_exit = False
        self.history: list[int] = []  # what its owner knew when it began that it should do first
        self.direct: Task | None = None  # what a caller has it do
        self.is_direct_done = False


class Calling(RuleBasedStateMachine):
    """Three callers. The state of the actor is the list of the calls that it has done."""

    @initialize(
        restarts=st.sampled_from([0, 3, ALWAYS, ALWAYS, ALWAYS]),
        task_retries=st.sampled_from([0, 1, ALWAYS]),
        keeps_log=st.booleans(),
        window=st.sampled_from([1, 3, 100]),
        checkpoint_every=st.sampled_from([0, 2, 5]),
    )
    def start(self, restarts: int, task_retries: int, keeps_log: bool, window: int, checkpoint_every: int) -> None:
        self.creation = make_call(CREATION)
        self.creation.stored = object()
        self.box = Mailbox(
            self.creation, restarts=restarts, task_retries=task_retries, keeps_log=keeps_log, window=window
        )
        self.task_retries = task_retries
        self.checkpoint_every = checkpoint_every
        self.processes: list[Process] = []
        self.numbers = itertools.count()
        self.calls: list[Task] = []
        self.ended: Counter[int] = Counter()
        self.delivered: list[int] = []
        self.first_begun: list[int] = []
        self.begun: Counter[int] = Counter()
        self.forgotten: Counter[Task] = Counter()
        self.let_go: set[int] = set()  # indexes of calls whose arguments are gone
        self.away: list[Task] = []
        self.saved: dict[Task, list[int]] = {}  # by the call that restores it
        self.restarts: list[Task] = []  # those that the owner was told of
        self.checkpoint: list[int] = []  # what had been done
        self.since: list[int] = []  # what was done after that and is logged
        self.deaths_without_blame = 0
        self.is_dead = False
        self.box.refill()
        self.settle()

    # -- the owner's side

    def settle(self) -> None:
        self.box.pump()
        while self.box.effects:
            effects, self.box.effects = self.box.effects, []
            for name, *rest in effects:
                getattr(self, "do_" + name)(*rest)
            self.box.validate()
            self.box.pump()
        self.box.validate()

    def process_of(self, lane: Lane) -> Process:
        return next(process for process in self.processes if process.lane is lane)

    def do_start(self, count: int) -> None:
        assert count == 1 and not self.is_dead
        process = Process(self.box.worker_started(f"p{next(self.numbers)}"))
        process.history = [*self.checkpoint, *self.since]
        self.processes.append(process)

    def do_send(self, lane: Lane, calls: list[Task]) -> None:
        assert not self.is_dead
        if lane.state != LANE_DEAD:
            for call in calls:
                assert call.index not in self.let_go, f"call {call.index} is sent, and its arguments are gone"
                assert not self.forgotten[call], f"call {call.index} is sent, and it was forgotten"
                self.process_of(lane).unread.append((call.sequence, call))

    def do_retire(self, lane: Lane) -> None:
        self.process_of(lane).is_told_to_exit = True

    def do_interrupt(self, lane: Lane, calls: list[Task]) -> None:
        pass

    def do_kill(self, lane: Lane, call: Task) -> None:
        pass  # it may die at any time anyhow

    def do_kill_worker(self, lane: Lane) -> None:
        process = self.process_of(lane)
        process.is_told_to_exit = True

    def do_reclaim(self, lane: Lane) -> None:
        process = self.process_of(lane)
        if process.direct is None:
            self.box.lane_came_back(lane)

    def do_lost(self, calls: list[Task]) -> None:
        for call in calls:
            self.end(call)

    def do_dead(self, calls: list[Task]) -> None:
        assert not self.is_dead
        self.is_dead = True
        for call in calls:
            self.end(call)

    def do_forget(self, calls: list[Task]) -> None:
        for call in calls:
            self.forgotten[call] += 1
            assert self.forgotten[call] == 1, f"call {call.index} is forgotten twice"
            if call.index >= 0 and call.stored is not None:
                assert call.index not in self.let_go, f"what call {call.index} holds is let go twice"
                self.let_go.add(call.index)

    def end(self, call: Task, is_delivered: bool = False) -> None:
        assert call.state == FINISHED
        self.ended[call.index] += 1
        assert self.ended[call.index] == 1, f"call {call.index} ended twice"
        if is_delivered:
            self.delivered.append(call.index)
        if not (is_delivered and self.box.may_repeat(call)) and call.stored is not None:
            self.let_go.add(call.index)

    # -- calls

    @rule(
        caller=st.integers(0, 2), count=st.integers(1, 3), waits=st.sampled_from([0] * 7 + [1]), is_large=st.booleans()
    )
    def call(self, caller: int, count: int, waits: int, is_large: bool) -> None:
        for number in range(count):
            size_bytes = limits.PREFETCH_BYTES // 2 if is_large else 10
            call = make_call(len(self.calls), caller, waits if not number else 0, size_bytes)
            call.envelope = Envelope(caller, call.envelope.waiting if call.envelope else 0)
            call.stored = object() if is_large else None
            self.calls.append(call)
            if self.box.is_broken or self.box.is_closing:
                call.state = FINISHED  # refused
                self.end(call)
            else:
                self.box.submitted(call)
        self.settle()

    def waiting_calls(self) -> list[Task]:
        return [call for call in self.box.ready if call.envelope.waiting]

    @precondition(lambda self: self.waiting_calls())
    @rule(data=st.data(), is_there=st.booleans())
    def dependency_comes_or_fails(self, data: st.DataObject, is_there: bool) -> None:
        for call in data.draw(st.lists(st.sampled_from(self.waiting_calls()), min_size=1, unique=True)):
            call.envelope.waiting = 0
            if not is_there:
                self.box.withdrawn(call)
                call.state = FINISHED
                self.end(call)
            self.box.dependencies_there(call)
        self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), luck=st.integers(0, 2))
    def cancel(self, data: st.DataObject, luck: int) -> None:
        call = data.draw(st.sampled_from(self.calls))
        if not luck and self.box.cancel_asked(call, 0):
            self.end(call)
            self.settle()

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), luck=st.integers(0, 2))
    def drop(self, data: st.DataObject, luck: int) -> None:
        sent = [call for lane in self.box.lanes for call in lane.inflight if call.index >= 0]
        unwanted = data.draw(st.sampled_from(sent or self.calls))
        if not luck:
            for call in self.box.dropped(lambda call: call is unwanted):
                self.end(call)
            self.settle()

    @precondition(lambda self: any(process.running for process in self.processes))
    @rule(luck=st.integers(0, 3))
    def time_is_up(self, luck: int) -> None:
        for process in self.processes:
            call = process.running
            if not luck and call and call.state == ASSIGNED and call.index >= 0 and call is not process.direct:
                self.box.expired(call)
                self.end(call)
                self.settle()

    # -- direct calls

    @rule(caller=st.integers(0, 2), is_used=st.booleans())
    def lend(self, caller: int, is_used: bool) -> None:
        """To a caller, who may have it do something; it idles by then."""
        self.works(8, True)
        lent = self.box.lend_idle()
        assert not any(lane.inflight for lane in lent)
        for process in self.processes:
            if process.lane in lent and is_used and not process.is_told_to_exit:
                self.call_directly(process, caller)

    def call_directly(self, process: Process, caller: int) -> None:
        call = make_call(len(self.calls))
        call.envelope = Envelope(caller, 0)
        self.calls.append(call)
        call.sequence = process.lane.next_sequence
        process.lane.next_sequence += 1
        process.direct = call
        process.unread.append((call.sequence, call))

    @precondition(lambda self: any(process.direct for process in self.processes))
    @rule(is_broken=st.sampled_from([False, False, False, True]))
    def direct_call_ends_or_is_handed_over(self, is_broken: bool) -> None:
        for process in [process for process in self.processes if process.direct]:
            if process.is_direct_done and not is_broken:
                self.read_direct_answer(process)
            else:
                self.hand_over(process, is_broken)
        self.settle()

    def read_direct_answer(self, process: Process) -> None:
        call, process.direct, process.is_direct_done = process.direct, None, False
        assert call is not None
        call.state = FINISHED
        self.end(call, is_delivered=True)
        if process.lane.is_wanted:
            self.box.lane_came_back(process.lane)

    def hand_over(self, process: Process, is_broken: bool = False) -> None:
        call, process.direct = process.direct, None
        assert call is not None
        is_done, process.is_direct_done = process.is_direct_done, False
        self.box.lane_came_back(process.lane)
        if is_broken:
            call.state = FINISHED
            self.end(call)
            process.running = None
            process.unread.clear()
            process.is_told_to_exit = True
            self.box.lane_given_up(process.lane)
        elif self.box.is_broken:
            call.state = FINISHED
            self.end(call)
        else:
            self.box.taken_over(process.lane, call)
            if is_done:
                process.reports.append(("finished", call.sequence, call))

    # -- the process's side

    @precondition(lambda self: self.processes)
    @rule(steps=st.integers(1, 8), is_heard=st.booleans())
    def works(self, steps: int, is_heard: bool) -> None:
        for process in list(self.processes):
            self.box.worker_ready(process.lane)
            self.settle()
            for _ in range(steps):
                self.step(process)
            while process.reports and is_heard:
                self.hear(process)
        self.settle()

    def step(self, process: Process) -> None:
        """Begin what is next, or end what runs."""
        if process.waits:
            self.step_in_wait(process)
        elif process.running is not None:
            self.finish(process)
        elif process.unread:
            what, call = process.unread.popleft()
            if what == "resume":
                self.resume(process)
            elif process.unheard and what != "waited":
                self.give_back(process, [what])
            elif what != "waited" and not process.is_skipping:
                self.begin(process, what, call)

    def resume(self, process: Process) -> None:
        if process.is_skipping:
            process.is_skipping = False
        else:
            process.unheard -= 1

    def give_back(self, process: Process, sequences: list[int]) -> None:
        process.reports.append(("returned", sequences, None))
        process.unheard += 1

    def begin(self, process: Process, sequence: int, call: Task) -> None:
        process.claimed = sequence
        process.running = call
        process.is_fresh = True
        assert (process.done is None) == (call is self.creation), "the constructor comes first, and once"
        if call.index < 0:
            return
        if call.index not in self.first_begun:
            self.first_begun.append(call.index)
            self.check_order(call)
        if not self.ended[call.index]:
            self.begun[call.index] += 1
            if not self.box.keeps_log and self.task_retries != ALWAYS:
                excused = 0 if not self.task_retries else self.deaths_without_blame
                assert self.begun[call.index] <= self.task_retries + 1 + excused

    def check_order(self, call: Task) -> None:
        """Nothing that its caller has made before is still to come."""
        for other in self.calls[: call.index]:
            if other.envelope.caller == call.envelope.caller and not self.ended[other.index]:
                assert other.index in self.first_begun, f"call {call.index} has overtaken {other.index}"

    def finish(self, process: Process) -> None:
        call, process.running = process.running, None
        assert call is not None
        if call is self.creation:
            process.done = []
        elif call.index == RESTART:
            assert process.done == []
            process.done = list(self.saved[call])
        else:
            assert process.done is not None
            process.done.append(call.index)
            if self.box.keeps_log:
                length = min(len(process.done), len(process.history))
                assert process.done[:length] == process.history[:length]
        if call is process.direct:
            process.is_direct_done = True
        else:
            process.reports.append(("finished", call.sequence, call))
        if call.index >= 0:
            process.calls_since_checkpoint += 1
            if process.calls_since_checkpoint == self.checkpoint_every:
                process.calls_since_checkpoint = 0
                restart = make_call(RESTART)
                self.saved[restart] = list(process.done or ())
                process.reports.append(("checkpoint", restart, None))

    @rule(caller=st.integers(0, 2), is_heard=st.booleans())
    def waits(self, caller: int, is_heard: bool) -> None:
        """Its call waits for something: what is queued behind goes back, and what is still on its way will."""
        self.get_going(caller)
        for process in self.processes:
            if self.may_wait(process):
                process.waits = True
                process.is_fresh = False
                self.return_unread(process)
                process.reports.append(("want", None, None))
        self.call(caller, 2, 0, False)
        while self.processes and self.processes[0].reports and is_heard:
            self.hear(self.processes[0])
            self.settle()

    def get_going(self, caller: int) -> None:
        """Random events alone seldom bring it to where it runs something, with more to come."""
        if not any(self.may_wait(process) for process in self.processes):
            self.call(caller, 3, 0, caller == 2)
        for process in list(self.processes):
            self.box.worker_ready(process.lane)
            self.settle()
            for _ in range(6):
                if process.running is None or process.running.index < 0:
                    self.step(process)

    def may_wait(self, process: Process) -> bool:
        return process.running is not None and process.direct is None and not process.waits

    def return_unread(self, process: Process) -> None:
        back = [sequence for sequence, call in process.unread if call is not None]
        process.unread = deque(entry for entry in process.unread if entry[1] is None)
        if back:
            self.give_back(process, back)

    def step_in_wait(self, process: Process) -> None:
        self.return_unread(process)
        while process.unread:
            what, _ = process.unread.popleft()
            if what == "waited":
                process.waits = False
            else:
                self.resume(process)

    @precondition(lambda self: any(process.waits and process.lane.waits for process in self.processes))
    @rule()
    def gives_up_waiting(self) -> None:
        """It has not read what it was sent meanwhile."""
        for process in self.processes:
            if process.waits and process.lane.waits:
                process.waits = False
                process.reports.append(("unwant", None, None))

    @precondition(lambda self: any(process.lane.waits for process in self.processes))
    @rule()
    def wait_is_over(self) -> None:
        for process in self.processes:
            if process.lane.waits:
                self.end_wait(process)
        self.settle()

    def end_wait(self, process: Process) -> None:
        self.box.lane_continues(process.lane)
        process.unread.append(("waited", None))

    @rule(caller=st.integers(0, 2))
    def cannot_decode(self, caller: int) -> None:
        self.get_going(caller)
        for process in self.processes:
            call = process.running
            if call is not None and self.may_be_undecodable(process):
                if call.index >= 0 and not self.ended[call.index]:
                    self.begun[call.index] -= 1
                if call.index in self.first_begun and not self.ended[call.index]:
                    self.first_begun.remove(call.index)
                process.running = None
                process.is_skipping = True
                process.reports.append(("undecodable", call.sequence, call))

    def may_be_undecodable(self, process: Process) -> bool:
        call = process.running
        return call is not None and process.is_fresh and process.direct is None and call.attempts == 0

    @precondition(lambda self: any(process.reports for process in self.processes))
    @rule(data=st.data())
    def reports_arrive(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([process for process in self.processes if process.reports]))
        for _ in range(data.draw(st.integers(1, len(process.reports)))):
            self.hear(process)
            if data.draw(st.booleans()):
                self.settle()

    def hear(self, process: Process) -> None:
        name, what, call = process.reports.popleft()
        lane = process.lane
        if name == "finished":
            answered = self.box.finished(lane, what, 1)
            if answered is not None and answered is not self.creation and answered.index >= 0:
                self.end(answered, is_delivered=True)
            if self.box.log and self.box.log[-1] is call and call.index not in self.since:
                self.since.append(call.index)
        elif name == "returned":
            self.box.returned(lane, what)
            process.unread.append(("resume", None))
        elif name == "unwant":
            if lane.waits:  # else what it waited for is on its way
                self.box.lane_continues(lane)
        elif name == "checkpoint":
            self.since = [index for index in self.since if index not in self.saved[what]]
            self.checkpoint = self.saved[what]
            self.restarts.append(what)
            self.box.checkpointed(what)
        elif name == "want":
            self.box.lane_waits(lane)
        else:
            task = self.box.undecodable(lane, what)
            process.unread.append(("resume", None))
            if task is not None:
                self.away.append(task)

    @precondition(lambda self: self.away)
    @rule(data=st.data(), can_be_decoded=st.sampled_from([True, True, False]))
    def undecodable_call_is_seen_to(self, data: st.DataObject, can_be_decoded: bool) -> None:
        call = data.draw(st.sampled_from(self.away))
        self.away.remove(call)
        if can_be_decoded:
            self.box.resubmitted(call)
        elif self.box.gave_up(call):
            if call is self.creation:
                self.forgotten[call] += 1  # by whoever ends it
                self.box.creation_failed()
            else:
                self.end(call)
        self.settle()

    # -- deaths

    @rule(luck=st.integers(0, 3), is_charged=st.booleans(), caller=st.integers(0, 2), steps=st.integers(0, 5))
    def dies(self, luck: int, is_charged: bool, caller: int, steps: int) -> None:
        if luck < 2:
            self.get_going(caller)
            if steps and self.processes:
                self.works(steps, bool(luck))
            if self.processes:
                self.bury(self.processes[0], is_charged)
                self.settle()

    @precondition(lambda self: any(self.may_leave(process) for process in self.processes))
    @rule()
    def exits(self) -> None:
        for process in [process for process in self.processes if self.may_leave(process)]:
            self.bury(process, True)
        self.settle()

    def may_leave(self, process: Process) -> bool:
        return process.is_told_to_exit and (self.is_dead or (not process.unread and not process.running))

    def bury(self, process: Process, is_charged: bool) -> None:
        if process.direct is not None:
            self.hand_over(process)
        elif process.lane.state == LENT:
            self.box.lane_came_back(process.lane)
        while process.reports:
            self.hear(process)
        if not is_charged:
            self.deaths_without_blame += 1
        self.box.worker_died(process.lane, process.claimed, is_charged)
        for call in self.box.replaying:
            assert self.ended[call.index]
        self.settle()  # before the process is forgotten, as the owner does
        self.processes.remove(process)

    @rule(luck=st.integers(0, 40), may_restart=st.booleans(), caller=st.integers(0, 2))
    def kill(self, luck: int, may_restart: bool, caller: int) -> None:
        if luck < (10 if may_restart else 2):
            self.get_going(caller)
            self.box.killed(may_restart)
            self.settle()

    @rule(luck=st.integers(0, 20))
    def close(self, luck: int) -> None:
        if not luck:
            self.box.closing()
            self.settle()

    # -- what always holds

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "box"):
            return
        self.box.validate()
        self.settle()
        for lane in self.box.lanes:
            starts = sum(1 for call in lane.inflight if call.index < 0)
            assert len(lane.inflight) <= self.box.window + starts
            assert lane.bytes_inflight <= limits.PREFETCH_BYTES + 100
        assert self.is_dead == (self.box.state == DEAD) == self.box.is_broken
        assert len(self.processes) <= 1
        if self.is_dead:
            assert not self.box.ready and not self.box.has_work
            in_directs = [process.direct for process in self.processes]
            for call in self.calls:
                assert self.ended[call.index] == 1 or call in in_directs, f"call {call.index} has no end"
                assert call.stored is None or call.index in self.let_go, f"what call {call.index} holds is kept"
            assert all(self.forgotten[call] == 1 for call in (self.creation, *self.restarts))

    def teardown(self) -> None:
        """Healed: everything that was called has one end."""
        if not hasattr(self, "box"):
            return
        for _ in range(3000):
            if all(self.ended[call.index] for call in self.calls):
                break
            for call in self.waiting_calls():
                call.envelope.waiting = 0
                self.box.dependencies_there(call)
            for call in self.away:
                self.box.resubmitted(call)
            self.away.clear()
            for process in list(self.processes):
                self.box.worker_ready(process.lane)
                if process.lane.waits:
                    self.end_wait(process)
                self.step(process)
                if process.is_direct_done:
                    self.read_direct_answer(process)
                while process.reports:
                    self.hear(process)
                if self.may_leave(process):
                    self.bury(process, True)
            self.settle()
        lost = [call.index for call in self.calls if not self.ended[call.index]]
        assert not lost, f"calls {lost} never ended"


TestCalling = Calling.TestCase
TestCalling.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
