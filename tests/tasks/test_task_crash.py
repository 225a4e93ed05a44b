"""The crash matrix of tasks and actors: every way to fail, in every phase, for every kind of call. In each cell nothing
hangs, the other results arrive, the error has a name, and the runtime works afterwards. Then the driver's own end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, Item, StrikesWhenPickled, StrikesWhenUnpickled, killer_of_stopped
from scripts import running_here

import scaleout
from scaleout import errors

DEATHS = ("_exit", "kill", "stop")
KINDS = ("raise", "exit", *DEATHS)
CELLS = [
    (phase, kind)
    for phase in ("argument", "run", "pickle", "unpickle")
    for kind in KINDS
    if phase != "unpickle" or kind not in DEATHS  # that would be the driver's own death
]
LIMIT_S = 60.0  # a guard against hanging


def behave(item: Item) -> Any:
    fault = item.fault
    if fault is not None:
        if item.phase == "run":
            fault.strike()
        if item.phase == "pickle":
            return StrikesWhenPickled(item.index, fault)
        if item.phase == "unpickle":
            return StrikesWhenUnpickled(fault)
    return item.index


@scaleout.remote(max_retries=1)
def task(item: Item) -> Any:
    return behave(item)


@scaleout.remote
def nesting(item: Item) -> Any:
    return scaleout.get(task.remote(item))


@scaleout.remote
class Actor:
    def __init__(self, item: Item | None = None) -> None:
        if item is not None and item.phase == "run" and item.fault is not None:
            item.fault.strike()

    def method(self, item: Item) -> Any:
        return behave(item)


@pytest.mark.parametrize(("phase", "kind"), CELLS)
@pytest.mark.parametrize("call", ["task", "nested", "method", "constructor"])
def test_cell(call: str, phase: str, kind: str, tmp_path: Path) -> None:
    if call == "constructor" and phase in ("pickle", "unpickle"):
        pytest.skip("a constructor has no result")
    with ExitStack() as stack:
        if kind == "stop":
            stack.enter_context(killer_of_stopped(tmp_path))
        poison = Item(3, phase, Fault(kind, tmp_path))
        others, bad = calls(call, poison)
        with pytest.raises(BaseException) as caught:
            scaleout.get(bad, timeout=LIMIT_S)
        check(caught.value, call, phase, kind)
        for index, ref in others:
            assert scaleout.get(ref, timeout=LIMIT_S) == index
        del caught, others, bad
        assert scaleout.get([task.remote(Item(index)) for index in range(4)], timeout=LIMIT_S) == [0, 1, 2, 3]
        assert scaleout.get(Actor.remote().method.remote(Item(9)), timeout=LIMIT_S) == 9


def calls(call: str, poison: Item) -> tuple[list[tuple[int, Any]], Any]:
    if call in ("task", "nested"):
        function = task if call == "task" else nesting
        before = [(index, function.remote(Item(index))) for index in range(3)]
        bad = function.remote(poison)
        return before + [(index, function.remote(Item(index))) for index in range(4, 7)], bad
    if call == "method":
        victim, other = Actor.options(on_failure="restart").remote(), Actor.remote()
        before = [(index, actor.method.remote(Item(index))) for index in range(3) for actor in (other,)]
        before.append((8, victim.method.remote(Item(8))))
        bad = victim.method.remote(poison)
        return [*before, (5, other.method.remote(Item(5))), (6, victim.method.remote(Item(6)))], bad
    other = Actor.remote()
    bad = Actor.remote(poison).method.remote(Item(1))
    return [(index, other.method.remote(Item(index))) for index in range(3)], bad


def check(error: BaseException, call: str, phase: str, kind: str) -> None:
    assert not isinstance(error, errors.GetTimeoutError), "it hangs"
    assert not isinstance(error, errors.InternalError)
    if kind in DEATHS:
        expected: Any = errors.ActorDiedError if call in ("method", "constructor") else errors.WorkerDiedError
    elif call == "constructor":
        expected = errors.ActorDiedError
    elif phase == "argument":
        expected = errors.TaskUnpicklingError
    elif phase == "unpickle":
        expected = errors.ResultUnpicklingError
    elif kind == "raise":
        expected = ValueError
    else:
        expected = (errors.WorkerDiedError, SystemExit)
    assert isinstance(error, expected), repr(error)
    if expected is errors.ActorDiedError:
        assert "Actor" in str(error)


@pytest.mark.parametrize("call", ["task", "method"])
def test_idle_workers_that_die(call: str) -> None:
    import os
    import signal

    pid_of = scaleout.remote(os.getpid)

    @scaleout.remote(on_failure="restart")
    class Named:
        def pid(self) -> int:
            return os.getpid()

    actor = Named.remote()
    for _ in range(5):
        ref = pid_of.remote() if call == "task" else actor.pid.remote()
        os.kill(scaleout.get(ref, timeout=LIMIT_S), signal.SIGKILL)
    assert scaleout.get(task.remote(Item(1)), timeout=LIMIT_S) == 1


BUSY = """
    import os, sys, time
    import scaleout

    scaleout.init(num_cpus=2)

    @scaleout.remote
    def sleep():
        os.write(1, b"busy\\n")
        time.sleep(3600)

    @scaleout.remote
    def nest():
        return scaleout.get([sleep.remote() for _ in range(2)])

    @scaleout.remote
    class Keeper:
        def __init__(self, value):
            self.value = value

        def sleep(self):
            os.write(1, b"busy\\n")
            time.sleep(3600)

    @scaleout.remote
    class Async:
        async def sleep(self):
            import asyncio
            os.write(1, b"busy\\n")
            await asyncio.sleep(3600)

    @scaleout.remote
    def stream():
        os.write(1, b"busy\\n")
        number = 0
        while True:
            yield "x" * 100_000
            number += 1

    kind, then = os.environ["KIND"].split()
    kept = scaleout.put("x" * 1_000_000)
    actor = items = ref = None
    try:
        if kind == "task":
            ref = sleep.remote()
        elif kind == "nested":
            ref = nest.remote()
        elif kind == "actor":
            actor = Keeper.remote(kept)
            ref = actor.sleep.remote()
        elif kind == "async":
            actor = Async.remote()
            ref = actor.sleep.remote()
        else:
            items = stream.remote()
            scaleout.get(next(items))
            ref = sleep.remote()
        if then == "get":
            scaleout.get(ref)
    except KeyboardInterrupt:
        assert scaleout.get(scaleout.remote(lambda: 5).options(num_cpus=0).remote()) == 5
        print("interrupted", flush=True)
    while then == "exit":
        scaleout.wait([ref], timeout=0.01)
        if [found for found in scaleout.list_tasks() if found["state"] == "RUNNING"]:
            print("leaving", flush=True)
            break
"""
BUSY_KINDS = ("task", "nested", "actor", "async", "stream")


@pytest.mark.parametrize("kind", BUSY_KINDS)
def test_a_killed_driver_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with running_here(BUSY, tmp_path, KIND=f"{kind} get") as program:
        program.wait_for("busy")
        program.kill()
        program.wait_until_alone()


@pytest.mark.parametrize("kind", BUSY_KINDS)
def test_a_driver_that_ends_with_work_pending(kind: str, tmp_path: Path) -> None:
    with running_here(BUSY, tmp_path, KIND=f"{kind} exit") as program:
        assert program.finish() == 0, program.stderr
        assert "leaving" in program.stdout
        assert program.stderr == ""
        program.check_nothing_left()


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("kind", BUSY_KINDS)
def test_ctrl_c_in_get(kind: str, whole_group: bool, tmp_path: Path) -> None:
    with running_here(BUSY, tmp_path, KIND=f"{kind} get") as program:
        program.wait_for("busy", 2 if kind in ("nested", "stream") else 1)
        program.interrupt(whole_group)
        program.wait_for("interrupted")
        assert program.finish() == 0, program.stderr
        program.check_nothing_left()
