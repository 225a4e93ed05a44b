"""Parallel calls inside parallel calls: every backend in every other, and scaleout's three shims in one another."""

from __future__ import annotations

import json
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import get_active_backend
from programs import running

import scaleout.joblib_backend  # noqa: F401 - makes the name known, in workers too, as they import this module
from scaleout import errors
from scaleout.futures import ScaleoutExecutor
from scaleout.multiprocessing import Pool

BACKENDS = ["scaleout", "loky", "multiprocessing", "threading", "sequential"]
PROCESSES = {"scaleout", "loky", "multiprocessing"}

ENDS_IN_S = 90.0
"""Workers of other backends import everything anew: up to a second for each pair on an idle machine."""

# A program of its own for each: loky's workers and its tracker stay until the program ends.
SCRIPT = """
    import json, os, sys
    from joblib import Parallel, delayed

    def leaf(number):
        return number * number, os.getpid()

    def branch(backend, number):
        import scaleout.joblib_backend  # loky's workers know no other backend by themselves
        leaves = Parallel(n_jobs=2, backend=backend)(delayed(leaf)(10 * number + i) for i in range(4))
        return os.getpid(), [value for value, _ in leaves], [pid for _, pid in leaves]

    if __name__ == "__main__":
        import scaleout.joblib_backend
        outer = sys.argv[1]
        for inner in sys.argv[2:]:
            branches = Parallel(n_jobs=2, backend=outer)(delayed(branch)(inner, number) for number in range(3))
            print(json.dumps([inner, os.getpid(), branches]))
"""

MAY_NOT_HAVE_CHILDREN = {("multiprocessing", inner) for inner in PROCESSES}  # its workers are daemonic
LOKY_S_RULES = {("loky", "multiprocessing"), ("threading", "loky"), ("threading", "multiprocessing")}


@pytest.mark.parametrize("outer", BACKENDS)
def test_every_backend_in_every_other(outer: str, tmp_path: Path) -> None:
    with running(SCRIPT, tmp_path, outer, *BACKENDS, PYTHONWARNINGS="default") as program:
        assert program.finish(ENDS_IN_S) == 0, program.stdout + program.stderr
        program.check_nothing_left()
        stdout, stderr = program.stdout, program.stderr
    found = {inner: (driver, branches) for inner, driver, branches in map(json.loads, stdout.splitlines())}
    assert list(found) == BACKENDS
    warned = [line.partition("Warning: ")[2] for line in stderr.splitlines() if "Warning: " in line]
    warned = [warning for warning in warned if "use of fork()" not in warning]  # joblib's own, from 3.12 on
    assert all("setting n_jobs=1" in warning for warning in warned), stderr
    assert "Traceback" not in stderr
    for inner, (driver, branches) in found.items():
        for number, (pid, values, leaf_pids) in enumerate(branches):
            assert values == [(10 * number + i) ** 2 for i in range(4)]
            assert (pid != driver) == (outer in PROCESSES)
            is_alone = inner not in PROCESSES or (outer, inner) in MAY_NOT_HAVE_CHILDREN | LOKY_S_RULES
            assert (set(leaf_pids) == {pid}) == is_alone, (outer, inner)
    if outer != "multiprocessing":
        assert "scaleout-backed" not in stderr


# -- scaleout in scaleout --------------------------------------------------------------------------


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


SQUARES = [number * number for number in range(10)]


def in_parallel() -> tuple[int, list[tuple[int, int]]]:
    return os.getpid(), Parallel(n_jobs=2, backend="scaleout")(delayed(square)(number) for number in range(10))


def in_pool() -> tuple[int, list[tuple[int, int]]]:
    with Pool(2) as pool:
        return os.getpid(), pool.map(square, range(10), chunksize=1)


def in_executor() -> tuple[int, list[tuple[int, int]]]:
    with ScaleoutExecutor(2) as executor:
        return os.getpid(), list(executor.map(square, range(10)))


WAYS = {"parallel": in_parallel, "pool": in_pool, "executor": in_executor}


@pytest.mark.parametrize("inner", WAYS)
@pytest.mark.parametrize("outer", WAYS)
def test_every_shim_in_every_other(outer: str, inner: str) -> None:
    work = WAYS[inner]
    if outer == "parallel":
        found = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(delayed(work)() for _ in range(4))
    elif outer == "pool":
        with Pool(2) as pool:
            found = [result.get(60) for result in [pool.apply_async(work) for _ in range(4)]]
    else:
        with ScaleoutExecutor(2) as executor:
            found = [future.result(60) for future in [executor.submit(work) for _ in range(4)]]
    for pid, leaves in found:
        assert pid != os.getpid()
        assert [value for value, _ in leaves] == SQUARES
        assert {leaf_pid for _, leaf_pid in leaves}.isdisjoint({pid, os.getpid()})


def tree(depth: int) -> list[tuple[int, ...]]:
    """The pids on the way to each leaf."""
    if depth == 0:
        return [(os.getpid(),)]
    subtrees = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(delayed(tree)(depth - 1) for _ in range(2))
    return [(os.getpid(), *path) for subtree in subtrees for path in subtree]


def test_three_levels() -> None:
    paths = tree(3)
    assert len(paths) == 8
    assert all(len(set(path)) == 4 for path in paths)


def chain(depth: int) -> int:
    if depth == 0:
        return 0
    return 1 + Parallel(n_jobs=2, backend="scaleout")([delayed(chain)(depth - 1)])[0]


def test_a_recursion_without_an_end_is_ended() -> None:
    assert chain(5) == 5
    with pytest.raises(errors.NestingLimitError) as caught:
        chain(1_000)
    assert isinstance(caught.value, BrokenProcessPool)


def fail(number: int) -> None:
    raise LookupError(f"leaf {number}")


def inner_failure() -> None:
    Parallel(n_jobs=2, backend="scaleout")(delayed(fail)(number) for number in range(10))


def test_an_exception_comes_all_the_way_out() -> None:
    with pytest.raises(LookupError, match="leaf") as caught:
        Parallel(n_jobs=2, backend="scaleout")(delayed(inner_failure)() for _ in range(4))
    assert "in inner_failure" in str(caught.value.__cause__)
    assert in_parallel()[0] == os.getpid()


def warm_inside(_: int) -> tuple[int, frozenset[int]]:
    """The worker, and its own workers."""
    return os.getpid(), frozenset(Parallel(n_jobs=2, backend="scaleout")(delayed(os.getpid)() for _ in range(20)))


def test_workers_of_workers_stay_warm_too() -> None:
    """They end with the worker that uses them: nothing is left when the outer ones end."""
    with Parallel(n_jobs=2, backend="scaleout", batch_size=1) as parallel:
        found: dict[int, set[int]] = {}
        for _ in range(5):
            for pid, inner in parallel(delayed(warm_inside)(number) for number in range(4)):
                found.setdefault(pid, set()).update(inner)
    assert all(len(inner) <= 2 for inner in found.values()), found


# -- what a call inside gets that names no backend -------------------------------------------------


def active() -> tuple[str, int | None, list[tuple[str, int | None]]]:
    backend, n_jobs = get_active_backend()
    inside = Parallel(n_jobs=2)(delayed(active_below)() for _ in range(2))
    return type(backend).__name__, n_jobs, inside


def active_below() -> tuple[str, int | None]:
    backend, n_jobs = get_active_backend()
    return type(backend).__name__, n_jobs


@pytest.mark.parametrize("names_it", [True, False])
def test_threads_and_then_nothing(names_it: bool) -> None:
    """As joblib has it for loky: nobody asked for processes there."""
    expected: Any = ("ThreadingBackend", None, [("SequentialBackend", None)] * 2)
    if names_it:
        found = Parallel(n_jobs=2, backend="scaleout")(delayed(active)() for _ in range(4))
    else:
        with parallel_config(backend="scaleout", n_jobs=2):
            found = Parallel()(delayed(active)() for _ in range(4))
    assert found == [expected] * 4
