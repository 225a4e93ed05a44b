"""Tasks inside tasks, to any depth, on one slot and on two: a blocked task gives its slot back, and helps itself."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from faults import note, notes, wait_until

import scaleout
from scaleout import errors
from scaleout._runtime.base import references
from scaleout.futures import ScaleoutExecutor
from scaleout.multiprocessing import Pool


@scaleout.remote
def add(a: Any, b: Any) -> Any:
    return a + b


@scaleout.remote
def factorial(n: int) -> int:
    return 1 if n < 2 else n * scaleout.get(factorial.remote(n - 1))


@scaleout.remote
def tree(depth: int) -> int:
    if depth == 0:
        return 1
    return 1 + sum(scaleout.get([tree.remote(depth - 1), tree.remote(depth - 1)]))


@scaleout.remote
def in_turn(depth: int) -> int:
    return 1 if depth == 0 else sum(scaleout.get(in_turn.remote(depth - 1)) for _ in range(2))


@scaleout.remote
def fib_by_dependency(n: int) -> Any:
    if n < 2:
        return n
    return scaleout.get(add.remote(fib_now.remote(n - 1), fib_now.remote(n - 2)))


@scaleout.remote
def fib_now(n: int) -> Any:
    return n if n < 2 else scaleout.get(fib_by_dependency.remote(n))


SLOTS = [1, 2]


@pytest.mark.parametrize("slots", SLOTS)
def test_recursion(slots: int) -> None:
    scaleout.init(num_cpus=slots)
    assert scaleout.get(factorial.remote(20)) == math.factorial(20)
    assert scaleout.get(in_turn.remote(5)) == 32
    assert scaleout.get(fib_by_dependency.remote(8)) == 21


@pytest.mark.slow
@pytest.mark.parametrize("slots", SLOTS)
def test_recursion_of_500(slots: int) -> None:
    scaleout.init(num_cpus=slots)
    assert scaleout.get(factorial.remote(500)) == math.factorial(500)


@pytest.mark.parametrize("slots", SLOTS)
def test_a_tree_of_tasks(slots: int) -> None:
    scaleout.init(num_cpus=slots)
    assert scaleout.get(tree.remote(9)) == 1023


@pytest.mark.slow
def test_a_tree_of_ten_thousand_tasks(two_slots: None) -> None:
    assert scaleout.get(tree.remote(13)) == 16_383


def test_a_recursion_without_an_end_is_an_error(two_slots: None) -> None:
    @scaleout.remote
    def endless(depth: int) -> int:
        return scaleout.get(endless.remote(depth + 1)) + 1  # type: ignore[no-any-return]

    references.client._owner.keeper._max_processes = 6
    with pytest.raises(errors.ProcessLimitError, match="recursion"):
        scaleout.get(endless.remote(0), timeout=60)
    assert scaleout.get(factorial.remote(40)) == math.factorial(40)


def test_who_waits_at_the_limit_of_processes_does_not_fail_others(two_slots: None, tmp_path: Path) -> None:
    """All workers wait, but for what the driver is yet to do."""
    os.mkfifo(tmp_path / "gate")

    @scaleout.remote
    class Gate:
        def open(self, path: str) -> int:
            with open(path):
                return 1

    @scaleout.remote
    def wait_for(refs: list[Any]) -> int:
        return scaleout.get(refs[0])  # type: ignore[no-any-return]

    keeper = references.client._owner.keeper
    gate = Gate.remote().open.remote(str(tmp_path / "gate"))
    keeper._max_processes = 4
    waiting = [wait_for.remote([gate]) for _ in range(8)]
    assert scaleout.wait(waiting, timeout=1.0)[0] == []
    with open(tmp_path / "gate", "w"):
        pass
    assert scaleout.get(waiting, timeout=60) == [1] * 8


def test_everything_from_inside_a_task(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @scaleout.remote
    def forever(log: str) -> None:
        note(log, os.getpid())
        threading.Event().wait()

    @scaleout.remote
    def use(log: str) -> list[str]:
        done = []
        ref = scaleout.put([1, 2])
        assert scaleout.get(add.remote(ref, ref)) == [1, 2, 1, 2]
        never = forever.remote(log)
        try:
            scaleout.get(never, timeout=0.05)
        except errors.GetTimeoutError:
            done.append("timeout")
        ready, rest = scaleout.wait([never, ref], num_returns=2, timeout=0.05)
        assert (ready, rest) == ([ref], [never])
        assert scaleout.wait([never, ref]) == ([ref], [never])
        scaleout.cancel(never, force=True)
        try:
            scaleout.get(never)
        except errors.TaskCancelledError:
            done.append("cancelled")
        refs = [add.remote(number, 0) for number in range(10)]
        assert sorted(scaleout.get(list(scaleout.as_completed(refs)))) == list(range(10))
        assert refs[3].future().result(timeout=30) == 3
        first, second = scaleout.remote(num_returns=2)(lambda: ("a", "b")).remote()
        assert scaleout.get([second, first]) == ["b", "a"]
        try:
            scaleout.get(scaleout.remote(lambda: 1 / 0).remote())
        except ZeroDivisionError as error:
            done.append(type(error.__cause__).__name__)
        assert scaleout.get(add.remote(1, 1), timeout=1e9) == 2
        assert scaleout.available_resources()["CPU"] >= 0
        assert scaleout.get([]) == []
        return done

    scaleout.init(num_cpus=2)
    assert scaleout.get(use.remote(log), timeout=60) == ["timeout", "cancelled", "RemoteTraceback"]


def test_threads_inside_a_task() -> None:
    @scaleout.remote
    def use() -> Any:
        found: list[Any] = []

        def work(number: int) -> None:
            for step in range(10):
                ref = add.remote(scaleout.put(number), step)
                found.append(scaleout.get(ref) == number + step)
                assert scaleout.wait([ref]) == ([ref], [])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        own = scaleout.get([add.remote(number, 1) for number in range(20)])
        for thread in threads:
            thread.join()
        return found, own

    scaleout.init(num_cpus=2)
    assert scaleout.get(use.remote(), timeout=60) == ([True] * 60, list(range(1, 21)))


def test_a_thread_that_outlives_its_task(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @scaleout.remote
    def use(log: str) -> None:
        def later() -> None:
            note(log, scaleout.get(add.remote(40, 2)))

        threading.Timer(0.2, later).start()

    scaleout.get(use.remote(log))
    wait_until(lambda: notes(log) == ["42"])


def test_a_nested_task_whose_worker_dies(tmp_path: Path) -> None:
    @scaleout.remote
    def dies_once(directory: str) -> str:
        try:
            os.mkdir(directory)
        except FileExistsError:
            return "again"
        os._exit(3)

    @scaleout.remote
    def outer(directory: str) -> str:
        return scaleout.get(dies_once.remote(directory))

    for slots in SLOTS:
        scaleout.shutdown()
        scaleout.init(num_cpus=slots)
        refs = [outer.remote(str(tmp_path / f"{slots}-{number}")) for number in range(4)]
        assert scaleout.get(refs, timeout=60) == ["again"] * 4


def test_retry_exceptions_of_a_nested_task(tmp_path: Path) -> None:
    """Options of tasks that were submitted in workers had not been looked at."""

    @scaleout.remote(retry_exceptions=[KeyError], max_retries=1)
    def flaky(directory: str, error: type[Exception]) -> str:
        try:
            os.mkdir(directory)
        except FileExistsError:
            return "again"
        raise error("once")

    @scaleout.remote
    def outer(directory: str, error: type[Exception]) -> str:
        return scaleout.get(flaky.remote(directory, error))

    assert scaleout.get(outer.remote(str(tmp_path / "a"), KeyError)) == "again"
    with pytest.raises(ValueError, match="once"):
        scaleout.get(outer.remote(str(tmp_path / "b"), ValueError))


def test_results_are_references_to_what_nested_tasks_make() -> None:
    @scaleout.remote
    def launch(depth: int) -> Any:
        return add.remote(depth, depth) if depth == 0 else [launch.remote(depth - 1), add.remote(depth, 0)]

    found = scaleout.get(launch.remote(5))
    for depth in range(5, 0, -1):
        inner, number = found
        assert scaleout.get(number) == depth
        found = scaleout.get(inner)
    assert scaleout.get(found) == 0


def in_pool(number: int) -> Any:
    return scaleout.get(add.remote(number, scaleout.get(factorial.remote(3))))


def test_tasks_from_the_workers_of_a_pool_and_an_executor() -> None:
    with Pool(2) as pool:
        assert pool.map(in_pool, range(6)) == [number + 6 for number in range(6)]
    with ScaleoutExecutor(2) as executor:
        assert list(executor.map(in_pool, range(6))) == [number + 6 for number in range(6)]


def test_a_pool_inside_of_a_task() -> None:
    @scaleout.remote
    def use() -> list[int]:
        with Pool(2) as pool:
            return pool.map(abs, range(-3, 3))

    assert scaleout.get(use.remote()) == [3, 2, 1, 0, 1, 2]
