"""Actors: order, failures and what becomes of them, names, ends, concurrency, resources."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, is_gone, note, notes, wait_until

import scaleout
from scaleout import errors
from scaleout._runtime.base import references


@scaleout.remote
class Log:
    def __init__(self, *first: Any) -> None:
        self.log = list(first)

    def add(self, what: Any, given: Any = None) -> list[Any]:
        self.log.append(what)
        return list(self.log)

    def get(self) -> list[Any]:
        return list(self.log)

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError("as asked")

    def strike(self, fault: Fault, value: Any = None) -> Any:
        fault.strike()
        self.log.append(value)
        return value

    def leave(self) -> None:
        scaleout.exit_actor()

    @scaleout.method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return 1, 2

    def save_checkpoint(self) -> list[Any]:
        return self.log

    def load_checkpoint(self, log: list[Any]) -> None:
        self.log = log


@scaleout.remote
def call(handle: Any, what: Any) -> Any:
    return scaleout.get(handle.add.remote(what))


def dies_with(ref: Any) -> errors.ActorDiedError:
    with pytest.raises(errors.ActorDiedError) as caught:
        scaleout.get(ref, timeout=30)
    return caught.value


def test_calls_run_in_their_order() -> None:
    log = Log.remote()
    refs = [log.add.remote(number) for number in range(1000)]
    assert scaleout.get(refs[-1]) == list(range(1000))


def test_a_call_that_waits_holds_back_its_caller_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")

    @scaleout.remote
    def late(path: str) -> str:
        with open(path):
            return "late"

    log = Log.remote()
    first = log.add.remote("first", late.remote(str(tmp_path / "gate")))
    second = log.add.remote("second")
    assert scaleout.get(call.remote(log, "other")) == ["other"]
    assert scaleout.wait([second], timeout=0.05)[0] == []
    with open(tmp_path / "gate", "w"):
        pass
    assert scaleout.get([first, second]) == [["other", "first"], ["other", "first", "second"]]


def test_many_callers_each_in_order() -> None:
    log = Log.remote()

    @scaleout.remote
    def caller(log: Any, number: int) -> None:
        scaleout.get([log.add.remote((number, step)) for step in range(50)])

    scaleout.get([caller.remote(log, number) for number in range(4)])
    seen = scaleout.get(log.get.remote())
    assert len(seen) == 200
    for number in range(4):
        assert [step for who, step in seen if who == number] == list(range(50))


def test_handles_are_passed_around() -> None:
    log = Log.remote("made")
    ref = scaleout.put({"handle": log})

    @scaleout.remote
    def deep(container: Any) -> Any:
        handle = scaleout.get(container[0])["handle"]
        return [handle, scaleout.get(call.remote(handle, "deep"))]

    other = Log.remote()
    again, seen = scaleout.get(deep.remote([ref]))
    assert seen == ["made", "deep"]
    assert again == log
    assert hash(again) == hash(log)
    scaleout.get(other.add.remote("kept", {"in": [again]}))
    del log, again, ref
    assert "Log" in repr(other)


def test_a_handle_keeps_its_actor_and_the_last_one_ends_it() -> None:
    log = Log.remote()
    pid = scaleout.get(log.pid.remote())
    ref = scaleout.put(log)
    del log
    again = scaleout.get(ref)
    assert scaleout.get(again.pid.remote()) == pid
    done = again.add.remote("last")
    del again, ref
    assert scaleout.get(done) == ["last"]
    wait_until(lambda: not scaleout.list_actors())


def test_calls_made_before_the_handle_went_are_done() -> None:
    assert scaleout.get(Log.remote("x").get.remote()) == ["x"]
    refs = [Log.remote(number).get.remote() for number in range(5)]
    assert scaleout.get(refs) == [[number] for number in range(5)]


def test_methods_options_and_attributes() -> None:
    log = Log.remote()
    assert scaleout.get(log.pair.remote()) == [1, 2]
    assert scaleout.get(log.pair.options(num_returns=1).remote()) == (1, 2)
    with pytest.raises(AttributeError, match="Log has no method 'gett'"):
        log.gett  # noqa: B018 - it raises
    with pytest.raises(TypeError, match=r"\.add\.remote"):
        log.add(1)
    with pytest.raises(TypeError, match=r"Log\.remote"):
        Log()
    with pytest.raises(TypeError, match="num_returns"):
        log.add.options(num_return=2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"nam": "x"}, TypeError, "name"),
        ({"on_failure": "retry"}, ValueError, "replay"),
        ({"lifetime": "for ever"}, ValueError, "detached"),
        ({"lifetime": "detached"}, ValueError, "name"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency"),
        ({"max_restarts": -2}, ValueError, "max_restarts"),
        ({"max_task_retries": "1"}, ValueError, "max_task_retries"),
        ({"checkpoint_every": 5}, ValueError, "replay"),
        ({"on_failure": "replay", "max_concurrency": 2}, ValueError, "order"),
        ({"name": 5}, ValueError, "name"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Log.options(**options)


def test_a_checkpoint_needs_its_hooks() -> None:
    class Bare:
        pass

    with pytest.raises(ValueError, match="save_checkpoint"):
        scaleout.remote(on_failure="replay", checkpoint_every=2)(Bare)


# -- errors --------------------------------------------------------------------------------------


def test_a_method_that_raises_harms_nothing() -> None:
    log = Log.remote()
    with pytest.raises(ValueError, match="as asked"):
        scaleout.get(log.fail.remote())
    assert scaleout.get(log.add.remote(1)) == [1]


def test_a_constructor_that_raises() -> None:
    @scaleout.remote(name="unlucky")
    class Unlucky:
        def __init__(self) -> None:
            raise KeyError("in the constructor")

        def use(self) -> None:
            pass

    actor = Unlucky.remote()
    for _ in range(2):
        error = dies_with(actor.use.remote())
        assert (error.class_name, error.name) == ("Unlucky", "unlucky")
        assert "Unlucky named 'unlucky'" in str(error)
        assert isinstance(error.__cause__, KeyError)
        assert "in the constructor" in str(error.__cause__.__cause__)
    with pytest.raises(ValueError, match="unlucky"):
        scaleout.get_actor("unlucky")


@pytest.mark.parametrize("on_failure", ["raise", "restart", "replay"])
def test_a_constructor_that_always_dies(on_failure: str) -> None:
    """With restarts it had been started for ever."""

    @scaleout.remote(on_failure=on_failure)
    class Dies:
        def __init__(self) -> None:
            os._exit(3)

        def use(self) -> None:
            pass

    actor = Dies.remote()
    assert "exit code 3" in str(dies_with(actor.use.remote()))
    assert "Dies" in str(dies_with(actor.use.remote()))


def test_an_error_names_the_class_when_no_handle_is_left() -> None:
    error = dies_with(Log.options(name="gone").remote().strike.remote(Fault("_exit", Path("."))))
    assert (error.class_name, error.name) == ("Log", "gone")
    assert "Log named 'gone'" in str(error)


# -- death ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["_exit", "kill"])
def test_on_failure_raise(kind: str, tmp_path: Path) -> None:
    log = Log.remote()
    before = scaleout.get(log.add.remote(1))
    refs = [log.strike.remote(Fault(kind, tmp_path)), log.add.remote(2), log.add.remote(3)]
    assert before == [1]
    for ref in refs:
        assert "Log" in str(dies_with(ref))
    dies_with(log.add.remote(4))
    (found,) = scaleout.list_actors()
    assert found["state"] == "DEAD"
    assert "died" in found["death"] or "dead" in found["death"]


def test_on_failure_restart(tmp_path: Path) -> None:
    log = Log.options(on_failure="restart").remote("made")
    refs = [log.add.remote(1), log.strike.remote(Fault("kill", tmp_path, times=1)), log.add.remote(2)]
    assert scaleout.get(refs[0]) == ["made", 1]
    assert "started again" in str(dies_with(refs[1]))
    assert scaleout.get(refs[2]) == ["made", 2]


def test_max_restarts(tmp_path: Path) -> None:
    log = Log.options(max_restarts=2).remote()
    for _ in range(2):
        dies_with(log.strike.remote(Fault("_exit", tmp_path)))
        assert scaleout.get(log.add.remote(1)) == [1]
    dies_with(log.strike.remote(Fault("_exit", tmp_path)))
    dies_with(log.add.remote(1))


def test_max_task_retries_keeps_the_order(tmp_path: Path) -> None:
    log = Log.options(max_restarts=-1, max_task_retries=3).remote()
    refs = [log.strike.remote(Fault("kill", tmp_path, times=2), "struck"), *[log.add.remote(n) for n in range(5)]]
    assert scaleout.get(refs)[-1] == ["struck", 0, 1, 2, 3, 4]
    only = Log.options(max_restarts=-1).remote()
    (tmp_path / "other").mkdir()
    retried = only.strike.options(max_task_retries=1).remote(Fault("kill", tmp_path / "other", times=1), "again")
    assert scaleout.get(retried) == "again"


@pytest.mark.parametrize("checkpoint_every", [0, 1, 3])
def test_replay_brings_back_the_state(checkpoint_every: int, tmp_path: Path) -> None:
    log = Log.options(on_failure="replay", checkpoint_every=checkpoint_every).remote()
    expected: list[Any] = []
    for number in range(20):
        if number % 6 == 5:
            directory = tmp_path / str(number)
            directory.mkdir()
            assert scaleout.get(log.strike.remote(Fault("kill", directory, times=1), number)) == number
            expected.append(number)
        else:
            expected.append(number)
            assert scaleout.get(log.add.remote(number)) == expected
    os.kill(scaleout.get(log.pid.remote()), signal.SIGKILL)
    assert scaleout.get(log.get.remote()) == expected


def test_replay_keeps_the_order_of_all_callers(tmp_path: Path) -> None:
    log = Log.options(on_failure="replay").remote()

    @scaleout.remote
    def caller(log: Any, number: int) -> None:
        for step in range(20):
            scaleout.get(log.add.remote((number, step)))

    refs = [caller.remote(log, number) for number in range(2)]
    for _ in range(3):
        os.kill(scaleout.get(log.pid.remote()), signal.SIGKILL)
    scaleout.get(refs)
    seen = scaleout.get(log.get.remote())
    for number in range(2):
        assert [step for who, step in seen if who == number] == list(range(20))
    os.kill(scaleout.get(log.pid.remote()), signal.SIGKILL)
    assert scaleout.get(log.get.remote()) == seen


def test_replay_gives_up_a_call_that_kills(tmp_path: Path) -> None:
    """It had been made again for ever."""
    log = Log.options(on_failure="replay").remote()
    scaleout.get(log.add.remote(1))
    refs = [log.strike.remote(Fault("_exit", tmp_path)), log.add.remote(2)]
    dies_with(refs[0])
    assert scaleout.get(refs[1], timeout=30) == [1, 2]


def test_a_checkpoint_that_raises_costs_nothing_but_itself(capfd: Any) -> None:
    @scaleout.remote(on_failure="replay", checkpoint_every=1)
    class Stubborn:
        count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

        def pid(self) -> int:
            return os.getpid()

        def save_checkpoint(self) -> Any:
            raise ValueError("no checkpoint today")

        def load_checkpoint(self, saved: Any) -> None:
            raise AssertionError

    actor = Stubborn.remote()
    assert scaleout.get([actor.add.remote() for _ in range(3)], timeout=30) == [1, 2, 3]
    os.kill(scaleout.get(actor.pid.remote()), signal.SIGKILL)
    assert scaleout.get(actor.add.remote(), timeout=30) == 4
    assert "no checkpoint today" in capfd.readouterr().err


def test_an_actor_that_cannot_take_its_checkpoint_back_is_dead() -> None:
    @scaleout.remote(on_failure="replay", checkpoint_every=1)
    class Forgetful:
        def pid(self) -> int:
            return os.getpid()

        def save_checkpoint(self) -> str:
            return "saved"

        def load_checkpoint(self, saved: str) -> None:
            raise KeyError(saved)

    actor = Forgetful.remote()
    pid = scaleout.get(actor.pid.remote())
    wait_until(lambda: len(references.client._owner.groups[-1].core.log) == 0)
    os.kill(pid, signal.SIGKILL)
    error = dies_with(actor.pid.remote())
    assert "Forgetful is dead: its load_checkpoint raised" in str(error)
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(("policy", "log_after"), [("raise", None), ("restart", []), ("replay", [1])])
def test_no_state_is_lost_unnoticed_when_the_runtimes_own_process_dies(policy: str, log_after: Any) -> None:
    log = Log.options(**({} if policy == "raise" else {"on_failure": policy, "max_restarts": 1})).remote()
    assert scaleout.get(log.add.remote(1)) == [1]
    pid = scaleout.get(log.pid.remote())
    os.kill(references.client._owner.keeper.host.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    if log_after is None:
        with pytest.raises(errors.ActorDiedError):
            scaleout.get(log.get.remote(), timeout=60)
    else:
        assert scaleout.get(log.get.remote(), timeout=60) == log_after


def test_what_the_constructor_was_given_is_kept_while_it_may_be_called_again() -> None:
    class Sizer:
        def __init__(self, data: bytes) -> None:
            self.size = len(data)

        def look(self) -> tuple[int, int]:
            return self.size, os.getpid()

    scaleout.init()
    kept = references.client._owner.objects.ranges._uses
    sizer, data = scaleout.remote(Sizer), bytes(1_000_000)
    once = sizer.remote(data)
    assert scaleout.get(once.look.remote())[0] == len(data)
    wait_until(lambda: not kept)
    once_more = sizer.options(on_failure="restart", max_restarts=1).remote(data)
    size, pid = scaleout.get(once_more.look.remote())
    assert kept
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert scaleout.get(once_more.look.remote(), timeout=60)[0] == size
    wait_until(lambda: not kept)


# -- names and ends ------------------------------------------------------------------------------


def test_names() -> None:
    log = Log.options(name="one").remote("named")
    assert scaleout.get(scaleout.get_actor("one").get.remote()) == ["named"]
    with pytest.raises(ValueError, match="'one' already"):
        Log.options(name="one").remote()
    same = Log.options(name="one", get_if_exists=True).remote("other")
    assert same == log
    other = Log.options(name="one", namespace="elsewhere").remote("far")
    assert scaleout.get(scaleout.get_actor("one", namespace="elsewhere").get.remote()) == ["far"]
    with pytest.raises(ValueError, match="'two'"):
        scaleout.get_actor("two")
    del log, same, other
    wait_until(lambda: not scaleout.list_actors())
    with pytest.raises(ValueError, match="'one'"):
        scaleout.get_actor("one")


def test_the_namespace_of_the_session() -> None:
    """It was not looked at."""
    scaleout.init(namespace="mine")
    log = Log.options(name="one").remote()
    assert scaleout.get_actor("one") == log
    assert scaleout.get_actor("one", namespace="mine") == log
    with pytest.raises(ValueError, match="'one'"):
        scaleout.get_actor("one", namespace="")
    with pytest.raises(TypeError, match="the name of an actor is a string, not 5"):
        scaleout.get_actor(5)  # type: ignore[arg-type]
    assert scaleout.get(scaleout.remote(lambda: scaleout.get_actor("one")).remote()) == log


def test_names_from_inside_tasks() -> None:
    @scaleout.remote
    def use(number: int) -> Any:
        mine = Log.options(name="shared", get_if_exists=True).remote()
        scaleout.get(mine.add.remote(number))
        try:
            Log.options(name="shared").remote()
        except ValueError as error:
            return [mine, str(error)]
        return "no error"

    found = scaleout.get([use.remote(number) for number in range(8)])
    assert {text for _, text in found} == {"there is an actor named 'shared' already in namespace ''"}
    assert len({handle for handle, _ in found}) >= 1


def test_a_detached_actor_lives_on() -> None:
    Log.options(name="stays", lifetime="detached").remote("still here")
    assert scaleout.get(scaleout.get_actor("stays").get.remote()) == ["still here"]
    scaleout.kill(scaleout.get_actor("stays"))
    wait_until(lambda: not scaleout.list_actors())


def test_kill() -> None:
    log = Log.options(name="target", on_failure="restart").remote()
    pid = scaleout.get(log.pid.remote())
    scaleout.kill(log, no_restart=False)
    assert scaleout.get(log.pid.remote(), timeout=30) != pid
    scaleout.kill(log)
    error = dies_with(log.pid.remote())
    assert "killed by scaleout.kill" in str(error)
    scaleout.kill(log)
    with pytest.raises(TypeError, match="handle"):
        scaleout.kill(5)  # type: ignore[arg-type]


def test_exit_actor() -> None:
    log = Log.remote()
    assert "exit_actor" in str(dies_with(log.leave.remote()))
    assert "exit_actor" in str(dies_with(log.get.remote()))
    with pytest.raises(RuntimeError, match="methods of actors"):
        scaleout.exit_actor()


def test_kill_from_the_task_that_made_it() -> None:
    @scaleout.remote
    def make_and_kill() -> str:
        log = Log.remote()
        scaleout.kill(log)
        try:
            scaleout.get(log.get.remote())
        except errors.ActorDiedError as error:
            return str(error)
        return "no error"

    assert "killed by scaleout.kill" in scaleout.get(make_and_kill.remote(), timeout=30)


def test_cancelling_a_call_spares_the_actor(tmp_path: Path) -> None:
    """What took no notice had been killed, and with it all other calls."""

    @scaleout.remote
    class Sleeper:
        def sleep(self, log: str) -> None:
            note(log, "asleep")
            threading.Event().wait()

        def one(self) -> int:
            return 1

    log = str(tmp_path / "log")
    actor = Sleeper.remote()
    running, queued = actor.sleep.remote(log), actor.one.remote()
    wait_until(lambda: notes(log))
    scaleout.cancel(queued)
    scaleout.cancel(running)
    for ref in (running, queued):
        with pytest.raises(errors.TaskCancelledError):
            scaleout.get(ref, timeout=30)
    assert scaleout.get(actor.one.remote(), timeout=30) == 1


# -- concurrency ---------------------------------------------------------------------------------


def test_threads_run_beside_each_other() -> None:
    @scaleout.remote(max_concurrency=3)
    class Meeting:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(3)

        def meet(self) -> int:
            return self.barrier.wait(timeout=30) >= 0

        def nested(self, number: int) -> Any:
            return scaleout.get(call.remote(Log.remote(), scaleout.get(scaleout.put(number))))

        def stuck(self) -> None:
            threading.Event().wait()

    actor = Meeting.remote()
    assert scaleout.get([actor.meet.remote() for _ in range(3)]) == [True] * 3
    assert scaleout.get([actor.nested.remote(number) for number in range(6)]) == [[number] for number in range(6)]
    with pytest.raises(errors.TaskTimeoutError):
        scaleout.get(actor.stuck.options(timeout_s=0.2).remote(), timeout=30)


def test_async_methods_run_on_one_loop() -> None:
    @scaleout.remote
    class Async:
        def __init__(self) -> None:
            self.count = 0
            self.open = asyncio.Event()

        async def wait(self) -> int:
            self.count += 1
            await self.open.wait()
            return self.count

        async def release(self) -> None:
            self.open.set()

        async def others(self) -> Any:
            log = Log.remote()
            await asyncio.gather(*[log.add.remote(number) for number in range(5)])
            return await log.get.remote()

        def plain(self) -> int:
            return self.count

        async def fail(self) -> None:
            raise ValueError("async")

        async def for_ever(self) -> None:
            await asyncio.Event().wait()

    actor = Async.remote()
    waiting = [actor.wait.remote() for _ in range(200)]
    wait_until(lambda: scaleout.get(actor.plain.remote()) == 200)
    scaleout.get(actor.release.remote())
    assert scaleout.get(waiting) == [200] * 200
    assert scaleout.get(actor.others.remote()) == list(range(5))
    with pytest.raises(ValueError, match="async"):
        scaleout.get(actor.fail.remote())
    hanging = actor.for_ever.remote()
    assert scaleout.get(actor.plain.remote()) == 200
    scaleout.cancel(hanging)
    with pytest.raises(errors.TaskCancelledError):
        scaleout.get(hanging, timeout=30)
    with pytest.raises(errors.TaskTimeoutError):
        scaleout.get(actor.for_ever.options(timeout_s=0.2).remote(), timeout=30)
    assert scaleout.get(actor.plain.remote(), timeout=30) == 200


def test_calls_with_large_arguments_that_wait_for_a_later_one() -> None:
    @scaleout.remote
    class Gate:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def wait(self, data: bytes) -> int:
            await self.event.wait()
            return len(data)

        async def open(self) -> None:
            self.event.set()

    gate = Gate.remote()
    waiting = [gate.wait.remote(bytes(60_000)) for _ in range(100)]
    scaleout.get(gate.open.remote(), timeout=60)
    assert scaleout.get(waiting) == [60_000] * 100


def test_max_concurrency_of_an_async_actor() -> None:
    @scaleout.remote(max_concurrency=2)
    class Async:
        running = most = 0

        async def run(self) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001)
            self.running -= 1

        async def seen(self) -> int:
            return self.most

    actor = Async.remote()
    scaleout.get([actor.run.remote() for _ in range(20)])
    assert scaleout.get(actor.seen.remote()) == 2


# -- resources -----------------------------------------------------------------------------------


def test_resources_are_held_and_given_back() -> None:
    scaleout.init(num_cpus=2, resources={"seat": 1})
    first = Log.options(num_cpus=1, resources={"seat": 1}).remote()
    scaleout.get(first.get.remote())
    assert scaleout.available_resources()["CPU"] == 1
    assert scaleout.available_resources()["seat"] == 0
    second = Log.options(resources={"seat": 1}).remote("second")
    waiting = second.get.remote()
    assert scaleout.wait([waiting], timeout=0.05)[0] == []
    scaleout.kill(first)
    assert scaleout.get(waiting, timeout=30) == ["second"]
    os.kill(scaleout.get(second.pid.remote()), signal.SIGKILL)
    wait_until(lambda: scaleout.available_resources()["seat"] == 1)


def test_an_actor_that_no_node_can_hold() -> None:
    with pytest.raises(errors.InfeasibleError, match=r"1000 CPU"):
        Log.options(num_cpus=1000).remote()

    @scaleout.remote
    def make() -> None:
        Log.options(num_cpus=1000).remote()

    with pytest.raises(errors.InfeasibleError, match=r"1000 CPU"):
        scaleout.get(make.remote(), timeout=30)
    assert scaleout.get(call.remote(Log.remote(), 1)) == [1]


def test_a_constructor_waits_for_what_it_depends_on(tmp_path: Path) -> None:
    gates = [str(tmp_path / "one"), str(tmp_path / "other")]
    for gate in gates:
        os.mkfifo(gate)

    @scaleout.remote
    def late(path: str) -> str:
        with open(path):
            return "late"

    @scaleout.remote
    def make(path: str) -> Any:
        return Log.remote(late.remote(path))

    @scaleout.remote
    def fail() -> None:
        raise KeyError("as asked")

    made = Log.remote(late.remote(gates[0]))
    made_by_a_task = scaleout.get(make.remote(gates[1]))
    calls = [made.get.remote(), made_by_a_task.get.remote()]
    assert scaleout.wait(calls, timeout=0.1)[0] == []
    for gate in gates:
        with open(gate, "w"):
            pass
    assert scaleout.get(calls, timeout=30) == [["late"], ["late"]]
    assert isinstance(dies_with(Log.remote(fail.remote()).get.remote()).__cause__, KeyError)


def test_what_comes_while_a_call_waits_keeps_its_order() -> None:
    """What was on its way to the worker when that began to wait, and gave back what was queued there."""

    @scaleout.remote
    def nothing() -> None:
        pass

    @scaleout.remote
    class Waiting:
        def __init__(self) -> None:
            self.log: list[int] = []

        def add(self, number: int) -> list[int]:
            self.log.append(number)
            if number % 5 == 0:
                scaleout.get(nothing.remote())
            return self.log

    actor = Waiting.remote()
    for start in range(0, 2000, 200):
        refs = [actor.add.remote(number) for number in range(start, start + 200)]
        scaleout.wait(refs, num_returns=1 + start % 150)
    assert scaleout.get(refs[-1], timeout=60) == list(range(2000))


@pytest.mark.parametrize("how", ["killed", "dropped"])
def test_an_actor_is_gone_while_its_constructor_waits_for_a_value(how: str) -> None:
    @scaleout.remote
    def late() -> int:
        time.sleep(0.2)
        return 1

    @scaleout.remote
    class Keeper:
        def __init__(self, value: int) -> None:
            self.value = value

    value = late.remote()
    keeper = Keeper.remote(value)
    if how == "killed":
        scaleout.kill(keeper)
    else:
        del keeper
    assert scaleout.get(value, timeout=60) == 1
    assert scaleout.get(late.remote(), timeout=60) == 1  # the runtime has not minded
