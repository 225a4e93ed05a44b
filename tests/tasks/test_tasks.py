"""Tasks from the driver: options, results, errors, dependencies, large values, limits."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import EXIT_CODE, Fault, note, notes, wait_until
from scripts import running_here

import scaleout
from scaleout import errors

numpy = pytest.importorskip("numpy")


@scaleout.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@scaleout.remote
def add(a: Any, b: Any) -> Any:
    return a + b


@scaleout.remote
def fail(message: str) -> None:
    raise ValueError(message)


@scaleout.remote
def strike(fault: Fault, value: Any = None) -> Any:
    fault.strike()
    return value


class Gate:
    """A task waits at it until the test opens it."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)
        os.mkfifo(self.path)

    def open(self) -> None:
        with open(self.path, "w"):
            pass


@scaleout.remote
def wait_at(path: str, value: Any = None) -> Any:
    note(path + ".log", os.getpid())
    with open(path):
        pass
    return value


@scaleout.remote
def note_and_return(log: str, value: Any) -> Any:
    note(log, value)
    return value


# -- calls and results ---------------------------------------------------------------------------


def test_a_call_gives_a_reference_and_get_gives_the_value() -> None:
    ref = add.remote(1, 2)
    assert isinstance(ref, scaleout.ObjectRef)
    assert scaleout.get(ref) == 3
    assert scaleout.get(ref) == 3  # as often as one likes


def test_arguments_by_position_and_by_name() -> None:
    assert scaleout.get(echo.remote(1, 2, a=3, b=None)) == ((1, 2), {"a": 3, "b": None})
    assert scaleout.get(echo.remote()) == ((), {})


def test_get_of_a_list_keeps_its_order_and_takes_duplicates() -> None:
    refs = [add.remote(number, 0) for number in range(50)]
    assert scaleout.get([*reversed(refs), refs[7], refs[7]]) == [*reversed(range(50)), 7, 7]
    assert scaleout.get([]) == []


@pytest.mark.parametrize("wrong", [5, "ref", None, {}, [5], [None], (1,)])
def test_get_of_something_else(wrong: Any) -> None:
    with pytest.raises(TypeError, match="reference"):
        scaleout.get(wrong)


def test_a_remote_function_is_not_called_directly() -> None:
    with pytest.raises(TypeError, match=r"add\.remote"):
        add(1, 2)


def test_lambdas_closures_and_partials() -> None:
    import functools

    factor = 7
    assert scaleout.get(scaleout.remote(lambda x: x * factor).remote(6)) == 42

    def outer(x: int) -> int:
        return inner(x) + factor

    def inner(x: int) -> int:
        return x * 2

    assert scaleout.get(scaleout.remote(outer).remote(4)) == 15
    assert scaleout.get(scaleout.remote(functools.partial(max, 3)).remote(9)) == 9
    assert scaleout.get(scaleout.remote(len).remote([1, 2])) == 2


def test_a_remote_function_that_calls_itself_and_others_by_closure() -> None:
    @scaleout.remote
    def twice(x: int) -> Any:
        return scaleout.get(add.remote(x, x))

    assert scaleout.get(twice.remote(4)) == 8


def test_functions_keep_their_name_and_doc() -> None:
    @scaleout.remote
    def documented() -> None:
        """What it does."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."
    assert "documented" in repr(documented)


def test_a_remote_function_is_an_argument() -> None:
    assert scaleout.get(scaleout.remote(lambda function: scaleout.get(function.remote(1, 1))).remote(add)) == 2


def test_functions_of_main(tmp_path: Path) -> None:
    script = """
        import scaleout

        CONSTANT = 5

        class Point:
            def __init__(self, x):
                self.x = x

        def helper(point):
            return point.x + CONSTANT

        @scaleout.remote
        def inner(point):
            return Point(helper(point))

        @scaleout.remote
        def outer(x):
            refs = [inner.remote(Point(x + number)) for number in range(3)]
            return [point.x for point in scaleout.get(refs)]

        @scaleout.remote
        def produce(count):
            for number in range(count):
                yield Point(number)

        @scaleout.remote
        def consume(count):
            return sum(scaleout.get(ref).x for ref in produce.remote(count))

        @scaleout.remote
        class Keeper:
            def __init__(self, point):
                self.point = point

            def move(self, by):
                self.point = Point(self.point.x + by.x)
                return self.point

        @scaleout.remote
        def with_actor():
            keeper = Keeper.remote(Point(1))
            keeper.move.remote(Point(2))
            return scaleout.get(keeper.move.remote(Point(3))).x

        assert scaleout.get(outer.remote(1)) == [6, 7, 8]
        assert scaleout.get(consume.remote(100)) == 4950
        assert scaleout.get(with_actor.remote()) == 6
        keeper = Keeper.remote(scaleout.put(Point(10)))
        assert scaleout.get(keeper.move.remote(inner.remote(Point(1)))).x == 16
        print("done")
    """
    with running_here(script, tmp_path) as program:
        assert program.finish() == 0, program.stderr
        assert program.stdout.strip() == "done"
        assert program.stderr == ""
        program.check_nothing_left()


# -- several results -----------------------------------------------------------------------------


def test_num_returns() -> None:
    def pair() -> Any:
        return "a", "b"

    first, second = scaleout.remote(num_returns=2)(pair).remote()
    assert scaleout.get(second) == "b"
    assert scaleout.get(first) == "a"
    (only,) = scaleout.remote(pair).options(num_returns=2).remote()[:1]
    assert scaleout.get(only) == "a"


def test_num_returns_of_many_and_of_none(tmp_path: Path) -> None:
    refs = scaleout.remote(num_returns=3000)(lambda: range(3000)).remote()
    assert scaleout.get(refs) == list(range(3000))
    assert note_and_return.options(num_returns=0).remote(str(tmp_path / "log"), 1) is None
    wait_until(lambda: notes(tmp_path / "log") == ["1"])


@pytest.mark.parametrize("returned", [(1,), (1, 2, 3), ()])
def test_a_return_count_that_does_not_match(returned: Any) -> None:
    refs = scaleout.remote(num_returns=2)(lambda: returned).remote()
    for ref in refs:
        with pytest.raises(ValueError, match=rf"2 values.*returned {len(returned)}"):
            scaleout.get(ref)


def test_several_results_where_none_is_iterable() -> None:
    for ref in scaleout.remote(num_returns=2)(lambda: 5).remote():
        with pytest.raises(TypeError, match="iterable|returned one int"):
            scaleout.get(ref)


def test_several_results_of_which_one_does_not_pickle() -> None:
    first, second = scaleout.remote(num_returns=2)(lambda: (1, threading.Lock())).remote()
    assert scaleout.get(first) == 1
    with pytest.raises(Exception, match="lock"):
        scaleout.get(second)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_cpu": 1}, TypeError, "num_cpus"),
        ({"nane": "x"}, TypeError, "name"),
        ({"zzz": 1}, TypeError, "max_retries"),
        ({"num_returns": -1}, ValueError, "num_returns"),
        ({"num_returns": 1.5}, ValueError, "num_returns"),
        ({"num_returns": True}, ValueError, "num_returns"),
        ({"num_returns": "many"}, ValueError, "num_returns"),
        ({"max_retries": -2}, ValueError, "max_retries"),
        ({"max_retries": "3"}, ValueError, "max_retries"),
        ({"timeout_s": 0}, ValueError, "timeout_s"),
        ({"timeout_s": "1"}, ValueError, "timeout_s"),
        ({"priority": "high"}, ValueError, "priority"),
        ({"retry_exceptions": "ValueError"}, ValueError, "retry_exceptions"),
        ({"retry_exceptions": [5]}, ValueError, "retry_exceptions"),
        ({"num_cpus": -1}, ValueError, "CPU"),
        ({"num_gpus": 1.5}, ValueError, "num_gpus"),
        ({"resources": {"tpu": "x"}}, ValueError, "tpu"),
        ({"name": 5}, ValueError, "name"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        scaleout.remote(**options)(lambda: None)
    with pytest.raises(error, match=match):
        add.options(**options)


@pytest.mark.parametrize("what", [5, None, "f"])
def test_remote_of_something_else(what: Any) -> None:
    with pytest.raises(TypeError, match="function or a class"):
        scaleout.remote(what)
    with pytest.raises(TypeError, match="by name"):
        scaleout.remote(add, 5)


def test_name_stands_in_the_list_of_tasks() -> None:
    scaleout.get(add.options(name="sum up").remote(1, 2))
    assert "sum up" in [task["name"] for task in scaleout.list_tasks()]


def test_priority_goes_before_what_waits(one_slot: None, tmp_path: Path) -> None:
    gate, log = Gate(tmp_path), str(tmp_path / "log")
    first = wait_at.remote(gate.path)
    wait_until(lambda: notes(gate.path + ".log"))
    refs = [note_and_return.options(priority=priority).remote(log, priority) for priority in (0, 1, 5, -1, 5, 0)]
    scaleout.list_tasks()  # all are queued now
    gate.open()
    scaleout.get([first, *refs])
    assert notes(log) == ["5", "5", "1", "0", "0", "-1"]


# -- errors --------------------------------------------------------------------------------------


def test_an_exception_comes_as_it_is_with_the_workers_traceback() -> None:
    ref = fail.remote("this one")
    for _ in range(2):
        with pytest.raises(ValueError, match="^this one$") as caught:
            scaleout.get(ref)
        assert "raise ValueError(message)" in str(caught.value.__cause__)
        assert type(caught.value.__cause__) is errors.RemoteTraceback


def test_the_first_failure_in_order_is_raised() -> None:
    refs = [add.remote(1, 1), fail.remote("first"), fail.remote("second")]
    with pytest.raises(ValueError, match="first"):
        scaleout.get(refs)
    assert scaleout.get(refs[0]) == 2


class NotToBePickled(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class NotToBeUnpickled(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


def test_exceptions_that_do_not_pickle() -> None:
    def raises(kind: Any, *arguments: Any) -> None:
        raise kind(*arguments)

    with pytest.raises(Exception, match="not this one"):
        scaleout.get(scaleout.remote(raises).remote(NotToBePickled))
    with pytest.raises(errors.ResultUnpicklingError):
        scaleout.get(scaleout.remote(raises).remote(NotToBeUnpickled, 1, 2))
    assert scaleout.get(add.remote(1, 1)) == 2


def test_a_result_that_does_not_pickle_names_what() -> None:
    with pytest.raises(Exception, match="lock"):
        scaleout.get(scaleout.remote(threading.Lock).remote())


def test_arguments_that_do_not_pickle_raise_at_the_call() -> None:
    with pytest.raises(Exception, match="lock"):
        echo.remote(threading.Lock())
    with pytest.raises(Exception, match="lock"):
        scaleout.put(threading.Lock())


def test_system_exit_and_keyboard_interrupt() -> None:
    def leave(how: type[BaseException]) -> None:
        raise how(3)

    with pytest.raises(errors.WorkerDiedError, match=r"SystemExit\(3\)"):
        scaleout.get(scaleout.remote(leave).remote(SystemExit))
    with pytest.raises(KeyboardInterrupt):
        scaleout.get(scaleout.remote(leave).remote(KeyboardInterrupt))
    assert scaleout.get(add.remote(1, 1)) == 2


def test_a_large_exception() -> None:
    def raises() -> None:
        raise ValueError(numpy.ones(100_000))

    with pytest.raises(ValueError) as caught:
        scaleout.get(scaleout.remote(raises).remote())
    assert caught.value.args[0].sum() == 100_000


# -- dependencies --------------------------------------------------------------------------------


def test_a_reference_at_top_level_is_resolved() -> None:
    ref = add.remote(1, 2)
    assert scaleout.get(add.remote(ref, ref)) == 6
    assert scaleout.get(echo.remote(ref, key=add.remote(ref, 1))) == ((3,), {"key": 4})
    assert scaleout.get(echo.remote(scaleout.put("put"))) == (("put",), {})


def test_a_reference_in_a_container_stays_one() -> None:
    ref = add.remote(1, 2)

    @scaleout.remote
    def look(container: Any) -> Any:
        (inner,) = container["refs"]
        assert isinstance(inner, scaleout.ObjectRef)
        return scaleout.get(inner)

    assert scaleout.get(look.remote({"refs": [ref]})) == 3


def test_a_chain_and_a_diamond() -> None:
    ref: Any = 0
    for _ in range(200):
        ref = add.remote(ref, 1)
    assert scaleout.get(ref) == 200
    left, right = add.remote(ref, 1), add.remote(ref, 2)
    assert scaleout.get(add.remote(left, right)) == 403


def test_many_dependencies_of_one_task() -> None:
    refs = [scaleout.put(number) for number in range(10_000)]
    assert scaleout.get(scaleout.remote(lambda *numbers: sum(numbers)).remote(*refs)) == sum(range(10_000))


def test_a_dependency_that_fails_fails_what_depends_on_it() -> None:
    ref = fail.remote("far down")
    for _ in range(20):
        ref = add.remote(ref, 1)
    with pytest.raises(ValueError, match="far down"):
        scaleout.get(ref)
    with pytest.raises(ValueError, match="far down"):
        scaleout.get(echo.remote(1, key=ref))


def test_a_dependency_that_comes_late_does_not_hold_up_others(one_slot: None, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    slow = wait_at.remote(gate.path, 1)
    dependent = add.remote(slow, 1)
    wait_until(lambda: notes(gate.path + ".log"))
    ready, _ = scaleout.wait([dependent], timeout=0)
    assert ready == []
    gate.open()
    assert scaleout.get(dependent) == 2


# -- large values --------------------------------------------------------------------------------


def test_large_arguments_and_results_are_views() -> None:
    array = numpy.arange(500_000, dtype=numpy.int64)

    @scaleout.remote
    def negative(values: Any) -> Any:
        return -values

    result = scaleout.get(negative.remote(array))
    assert (result == -array).all()
    assert not result.flags.owndata
    result[0] = 5  # private


def test_a_large_object_is_stored_once_and_read_by_many() -> None:
    ref = scaleout.put(numpy.ones(1_000_000))
    (there,) = [found for found in scaleout.list_objects() if found["is_stored"]]
    assert there["size_bytes"] >= 8_000_000

    @scaleout.remote
    def total(values: Any, refs: Any) -> float:
        return float(values.sum() + scaleout.get(refs[0]).sum())

    assert scaleout.get([total.remote(ref, [ref]) for _ in range(8)]) == [2_000_000.0] * 8


def test_a_changed_view_changes_nothing_else() -> None:
    ref = scaleout.put(numpy.zeros(100_000))

    @scaleout.remote
    def change(values: Any) -> float:
        values[:] = 1
        return float(values.sum())

    assert scaleout.get([change.remote(ref), change.remote(ref)]) == [100_000.0] * 2
    mine = scaleout.get(ref)
    assert mine.sum() == 0
    mine[:] = 2
    assert scaleout.get(ref).sum() == 0


def test_a_view_outlives_its_reference() -> None:
    view = scaleout.get(scaleout.put(numpy.full(200_000, 3.0)))
    others = [scaleout.get(scaleout.put(numpy.zeros(200_000))) for _ in range(5)]
    assert view.sum() == 600_000
    assert sum(other.sum() for other in others) == 0


def test_a_view_outlives_the_worker_that_wrote_it() -> None:
    ref = scaleout.remote(lambda: (os.getpid(), numpy.full(200_000, 2.0))).remote()
    pid, view = scaleout.get(ref)
    os.kill(pid, 9)
    wait_until(lambda: pid not in [peer["pid"] for peer in _workers()])
    assert view.sum() == 400_000
    assert scaleout.get(ref)[1].sum() == 400_000


def _workers() -> list[dict[str, Any]]:
    from scaleout._runtime.base import references

    return [{"pid": peer.pid} for peer in list(references.client._owner.keeper.peers.values())]


def test_a_hundred_megabytes_in_turn_need_no_more_room_than_a_few() -> None:
    @scaleout.remote
    def make(number: int) -> Any:
        return numpy.full(1_000_000, number, dtype=numpy.int64)

    for number in range(20):
        assert scaleout.get(make.remote(number))[0] == number
    assert scaleout.list_objects() == []


# -- time ----------------------------------------------------------------------------------------


def test_get_with_a_timeout(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    ref = wait_at.remote(gate.path, "late")
    with pytest.raises(errors.GetTimeoutError, match=r"0\.05 s"):
        scaleout.get(ref, timeout=0.05)
    with pytest.raises(TimeoutError):
        scaleout.get([ref], timeout=0)
    wait_until(lambda: notes(gate.path + ".log"))
    gate.open()
    assert scaleout.get(ref, timeout=float("inf")) == "late"
    with pytest.raises(TypeError, match="timeout"):
        scaleout.get(ref, timeout="1")  # type: ignore[arg-type]


def test_timeout_s_kills_only_that_worker(two_slots: None, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    other = wait_at.remote(gate.path, 1)
    late = scaleout.remote(timeout_s=0.1)(time.sleep).remote(3600)
    with pytest.raises(errors.TaskTimeoutError, match=r"0\.1 s") as caught:
        scaleout.get(late)
    assert isinstance(caught.value, TimeoutError)
    wait_until(lambda: notes(gate.path + ".log"))
    gate.open()
    assert scaleout.get(other) == 1


def test_timeout_s_does_not_count_the_wait_for_a_slot(one_slot: None, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    first = wait_at.remote(gate.path)
    second = add.options(timeout_s=0.2).remote(1, 1)
    with pytest.raises(TimeoutError):
        scaleout.get(second, timeout=0.5)
    gate.open()
    assert scaleout.get([first, second]) == [None, 2]


# -- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["_exit", "kill"])
def test_a_dead_worker_costs_a_retry(kind: str, tmp_path: Path) -> None:
    assert scaleout.get(strike.remote(Fault(kind, tmp_path, times=2), "there")) == "there"


def test_max_retries(tmp_path: Path) -> None:
    with pytest.raises(errors.WorkerDiedError) as caught:
        scaleout.get(strike.options(max_retries=0).remote(Fault("_exit", tmp_path)))
    assert (caught.value.attempts, caught.value.exitcode) == (1, EXIT_CODE)
    with pytest.raises(errors.WorkerDiedError) as caught:
        scaleout.get(strike.options(max_retries=1).remote(Fault("kill", tmp_path)))
    assert (caught.value.attempts, caught.value.exitcode) == (2, -9)
    assert scaleout.get(strike.options(max_retries=-1).remote(Fault("_exit", tmp_path, times=6), 1)) == 1


@pytest.mark.parametrize("num_returns", [1, 2, 0])
@pytest.mark.parametrize("large", [False, True])
def test_retry_exceptions(num_returns: int, large: bool, tmp_path: Path) -> None:
    """Also: an attribute that only sinks of one result had stopped the runtime; a large argument lives on."""

    @scaleout.remote(retry_exceptions=[ValueError], max_retries=2, num_returns=num_returns)
    def flaky(fault: Fault, values: Any, log: str) -> Any:
        fault.strike()
        note(log, values.sum())
        return [values.sum()] * num_returns if num_returns > 1 else values.sum()

    values, log = numpy.ones(100_000 if large else 10), str(tmp_path / "log")
    result = flaky.remote(Fault("raise", tmp_path, times=2), values, log)
    if num_returns:
        found = scaleout.get(result)
        assert found == (values.sum() if num_returns == 1 else [values.sum()] * 2)
    wait_until(lambda: notes(log) == [str(values.sum())])


def test_a_callback_may_wait_for_a_task_that_is_retried(tmp_path: Path) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def called(future: Any) -> None:
        flaky = strike.options(retry_exceptions=True)
        try:
            seen.append(scaleout.get(flaky.remote(Fault("raise", tmp_path, times=1), future.result()), timeout=30))
        finally:
            done.set()

    echo.remote(1).future().add_done_callback(called)
    assert done.wait(60)
    assert seen == [((1,), {})]


def test_retry_exceptions_with_a_dependency(tmp_path: Path) -> None:
    flaky = strike.options(retry_exceptions=True)
    assert scaleout.get(flaky.remote(Fault("raise", tmp_path, times=1), add.remote(1, 2))) == 3


def test_retries_of_exceptions_end(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @scaleout.remote(retry_exceptions=True, max_retries=2)
    def always() -> None:
        note(log, "ran")
        raise KeyError("again")

    with pytest.raises(KeyError, match="again"):
        scaleout.get(always.remote())
    assert notes(log) == ["ran"] * 3


def test_other_exceptions_are_not_retried(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="struck"):
        scaleout.get(strike.options(retry_exceptions=[KeyError]).remote(Fault("raise", tmp_path, times=1)))


def test_a_task_that_is_retried_can_be_cancelled(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @scaleout.remote(retry_exceptions=True, max_retries=-1)
    def always() -> None:
        note(log, "ran")
        raise KeyError("again")

    ref = always.remote()
    wait_until(lambda: len(notes(log)) > 3)
    scaleout.cancel(ref)
    with pytest.raises(errors.TaskCancelledError):
        scaleout.get(ref, timeout=20)


# -- cancelling ----------------------------------------------------------------------------------


def test_cancel_what_waits_what_depends_and_what_runs(one_slot: None, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    running_, queued = wait_at.remote(gate.path), add.remote(1, 1)
    dependent = add.remote(running_, 1)
    wait_until(lambda: notes(gate.path + ".log"))
    for ref in (dependent, queued, running_):
        scaleout.cancel(ref)
        with pytest.raises(errors.TaskCancelledError):
            scaleout.get(ref, timeout=20)
    assert scaleout.get(add.remote(1, 1)) == 2


def test_cancel_what_takes_no_notice(tmp_path: Path) -> None:
    @scaleout.remote
    def stubborn(log: str) -> None:
        note(log, os.getpid())
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                pass

    for number, force in enumerate([False, True]):
        log = str(tmp_path / f"log-{number}")
        ref = stubborn.remote(log)
        wait_until(lambda log=log: notes(log))
        scaleout.cancel(ref, force=force)
        with pytest.raises(errors.TaskCancelledError):
            scaleout.get(ref, timeout=20)
    assert scaleout.get(add.remote(1, 1)) == 2


def test_cancel_what_has_ended_or_was_put() -> None:
    ref = add.remote(1, 1)
    assert scaleout.get(ref) == 2
    scaleout.cancel(ref)
    put = scaleout.put(5)
    scaleout.cancel(put)
    assert scaleout.get([ref, put]) == [2, 5]
    with pytest.raises(TypeError, match="reference"):
        scaleout.cancel(5)  # type: ignore[arg-type]


def test_cancel_reaches_what_a_task_has_submitted(tmp_path: Path) -> None:
    gate = Gate(tmp_path)

    @scaleout.remote
    def parent(path: str) -> Any:
        return scaleout.get([wait_at.remote(path), wait_at.remote(path)])

    ref = parent.remote(gate.path)
    wait_until(lambda: len(notes(gate.path + ".log")) == 2)
    scaleout.cancel(ref)
    with pytest.raises(errors.TaskCancelledError):
        scaleout.get(ref, timeout=20)
    wait_until(lambda: not [task for task in scaleout.list_tasks() if task["state"] in ("RUNNING", "PENDING")])


# -- threads, and many ---------------------------------------------------------------------------


def test_many_threads_submit_and_get() -> None:
    found: list[Any] = []

    def work(number: int) -> None:
        for _ in range(30):
            found.append(scaleout.get(add.remote(number, 1)) == number + 1)
            refs = [add.remote(number, step) for step in range(5)]
            found.append(scaleout.get(refs) == [number + step for step in range(5)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 480


def test_ten_thousand_tasks() -> None:
    assert scaleout.get([add.remote(number, 1) for number in range(10_000)]) == list(range(1, 10_001))


def test_dropped_references_drop_nothing_that_runs(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for number in range(20):
        note_and_return.remote(log, number)
    gc.collect()
    wait_until(lambda: len(notes(log)) == 20)


@pytest.fixture
def registered() -> Iterator[type]:
    scaleout.register_serializer(Locked, serializer=lambda locked: locked.value, deserializer=Locked)
    yield Locked
    scaleout.deregister_serializer(Locked)


class Locked:
    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()


def test_a_registered_serializer_works_everywhere(registered: Any) -> None:
    back = scaleout.get(scaleout.remote(lambda locked: registered(locked.value + 1)).remote(registered(1)))
    assert back.value == 2
    assert scaleout.get(scaleout.put([registered(3)]))[0].value == 3
    scaleout.deregister_serializer(registered)
    with pytest.raises(Exception, match="lock"):
        scaleout.put(registered(1))


def test_errors_name_the_task() -> None:
    @scaleout.remote(max_retries=0)
    def die() -> None:
        os._exit(3)

    @scaleout.remote(timeout_s=0.1)
    def sleep() -> None:
        time.sleep(60)

    @scaleout.remote
    class Sleeper:
        def sleep(self) -> None:
            time.sleep(60)

    where = "test_errors_name_the_task.<locals>."
    with pytest.raises(errors.WorkerDiedError, match=f"the task {where}die died with exit code 3"):
        scaleout.get(die.remote())
    with pytest.raises(errors.WorkerDiedError, match="the task undertaker died"):
        scaleout.get(die.options(name="undertaker").remote())
    with pytest.raises(errors.TaskTimeoutError, match=f"the task {where}sleep ran for longer"):
        scaleout.get(sleep.remote())
    with pytest.raises(errors.TaskTimeoutError, match="the call Sleeper.sleep ran for longer"):
        scaleout.get(Sleeper.remote().sleep.options(timeout_s=0.1).remote())
