"""Pool as a user meets it: what it adds to the standard library's, and what must not differ."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaleout import errors
from scaleout import multiprocessing as mp
from scaleout._runtime.base import limits
from scaleout.multiprocessing import Pool


def run(code: str, **environ: str) -> str:
    """What a script prints; it must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **environ}
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def add_in_place(array: np.ndarray, value: int) -> float:
    array += value
    return float(array.sum())


def first(array: np.ndarray) -> float:
    return float(array[0])


class TestCalls:
    def test_lambdas_closures_and_bound_methods(self) -> None:
        factor = 3

        class Scaler:
            def __init__(self) -> None:
                self.factor = 2

            def scale(self, value: int) -> int:
                return self.factor * value

        with Pool(2) as pool:
            assert pool.map(lambda value: factor * value, [1, 2]) == [3, 6]
            scaler = Scaler()
            assert pool.map(scaler.scale, [1, 2]) == [2, 4]
            scaler.factor = 10
            assert pool.map(scaler.scale, [1, 2]) == [10, 20]

    def test_an_exception_may_be_a_result(self) -> None:
        with Pool(1) as pool:
            result = pool.apply(ValueError, ("a value",))
            assert type(result) is ValueError

    def test_a_hundred_lambdas_leave_nothing_in_the_worker(self) -> None:
        with Pool(1) as pool:
            for number in range(1500):
                assert pool.apply(lambda: number) == number  # noqa: B023
            known = pool._group.workers[0].known_callables
            assert len(known) < 1000

    def test_a_callback_is_called_before_the_result_is_ready(self) -> None:
        seen: list[Any] = []
        with Pool(1) as pool:
            result = pool.apply_async(abs, (-1,), callback=lambda value: seen.append((value, result.ready())))
            assert result.get(30) == 1
        assert seen == [(1, False)]

    def test_a_callback_may_wait_for_that_of_another_pool(self) -> None:
        waits, called, both = threading.Event(), threading.Event(), []

        def wait(value: int) -> None:
            waits.set()
            both.append(called.wait(30))

        with Pool(1) as one, Pool(1) as other:
            first = one.apply_async(abs, (-1,), callback=wait)
            assert waits.wait(30)
            other.apply_async(abs, (-2,), callback=lambda value: called.set()).get(30)
            assert first.get(30) == 1
        assert both == [True]

    def test_when_join_returns_callbacks_have_been_called(self) -> None:
        seen: list[int] = []
        with Pool(2) as other, Pool(2) as pool:
            for value in range(20):
                pool.apply_async(abs, (value,), callback=lambda value: (time.sleep(0.005), seen.append(value)))
            pool.close()
            pool.join()
            assert sorted(seen) == list(range(20))
            assert other.apply(abs, (-1,)) == 1

    def test_who_submits_without_a_pause_does_not_keep_the_runtime_from_its_work(self) -> None:
        with Pool(2) as pool:
            inbox = pool._group._owner.reactor.inbox
            unseen, results = [], []
            for value in range(3000):
                results.append(pool.apply_async(abs, (-value,)))
                unseen.append(len(inbox))
            assert max(unseen) <= limits.UNSEEN_TASKS
            assert [result.get(30) for result in results] == list(range(3000))

    def test_arguments_are_taken_at_the_call(self) -> None:
        with Pool(1) as pool:
            values = [1]
            result = pool.apply_async(sum, (values,))
            values.append(100)
            assert result.get(30) == 1

    def test_what_cannot_travel_is_named(self) -> None:
        lock = threading.Lock()

        def uses_it() -> Any:
            return lock

        with Pool(1) as pool, pytest.raises(TypeError) as caught:
            pool.apply(uses_it)
        text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
        assert "lock" in text and "uses_it" in text


class TestMaps:
    def test_imap_with_a_buffer_pulls_no_further_than_asked(self) -> None:
        pulled = []

        def numbers() -> Any:
            for number in range(1000):
                pulled.append(number)
                yield number

        with Pool(2) as pool:
            results = pool.imap(abs, numbers(), buffersize=10)
            assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
            assert len(pulled) <= 5 + 10 + 1
            assert sum(results) == sum(range(5, 1000))

    @pytest.mark.parametrize(("buffersize", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError)])
    def test_a_bad_buffersize_is_refused(self, buffersize: Any, error: type[Exception]) -> None:
        with Pool(1) as pool, pytest.raises(error, match="buffersize"):
            pool.imap(abs, [1], buffersize=buffersize)

    def test_an_abandoned_imap_over_an_endless_generator_holds_nothing_up(self) -> None:
        def forever() -> Any:
            while True:
                yield 1

        with Pool(1) as pool:
            results = pool.imap(abs, forever(), buffersize=5)
            assert next(results) == 1
            del results
            assert pool.map(abs, [-1]) == [1]

    def test_a_generator_that_fails_says_so_at_its_place(self) -> None:
        def numbers() -> Any:
            yield 1
            raise ArithmeticError("no more")

        with Pool(1) as pool:
            results = pool.imap(abs, numbers())
            assert next(results) == 1
            with pytest.raises(ArithmeticError, match="no more"):
                next(results)
            with pytest.raises(StopIteration):
                next(results)

    @pytest.mark.parametrize("count", [0, 1, 7, 100])
    @pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
    def test_every_way_to_map_agrees(self, count: int, chunksize: int | None) -> None:
        items = range(-count, 0)
        expected = [abs(item) for item in items]
        with Pool(2) as pool:
            assert pool.map(abs, items, chunksize) == expected
            assert pool.map(abs, iter(items), chunksize) == expected
            assert pool.starmap(divmod, [(item, 3) for item in items], chunksize) == [divmod(i, 3) for i in items]
            assert list(pool.imap(abs, items, chunksize or 1)) == expected
            assert sorted(pool.imap_unordered(abs, iter(items), chunksize or 1)) == sorted(expected)

    def test_long_tasks_do_not_keep_short_ones_waiting(self) -> None:
        """What is prefetched behind a long task is taken back."""
        with Pool(2) as pool:
            for _ in range(3):
                pool.map(time.sleep, [0] * 200, chunksize=1)  # so that the function is prefetched deeply
            started = time.monotonic()
            done_at = []
            for _ in pool.imap_unordered(time.sleep, [0.5] + [0] * 300):
                done_at.append(time.monotonic() - started)
            assert sorted(done_at)[299] < 0.5


class TestArrays:
    def test_an_array_argument_is_writable_and_private(self) -> None:
        array = np.zeros(100_000)
        with Pool(2) as pool:
            assert pool.starmap(add_in_place, [(array, 1)] * 6, chunksize=1) == [100_000.0] * 6
        assert not array.any()

    def test_an_array_result_is_writable(self) -> None:
        with Pool(1) as pool:
            array = pool.apply(np.ones, (200_000,))
            array += 1
            assert array.sum() == 400_000
            again = pool.apply(np.ones, (200_000,))
            assert (array[0], again[0]) == (2.0, 1.0)
        assert array[-1] == 2.0  # also when its worker and the pool are gone

    def test_a_repeated_argument_is_stored_once(self) -> None:
        array = np.ones(1_000_000)
        with Pool(2) as pool:
            pool.map(abs, [1])
            results = pool.starmap_async(add_in_place, [(array, 0)] * 20, chunksize=1)
            assert pool._group._owner.objects.exchange.used_bytes <= 2 * array.nbytes
            assert results.get(60) == [1_000_000.0] * 20

    def test_a_generator_that_refills_one_buffer_delivers_each_content(self) -> None:
        buffer = np.zeros(100_000)

        def arrays() -> Any:
            for number in range(10):
                buffer[:] = number
                yield buffer

        with Pool(2) as pool:
            assert list(pool.imap(first, arrays())) == list(range(10))

    def test_ranges_are_given_back(self) -> None:
        with Pool(2) as pool:
            for _ in range(10):
                pool.apply(np.sum, (np.ones(500_000),))
                pool.apply(np.ones, (500_000,))
            objects = pool._group._owner.objects
            deadline = time.monotonic() + 30
            while len(objects.ranges) or objects.unread:
                assert pool.apply(abs, (-1,)) == 1
                assert time.monotonic() < deadline

    def test_ranges_of_initializer_arguments_are_given_back(self) -> None:
        """They were kept until the last pool of the process ended."""
        with Pool(1):
            with Pool(2, initializer=np.sum, initargs=(np.ones(500_000),)) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
                objects = pool._group._owner.objects
                assert len(objects.ranges)
                pool.close()
                pool.join()
            assert not len(objects.ranges)

    def test_beyond_the_budget_values_go_to_disk_and_come_back(self, tmp_path: Path) -> None:
        code = """
import numpy as np
from scaleout.multiprocessing import Pool
with Pool(2) as pool:
    held = [pool.apply(np.full, (500_000, number)) for number in range(6)]
    sums = pool.map_async(np.sum, [np.full(500_000, number) for number in range(6)], 1).get(60)
    assert [int(array[0]) for array in held] == list(range(6))
    assert [int(total) for total in sums] == [500_000 * number for number in range(6)]
    print("right")
"""
        assert run(code, SCALEOUT_STORE_BYTES="5M", SCALEOUT_SPILL_DIR=str(tmp_path)) == "right\n"
        assert list(tmp_path.iterdir()) == []

    def test_two_hundred_dead_workers_keep_only_what_is_looked_at(self) -> None:
        with Pool(1, maxtasksperchild=1) as pool:
            held = [pool.apply(np.ones, (131_072,)) for _ in range(40)]
            assert all(array.sum() == 131_072 for array in held)


class TestWorkers:
    def test_they_are_multiprocessing_children(self) -> None:
        def describe(_: int) -> tuple[Any, ...]:
            import multiprocessing

            process = multiprocessing.current_process()
            parent = multiprocessing.parent_process()
            return process.name, process.daemon, bytes(process.authkey), parent.pid, multiprocessing.get_start_method()

        with Pool(1) as pool:
            name, daemon, authkey, parent_pid, method = pool.apply(describe, (0,))
        assert name.startswith("SpawnPoolWorker-") and not daemon
        assert (authkey, parent_pid, method) == (bytes(mp.current_process().authkey), os.getpid(), "spawn")

    def test_primitives_pass_to_the_initializer_only(self) -> None:
        def init(*primitives: Any) -> None:
            globals()["primitives"] = primitives

        def use(number: int) -> None:
            lock, value, queue = globals()["primitives"]
            with lock:
                value.value += number
            queue.put(number)

        lock, value, queue = mp.Lock(), mp.Value("i", 0), mp.Queue()
        with Pool(2, init, (lock, value, queue)) as pool:
            pool.map(use, range(10), chunksize=1)
            assert sorted(queue.get(timeout=30) for _ in range(10)) == list(range(10))
            assert value.value == 45
            with pytest.raises(RuntimeError, match="inheritance"):
                pool.apply(use, (lock,))
        queue.close()
        queue.join_thread()

    def test_the_environment_is_the_present_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Pool(1) as pool:  # the zygote exists from here on
            pool.apply(abs, (1,))
        monkeypatch.setenv("SCALE_OUT_TEST", "later")
        monkeypatch.chdir(tmp_path)
        with Pool(1) as pool:
            assert pool.apply(os.getenv, ("SCALE_OUT_TEST",)) == "later"
            assert pool.apply(os.getcwd) == str(tmp_path)

    def test_nested_pools(self) -> None:
        def inner(count: int) -> int:
            with Pool(2) as pool:
                return sum(pool.map(abs, range(-count, 0)))

        with Pool(2) as pool:
            assert pool.map(inner, [3, 4], 1) == [6, 10]

    def test_too_deep_a_nest_is_an_error(self) -> None:
        def dig(depth: int) -> int:
            with Pool(1) as pool:
                return 1 + pool.apply(dig, (depth - 1,)) if depth else 0

        with Pool(1) as pool:
            assert pool.apply(dig, (2,)) == 2
            with pytest.raises(errors.NestingLimitError):
                pool.apply(dig, (8,))

    def test_a_module_that_workers_cannot_import_is_shipped(self) -> None:
        module = types.ModuleType("made_by_hand")
        exec(
            "LIMIT = 5\nclass Item:\n    def __init__(self): self.limit = LIMIT\ndef make(_): return Item()",
            vars(module),
        )
        sys.modules["made_by_hand"] = module
        try:
            with Pool(1) as pool:
                result = pool.map(module.make, [1])[0]  # type: ignore[attr-defined]
                assert type(result) is module.Item and result.limit == 5  # type: ignore[attr-defined]
        finally:
            del sys.modules["made_by_hand"]

    def test_a_callback_may_wait_for_a_call_whose_module_is_shipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = types.ModuleType("made_by_hand")
        exec("def make(value): return value + 1", vars(module))
        monkeypatch.setitem(sys.modules, "made_by_hand", module)
        made: list[int] = []
        with Pool(1) as pool:
            pool.apply_async(
                abs, (-1,), callback=lambda value: made.append(pool.apply_async(module.make, (value,)).get(30))
            ).wait(60)
            assert made == [2]


class TestMain:
    def test_names_bound_anew_take_effect_at_the_next_call(self) -> None:
        code = """
from scaleout.multiprocessing import Pool
STEP = 1
def helper(value): return value + STEP
def call(value): return helper(value)
with Pool(2) as pool:
    print(pool.map(call, [0, 1]), end=" ")
    STEP = 10
    print(pool.map(call, [0, 1]), end=" ")
    def helper(value): return -value
    print(pool.map(call, [1, 2]), pool.apply(call, (3,)))
"""
        assert run(code) == "[1, 2] [10, 11] [-1, -2] -3\n"

    def test_initializers_set_globals_for_every_kind_of_task(self) -> None:
        code = """
from scaleout.multiprocessing import Pool
def init(value):
    global state
    state = value
def read(_): return state
with Pool(2, init, (42,)) as pool:
    print(pool.map(read, range(3)), pool.map(lambda _: state, range(3)))
"""
        assert run(code) == "[42, 42, 42] [42, 42, 42]\n"

    def test_results_are_instances_of_the_drivers_classes(self) -> None:
        code = """
import dataclasses, enum
from scaleout.multiprocessing import Pool
@dataclasses.dataclass
class Point:
    x: int
class Color(enum.Enum):
    RED = 1
def move(point): return Point(point.x + 1), Color.RED
with Pool(1) as pool:
    point, color = pool.apply(move, (Point(1),))
    print(type(point) is Point, point.x, color is Color.RED)
"""
        assert run(code) == "True 2 True\n"

    def test_inline_mode_runs_here(self) -> None:
        code = """
import os
from scaleout.multiprocessing import Pool
with Pool(4) as pool:
    assert set(pool.map(lambda _: os.getpid(), range(10))) == {os.getpid()}
    assert list(pool.imap(abs, iter([-1, -2]), chunksize=2)) == [1, 2]
    assert pool.apply_async(abs, (-3,), callback=print).get() == 3
    try:
        pool.apply(divmod, (1, 0))
    except ZeroDivisionError:
        print("raised")
"""
        assert run(code, SCALEOUT_INLINE="1") == "3\nraised\n"

    def test_an_idle_pool_wakes_nothing(self) -> None:
        code = """
import os, time
from scaleout.multiprocessing import Pool
def switches(pids):
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            if int(task) == os.getpid():
                continue
            with open(f"/proc/{pid}/task/{task}/status") as file:
                total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total
with Pool(2) as pool:
    pool.map(abs, range(100), 1)
    time.sleep(0.5)
    worker = pool._pool[0].pid
    with open(f"/proc/{worker}/stat") as file:
        zygote = int(file.read().rpartition(")")[2].split()[1])
    pids = [os.getpid(), zygote, *(worker.pid for worker in pool._pool)]
    before = switches(pids)
    time.sleep(5)
    print(switches(pids) - before)
"""
        assert run(code) == "0\n"


class TestNames:
    def test_every_public_name_of_multiprocessing_is_there(self) -> None:
        import multiprocessing

        for name in multiprocessing.__all__:
            assert getattr(mp, name) is not None, name
        names: dict[str, Any] = {}
        exec("from scaleout.multiprocessing import *", names)
        assert set(multiprocessing.__all__) <= set(names)
        assert mp.get_context().Pool is not multiprocessing.get_context("spawn").Pool

    @pytest.mark.parametrize(
        "name", ["connection", "dummy", "managers", "queues", "shared_memory", "sharedctypes", "synchronize", "util"]
    )
    def test_submodules_are_the_standard_librarys(self, name: str) -> None:
        import importlib

        assert importlib.import_module(f"scaleout.multiprocessing.{name}") is importlib.import_module(
            f"multiprocessing.{name}"
        )
        assert getattr(mp, name) is importlib.import_module(f"multiprocessing.{name}")

    def test_what_is_wrong_with_the_arguments(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            Pool(0)
        with pytest.raises(ValueError, match="maxtasksperchild"):
            Pool(1, maxtasksperchild=-1)
        with pytest.raises(TypeError, match="callable"):
            Pool(1, initializer=3)
        with pytest.raises(ValueError, match="max_retries"):
            Pool(1, max_retries=-1)
        pool = Pool(1)
        with pytest.raises(ValueError, match="still running"):
            pool.join()
        with pytest.raises(TypeError):
            pool.map(abs, 5)
        pool.close()
        with pytest.raises(ValueError, match="not running"):
            pool.map(abs, [1])
        pool.join()


def test_workers_that_die_at_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an initializer there is none to blame."""
    from scaleout._runtime.client import embedded

    monkeypatch.setattr(embedded, "main_info", lambda: "nonsense")
    with Pool(1) as pool, pytest.raises(errors.ProcessLimitError, match="several in a row died while they started"):
        pool.apply(abs, (-1,))
