"""The task graph, references and actors against a dumb model that runs everything in this process.

The machine submits tasks whose arguments are references, puts, passes on, drops, gets, cancels, kills workers and
actors, in any order; what comes must be what the model has, or a failure that what was done explains. At the end
nothing is left.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule
from leftovers import check_that_nothing_is_left

import scaleout
from scaleout import errors
from scaleout._runtime.base import references

LIMIT_S = 60.0


@scaleout.remote(max_retries=-1)
def total(*numbers: int) -> int:
    return sum(numbers)


@scaleout.remote(max_retries=-1)
def total_of_refs(refs: list[Any]) -> int:
    return sum(scaleout.get(refs))


@scaleout.remote(max_retries=-1)
def wrapped(ref: list[Any], number: int) -> list[Any]:
    return [ref[0], scaleout.put(number), total.remote(number, ref[0])]


@scaleout.remote(max_retries=-1)
def failing(number: int) -> int:
    raise KeyError(number)


@scaleout.remote(num_returns=2, max_retries=-1)
def halves(number: int) -> tuple[int, int]:
    return number // 2, number - number // 2


@scaleout.remote(on_failure="replay")
class Account:
    def __init__(self, start: int) -> None:
        self.amount = start
        self.kept: list[Any] = []

    def add(self, number: int) -> int:
        self.amount += number
        return self.amount

    def keep(self, refs: list[Any]) -> int:
        self.kept = refs
        return sum(scaleout.get(refs))

    def give(self) -> list[Any]:
        return self.kept


class Value:
    """A reference and what the model says of it: the number, or the kind of failure; either, if it was cancelled."""

    def __init__(self, ref: Any, expected: Any) -> None:
        self.ref = ref
        self.expected = expected
        self.may_be_cancelled: set[int] = set()
        self.is_call = False


class Actor:
    def __init__(self, handle: Any, amount: Any) -> None:
        self.handle = handle
        self.amount = amount
        self.kept: list[Value] = []


CANCELLED = "cancelled"


def joined(values: list[Value], number: Any) -> Value:
    """What depends on these."""
    failed = [value.expected for value in values if isinstance(value.expected, str)]
    made = Value(None, failed[0] if failed else number)
    for value in values:
        made.may_be_cancelled |= value.may_be_cancelled
    if len(set(failed)) > 1:
        made.expected = "any"
    return made


def of_call(value: Value) -> Value:
    value.is_call = True
    return value


class Graph(RuleBasedStateMachine):
    values = Bundle("values")
    actors = Bundle("actors")

    @initialize()
    def begin(self) -> None:
        scaleout.shutdown()
        scaleout.init(num_cpus=2)
        self.cancelled = 0

    @rule(target=values, number=st.integers(0, 100), is_large=st.booleans())
    def put(self, number: int, is_large: bool) -> Value:
        return Value(scaleout.put(Big(number) if is_large else number), number)

    @rule(target=values, of=st.lists(values, max_size=4), number=st.integers(0, 100))
    def submit(self, of: list[Value], number: int) -> Value:
        made = joined(of, number + sum(v.expected for v in of if not isinstance(v.expected, str)))
        made.ref = total.remote(number, *[value.ref for value in of])
        return made

    @rule(target=values, of=st.lists(values, max_size=4))
    def submit_with_refs_inside(self, of: list[Value]) -> Value:
        made = joined(of, sum(v.expected for v in of if not isinstance(v.expected, str)))
        made.ref = total_of_refs.remote([value.ref for value in of])
        return made

    @rule(target=values, of=values, number=st.integers(0, 100))
    def wrap(self, of: Value, number: int) -> Any:
        inner = scaleout.get(wrapped.remote([of.ref], number), timeout=LIMIT_S)
        same, put = joined([of], of.expected), Value(inner[1], number)
        same.ref = inner[0]
        more = joined([of], number if isinstance(of.expected, str) else number + of.expected)
        more.ref = inner[2]
        return multiple(same, put, more)

    @rule(target=values, of=values)
    def halve(self, of: Value) -> Any:
        number = 0 if isinstance(of.expected, str) else of.expected
        first, second = joined([of], number // 2), joined([of], number - number // 2)
        first.ref, second.ref = halves.remote(of.ref)
        return multiple(first, second)

    @rule(target=values, number=st.integers(0, 100))
    def fail(self, number: int) -> Value:
        return Value(failing.remote(number), "KeyError")

    @rule(target=actors, start=st.integers(0, 100))
    def make_actor(self, start: int) -> Actor:
        return Actor(Account.remote(start), start)

    @rule(target=values, actor=actors, number=st.integers(0, 100))
    def call(self, actor: Actor, number: int) -> Value:
        if actor.amount != "ActorDiedError":
            actor.amount += number
        return of_call(Value(actor.handle.add.remote(number), actor.amount))

    @rule(target=values, actor=actors, of=st.lists(values, min_size=1, max_size=3))
    def keep(self, actor: Actor, of: list[Value]) -> Value:
        if actor.amount == "ActorDiedError":
            return of_call(Value(actor.handle.keep.remote([value.ref for value in of]), actor.amount))
        made = joined(of, sum(v.expected for v in of if not isinstance(v.expected, str)))
        made.ref = actor.handle.keep.remote([value.ref for value in of])
        actor.kept = [*of]
        return of_call(made)

    @rule(target=values, actor=actors)
    def give(self, actor: Actor) -> Any:
        if actor.amount == "ActorDiedError":
            return multiple()
        found = scaleout.get(actor.handle.give.remote(), timeout=LIMIT_S)
        assert len(found) == len(actor.kept)
        made = []
        for ref, value in zip(found, actor.kept, strict=True):
            again = joined([value], value.expected)
            again.ref = ref
            made.append(again)
        return multiple(*made)

    @rule(value=values)
    def get(self, value: Value) -> None:
        try:
            found = scaleout.get(value.ref, timeout=LIMIT_S)
        except errors.TaskCancelledError:
            assert value.may_be_cancelled
        except (KeyError, errors.ActorDiedError) as error:
            assert value.expected in (type(error).__name__, "any"), error
        else:
            assert found == value.expected

    @rule(value=values)
    def cancel(self, value: Value) -> None:
        """Only what nobody knows of yet may be expected to come whole: so the mark is on all that shares the object."""
        if value.is_call:
            return  # whether it has changed the actor by then, nobody knows
        self.cancelled += 1
        made = self._all_of(value)
        for other in made:
            other.may_be_cancelled.add(self.cancelled)
        scaleout.cancel(value.ref)

    def _all_of(self, value: Value) -> list[Value]:
        """Every value of the bundle may depend on it."""
        return [self.names_to_values[name] for name in self.names_to_values if self._is_value(name)]

    def _is_value(self, name: str) -> bool:
        return isinstance(self.names_to_values[name], Value)

    @rule(value=consumes(values))
    def drop(self, value: Value) -> None:
        value.ref = None

    @rule(actor=consumes(actors))
    def drop_actor(self, actor: Actor) -> None:
        actor.handle = None

    @rule(which=st.integers(0, 10))
    def kill_a_worker(self, which: int) -> None:
        pids = [peer.pid for peer in list(references.client._owner.keeper.peers.values()) if peer.pid]
        if pids:
            try:
                os.kill(pids[which % len(pids)], signal.SIGKILL)
            except ProcessLookupError:
                pass

    @rule(actor=actors)
    def kill_an_actor(self, actor: Actor) -> None:
        """Its calls that are under way may have ended by then, or not: they are waited for."""
        scaleout.wait([actor.handle.add.remote(0)], timeout=LIMIT_S)
        scaleout.kill(actor.handle)
        actor.amount = "ActorDiedError"

    def teardown(self) -> None:
        for thing in self.names_to_values.values():
            if isinstance(thing, Value):
                thing.ref = None
            if isinstance(thing, Actor):
                thing.handle = None
        gc.collect()
        check_that_nothing_is_left(20)
        scaleout.shutdown()


class Big(int):
    """A number that takes much room."""

    def __reduce__(self) -> Any:
        return small, (int(self), b"x" * 100_000)


def small(number: int, rest: bytes) -> int:
    return number


TestGraph = Graph.TestCase
TestGraph.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # what depends on timing cannot be shrunk
)
