"""Calls of actors from inside tasks, past the owner: nothing of it shows but the time that they take."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import DEADLINE_S, Fault, note, notes, wait_until

import scaleout
from scaleout import errors
from scaleout._runtime.base import limits, references

LARGE_BYTES = 4 * limits.INLINE_BYTES


class CannotBePickled(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not me")


@scaleout.remote
class Host:
    def __init__(self) -> None:
        self.log: list[Any] = []

    def add(self, what: Any = None) -> Any:
        self.log.append(what)
        return what

    def get(self) -> list[Any]:
        return self.log

    def pid(self) -> int:
        return os.getpid()

    def large(self) -> Any:
        return np.arange(LARGE_BYTES // 8)

    def put(self, value: Any) -> Any:
        return [scaleout.put(value)]

    def fail(self, kind: type[BaseException]) -> None:
        raise kind("as asked")

    def frame(self) -> Any:
        return sys._getframe()

    def strike(self, fault: Fault) -> None:
        fault.strike()

    def wait_for(self, path: Path, value: Any = None) -> Any:
        note(f"{path}-begun", value)
        wait_until(path.exists, deadline_s=DEADLINE_S)
        return value

    def ask(self, function: Any) -> Any:
        return scaleout.get(function.remote())

    def leave(self) -> None:
        scaleout.exit_actor()


def has_line(handle: Any) -> bool:
    calls = references.client._lines._calls.get(handle._hold)
    return calls is not None and calls.is_open and not calls.line.is_over


def open_line(handle: Any) -> None:
    """Call it as often as it takes until calls go over a line."""

    def is_open() -> bool:
        scaleout.get(handle.pid.remote())
        return has_line(handle)

    wait_until(is_open, deadline_s=DEADLINE_S)


def over_a_line(function: Any) -> Any:
    """`function(handle, *arguments)` in a task that has a line to the actor."""

    def task(handle: Any, *arguments: Any) -> Any:
        open_line(handle)
        return function(handle, *arguments)

    return scaleout.remote(task)


def run(function: Any, *arguments: Any) -> Any:
    return scaleout.get(over_a_line(function).remote(Host.remote(), *arguments), timeout=DEADLINE_S)


def test_calls_in_turn_go_over_a_line() -> None:
    def call(handle: Any) -> list[Any]:
        values = [scaleout.get(handle.add.remote(number)) for number in range(500)]
        assert has_line(handle)
        return values

    host = Host.remote()
    assert scaleout.get(over_a_line(call).remote(host)) == list(range(500))
    assert scaleout.get(host.get.remote()) == list(range(500))


@scaleout.remote
def caller(handle: Any, name: str, count: int) -> None:
    """In turn, in advance, with what cannot go over a line: in any order."""
    open_line(handle)
    for number in range(count):
        ref = handle.add.remote((name, number))
        if number % 7 < 5:
            scaleout.get(ref)
        if number % 11 == 0:
            scaleout.get(scaleout.put(None))
        if number % 13 == 0:
            handle.add.options(timeout_s=60).remote((name, number + 0.5))
    scaleout.get(handle.pid.remote())


def test_each_caller_keeps_its_order() -> None:
    host = Host.remote()
    others = [caller.remote(host, name, 200) for name in "ab"]
    for number in range(100):
        scaleout.get(host.add.remote(("driver", number)))
    scaleout.get(others, timeout=DEADLINE_S)
    log = scaleout.get(host.get.remote())
    for name, count in (("a", 200), ("b", 200), ("driver", 100)):
        numbers = [entry[1] for entry in log if entry and entry[0] == name]
        assert numbers == sorted(numbers)
        assert [number for number in numbers if number == int(number)] == list(range(count))


def test_results_of_all_kinds() -> None:
    def call(handle: Any) -> list[Any]:
        for _ in range(3):
            assert scaleout.get(handle.large.remote()).nbytes == LARGE_BYTES
            (inner,) = scaleout.get(handle.put.remote("value"))
            assert scaleout.get(inner) == "value"
            with pytest.raises(ValueError, match="as asked") as caught:
                scaleout.get(handle.fail.remote(ValueError))
            assert "in fail" in str(caught.value.__cause__)
            with pytest.raises(errors.ResultPicklingError, match="not me"):
                scaleout.get(handle.fail.remote(CannotBePickled))
            with pytest.raises(TypeError, match="frame"):
                scaleout.get(handle.frame.remote())
            open_line(handle)
        return scaleout.get([handle.large.remote(), handle.add.remote(1), handle.large.remote()])

    large, small, _ = run(call)
    assert (large == np.arange(LARGE_BYTES // 8)).all() and small == 1


def test_arguments_of_all_kinds() -> None:
    def call(handle: Any) -> None:
        ref = scaleout.put("value")
        assert scaleout.get(handle.add.remote(ref)) == "value"
        open_line(handle)
        (inner,) = scaleout.get(handle.add.remote([ref]))
        assert inner == ref
        open_line(handle)
        assert (scaleout.get(handle.add.remote(np.arange(5))) == np.arange(5)).all()
        assert scaleout.get(handle.add.remote(b"x" * LARGE_BYTES)) == b"x" * LARGE_BYTES
        open_line(handle)
        assert scaleout.get(handle.add.remote(what=3)) == 3
        assert has_line(handle)

    run(call)


def test_an_argument_that_the_actor_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_in_the_driver")
    exec("class Thing:\n    def __init__(self, x): self.x = x\n", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def call(handle: Any, thing: Any) -> Any:
        return scaleout.get(handle.add.remote(type(thing)(thing.x + 1))).x

    assert run(call, module.Thing(1)) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_there", [True, False])
def test_references_go_everywhere(is_there: bool, tmp_path: Path) -> None:
    """What a line knows becomes everybody's as soon as it must."""

    @scaleout.remote
    def double(value: Any) -> Any:
        return 2 * value

    @scaleout.remote
    def get(container: list[Any]) -> Any:
        return scaleout.get(container[0])

    gate = tmp_path / "gate"

    def call(handle: Any, how: str) -> Any:
        open_line(handle)
        path = tmp_path / how
        if is_there:
            path.touch()
        ref = handle.wait_for.remote(path, 21)
        assert has_line(handle)
        if is_there and how != "dropped":
            scaleout.get(ref)
        if how == "argument":
            result: Any = double.remote(ref)
        elif how == "container":
            result = get.remote([ref])
        elif how in ("returned", "dropped"):
            result = ref
        elif how == "future":
            result = ref.future()
        elif how == "wait":
            assert len(scaleout.wait([ref], timeout=0)[0]) == is_there
            result = ref
        elif how == "twice":
            result = get.remote([ref, ref])
        path.touch()
        if how == "future":
            return result.result()
        if how == "dropped":
            del ref, result
            return scaleout.get(handle.add.remote(21))
        return result if how == "returned" else scaleout.get(result)

    host = Host.remote()
    for how in ("argument", "container", "returned", "dropped", "future", "wait", "twice"):
        result = scaleout.get(over_a_line(call).remote(host, how), timeout=DEADLINE_S)
        if how == "returned":
            result = scaleout.get(result)
        assert result == (42 if how == "argument" else 21), how
    assert not gate.exists()


def test_a_slow_call_gives_the_slot_back(one_slot: None) -> None:
    """The actor asks for a task that only the slot of its caller can run."""

    @scaleout.remote
    def other() -> str:
        return "other"

    def call(handle: Any) -> Any:
        ref = handle.ask.remote(other)
        assert has_line(handle)
        return scaleout.get(ref)

    assert scaleout.get(over_a_line(call).remote(Host.options(num_cpus=0).remote()), timeout=DEADLINE_S) == "other"


@pytest.mark.parametrize("force", [False, True])
def test_cancel(force: bool, tmp_path: Path) -> None:
    def call(handle: Any) -> Any:
        ref = handle.wait_for.remote(tmp_path / "never", "x")
        assert has_line(handle)
        wait_until(lambda: notes(tmp_path / "never-begun"))
        scaleout.cancel(ref, force=force)
        with pytest.raises(errors.TaskCancelledError):
            scaleout.get(ref)
        if not force:
            return scaleout.get(handle.add.remote("alive"))
        with pytest.raises(errors.ActorDiedError):
            scaleout.get(handle.add.remote("dead"))
        return "alive"

    assert run(call) == "alive"


@pytest.mark.parametrize("kind", ["kill", "_exit"])
@pytest.mark.parametrize("restarts", [0, -1])
def test_the_actor_dies(restarts: int, kind: str, tmp_path: Path) -> None:
    def call(handle: Any) -> Any:
        pid = scaleout.get(handle.pid.remote())
        assert has_line(handle)
        ref = handle.strike.remote(Fault(kind, tmp_path, times=1))
        with pytest.raises(errors.ActorDiedError, match="the actor Host") as caught:
            scaleout.get(ref)
        assert "ended with" in str(caught.value)
        if restarts:
            assert "is started again" in str(caught.value)
            open_line(handle)
            assert scaleout.get(handle.pid.remote()) != pid
        else:
            with pytest.raises(errors.ActorDiedError):
                scaleout.get(handle.pid.remote())
        return "done"

    host = Host.options(max_restarts=restarts).remote()
    assert scaleout.get(over_a_line(call).remote(host), timeout=DEADLINE_S) == "done"


def test_the_actor_dies_between_calls() -> None:
    def call(handle: Any) -> Any:
        pid = scaleout.get(handle.pid.remote())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert scaleout.get(handle.pid.remote()) != pid
        open_line(handle)
        return scaleout.get(handle.pid.remote()) != pid

    host = Host.options(max_restarts=-1).remote()
    assert scaleout.get(over_a_line(call).remote(host), timeout=DEADLINE_S)


def test_the_actor_is_killed_or_leaves() -> None:
    def call(handle: Any, other: Any) -> Any:
        pid = scaleout.get(handle.pid.remote())
        scaleout.kill(handle, no_restart=False)
        assert scaleout.get(handle.pid.remote()) != pid
        open_line(handle)
        scaleout.kill(handle)
        with pytest.raises(errors.ActorDiedError, match=r"scaleout\.kill"):
            scaleout.get(handle.pid.remote())
        open_line(other)
        with pytest.raises(errors.ActorDiedError, match="exit_actor"):
            scaleout.get(other.leave.remote())
        return "done"

    host = Host.options(max_restarts=-1).remote()
    assert scaleout.get(over_a_line(call).remote(host, Host.remote()), timeout=DEADLINE_S) == "done"


def test_the_caller_dies(tmp_path: Path) -> None:
    def call(handle: Any, way: str) -> None:
        ref = handle.wait_for.remote(tmp_path / "gate", way)
        assert has_line(handle)
        wait_until(lambda: way in notes(tmp_path / "gate-begun"))
        kept = scaleout.put([ref]) if way == "shared" else ref
        os.kill(os.getpid(), signal.SIGKILL)
        del kept

    host = Host.remote()
    ways = ("unknown", "shared")
    for way in ways:
        (tmp_path / "gate").unlink(missing_ok=True)
        with pytest.raises(errors.WorkerDiedError):
            scaleout.get(over_a_line(call).options(max_retries=0).remote(host, way), timeout=DEADLINE_S)
        (tmp_path / "gate").touch()
        assert scaleout.get(host.add.remote("alive"), timeout=DEADLINE_S) == "alive"


def test_the_handle_goes_before_the_call_is_done(tmp_path: Path) -> None:
    @scaleout.remote
    def make() -> Any:
        handle = Host.remote()
        open_line(handle)
        ref = handle.wait_for.remote(tmp_path / "gate", "done")
        assert has_line(handle)
        del handle
        return [ref]

    (ref,) = scaleout.get(make.remote(), timeout=DEADLINE_S)
    (tmp_path / "gate").touch()
    assert scaleout.get(ref, timeout=DEADLINE_S) == "done"
    wait_until(lambda: not scaleout.list_actors())


def test_actors_call_actors() -> None:
    @scaleout.remote
    class Middle:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def open(self) -> bool:
            open_line(self.handle)
            return has_line(self.handle)

        def add(self, what: Any) -> Any:
            return scaleout.get(self.handle.add.remote(what))

    @scaleout.remote
    def through(middle: Any) -> list[Any]:
        open_line_by = [scaleout.get(middle.add.remote(number)) for number in range(50)]
        return open_line_by

    host = Host.remote()
    middle = Middle.remote(host)
    assert scaleout.get(middle.open.remote())
    assert scaleout.get(through.remote(middle)) == list(range(50))
    assert [what for what in scaleout.get(host.get.remote()) if what is not None] == list(range(50))


def test_the_history_knows_of_them() -> None:
    def call(handle: Any) -> None:
        for _ in range(10):
            scaleout.get(handle.add.remote("x"))
        assert has_line(handle)

    host = Host.remote()
    pid = scaleout.get(host.pid.remote())
    scaleout.get(over_a_line(call).remote(host))

    def seen() -> list[Any]:
        return [task for task in scaleout.list_tasks() if task["name"] == "add" and task.get("pid") == pid]

    wait_until(lambda: len(seen()) == 10)
    assert {task["state"] for task in seen()} == {"FINISHED"}


def test_others_have_no_line() -> None:
    """Where a call is ever to be made again, or several run at once, the owner must know of all."""

    @scaleout.remote
    def call(handle: Any) -> bool:
        for _ in range(20):
            scaleout.get(handle.pid.remote())
        return has_line(handle)

    hosts = [
        Host.options(max_restarts=1, max_task_retries=1).remote(),
        Host.options(on_failure="replay").remote(),
        Host.options(max_concurrency=2).remote(),
    ]
    assert scaleout.get([call.remote(host) for host in hosts]) == [False] * 3


def test_an_asynchronous_actor_that_does_one_call_at_a_time() -> None:
    @scaleout.remote(max_concurrency=1)
    class Async:
        async def pid(self) -> int:
            return os.getpid()

    @scaleout.remote
    def call(handle: Any) -> int:
        return len({scaleout.get(handle.pid.remote()) for _ in range(20)})

    assert scaleout.get(call.remote(Async.remote()), timeout=DEADLINE_S) == 1


def test_an_actor_with_a_thread_that_waits(tmp_path: Path) -> None:
    """Whoever reads in the actor's worker, its lines are looked at."""

    @scaleout.remote
    def wait_for(path: Path) -> str:
        wait_until(path.exists, deadline_s=DEADLINE_S)
        return "came"

    @scaleout.remote
    class Watching:
        def watch(self, refs: list[Any]) -> None:
            self.future = refs[0].future()

        def pid(self) -> int:
            return os.getpid()

        def result(self) -> Any:
            return self.future.result()

    def call(handle: Any) -> Any:
        for _ in range(200):
            scaleout.get(handle.pid.remote())
        (tmp_path / "gate").touch()
        return scaleout.get(handle.result.remote())

    handle = Watching.remote()
    scaleout.get(handle.watch.remote([wait_for.remote(tmp_path / "gate")]))
    assert scaleout.get(over_a_line(call).remote(handle), timeout=DEADLINE_S) == "came"


@pytest.mark.parametrize("how", ["dies", "is killed"])
def test_a_reference_that_is_looked_at_only_after_a_restart(how: str, tmp_path: Path) -> None:
    def call(handle: Any) -> None:
        pid = scaleout.get(handle.pid.remote())
        ref = handle.wait_for.remote(tmp_path / "never")
        assert has_line(handle)
        if how == "dies":
            os.kill(pid, signal.SIGKILL)
        else:
            scaleout.kill(handle, no_restart=False)
        open_line(handle)
        with pytest.raises(errors.ActorDiedError):
            scaleout.get(ref)

    host = Host.options(max_restarts=-1).remote()
    scaleout.get(over_a_line(call).remote(host), timeout=DEADLINE_S)


@pytest.mark.parametrize("is_shared", [True, False])
def test_large_results_that_nobody_takes(is_shared: bool) -> None:
    """Nothing of them is left, as the fixture sees."""

    def call(handle: Any) -> None:
        for _ in range(3):
            ref = handle.large.remote()
            if is_shared:
                scaleout.wait([ref], timeout=0)
            del ref
            open_line(handle)
        handle.large.remote()

    scaleout.get(over_a_line(call).remote(Host.remote()), timeout=DEADLINE_S)


def test_threads_of_a_caller_keep_their_order() -> None:
    import threading

    def call(handle: Any) -> None:
        def work(name: str) -> None:
            for number in range(100):
                ref = handle.add.remote((name, number))
                if number % 5:
                    scaleout.get(ref)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        scaleout.get(handle.pid.remote())

    host = Host.remote()
    scaleout.get(over_a_line(call).remote(host), timeout=DEADLINE_S)
    log = scaleout.get(host.get.remote())
    for name in "abc":
        assert [number for who, number in log if who == name] == list(range(100))
