"""Workers that serve for so many tasks and are replaced: each is gone without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from faults import notes
from served import make_array, register, serve

from scaleout.multiprocessing import Pool


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def fds_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_of(pid: int) -> int:
    """Private memory in bytes: what a leak grows."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))


ROUND = 100
"""Calls of one map: what a map of many calls takes is no leak."""


def recycle(count: int, growth_bytes: int) -> None:
    with Pool(2, maxtasksperchild=1) as pool:
        for _ in range(count // 3 // ROUND):  # until what grows once has grown, and free memory lies scattered
            pool.map(serve, range(ROUND), chunksize=1)
        zygote = pool._group._owner.keeper.host.pid  # workers may be gone before one could ask for their parent
        before = fds_of(os.getpid()), fds_of(zygote)
        memory = memory_of(os.getpid()), memory_of(zygote)
        pids = Counter[int]()
        for start in range(0, count, ROUND):
            done = pool.map(serve, range(start, start + ROUND), chunksize=1)
            assert [number for number, _, _ in done] == list(range(start, start + ROUND))
            assert {times for _, _, times in done} == {1}
            pids.update(pid for _, pid, _ in done)
        if count < 4000:  # numbers of processes come again
            assert len(pids) == count
        alive = {worker.pid for worker in pool._pool}
        assert len(pool._pool) <= 4  # two that serve, and at most two that are leaving
        assert len(children_of(zygote)) <= 4
        after = fds_of(os.getpid()), fds_of(zygote)
        assert after[0] <= before[0] + 6, (before, after)
        assert after[1] <= before[1] + 6, (before, after)
        grown = [now - then for now, then in zip((memory_of(os.getpid()), memory_of(zygote)), memory, strict=True)]
        print(f"{count} workers: memory grew by {grown[0]} in the driver, {grown[1]} in the zygote; {alive} are alive")
        assert max(grown) < growth_bytes, grown


def test_each_task_in_a_worker_of_its_own() -> None:
    recycle(300, 4_000_000)


@pytest.mark.slow
def test_ten_thousand_workers() -> None:
    """In a process that has done nothing else: in this one, what other tests have left lies scattered."""
    program = "from test_recycling import recycle; recycle(10_000, 5_000_000)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_maxtasksperchild_counts_chunks() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        done = pool.map(serve, range(12), chunksize=3)
        pids = [pid for _, pid, _ in done]
        # Two chunks at most; one where the second was taken back, as it waited too long behind the first.
        assert set(Counter(pids).values()) <= {3, 6}
        assert 2 <= len(set(pids)) <= 4


@pytest.mark.parametrize("how", ["close", "terminate", "go on"])
def test_work_is_finished_after_close(how: str) -> None:
    """Workers are replaced as long as there is work, also when no more may be submitted."""
    with Pool(2, maxtasksperchild=1) as pool:
        result = pool.map_async(serve, range(50), chunksize=1)
        values = pool.imap_unordered(serve, iter(range(50)))
        if how == "close":
            pool.close()
            pool.join()
        elif how == "terminate":
            result.wait(60)
        assert [number for number, _, _ in result.get(60)] == list(range(50))
        if how != "terminate":
            assert sorted(number for number, _, _ in values) == list(range(50))


def test_atexit_functions_and_finalizers_of_workers_run(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with Pool(2, register, (log,), maxtasksperchild=1) as pool:
        pids = {pid for _, pid, _ in pool.map(serve, range(10), chunksize=1)}
        pool.close()
        pool.join()
    said = Counter(notes(log))
    for pid in pids:
        assert said[f"atexit-{pid}"] == 1
        assert said[f"finalizer-{pid}"] == 1


def test_exit_codes_of_recycled_workers() -> None:
    with Pool(1, maxtasksperchild=1) as pool:
        first = pool._pool[0]
        pool.apply(serve, (1,))
        first.join(30)
        assert first.exitcode == 0


def test_arrays_of_workers_that_are_gone_stay_valid() -> None:
    with Pool(2, maxtasksperchild=1) as pool:
        arrays = list(pool.imap(make_array, range(16)))
        assert all((array == number).all() for number, array in enumerate(arrays))
        for array in arrays:
            array += 1  # ours to write
        del arrays[::2]
        pool.map(make_array, range(4), chunksize=1)
        assert all((array == 2 * position + 2).all() for position, array in enumerate(arrays))


def test_results_that_are_read_after_their_worker_is_gone() -> None:
    with Pool(2, maxtasksperchild=1) as pool:
        results = [pool.apply_async(make_array, (number,)) for number in range(8)]
        pool.close()
        pool.join()
    for number, result in enumerate(results):
        assert (result.get(30) == number).all()
