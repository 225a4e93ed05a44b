"""Many small tasks: lazy and eager maps, uneven durations, a long generator, other task systems."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator

from benchmarks.model import (
    FORK,
    SCALEOUT,
    Contender,
    Experiment,
    Row,
    Sample,
    Setting,
)
from benchmarks.peers import WORKERS, open_pool, open_task_runner
from benchmarks.process_tree import peak_and_current_rss_mb
from benchmarks.workloads import negate, uneven


def imap_unordered(setting: Setting) -> Iterator[Sample]:
    count = setting.size(10_000, 1000)
    with open_pool(setting.peer) as pool:
        while True:
            start = time.perf_counter()
            results = list(pool.imap_unordered(negate, range(count), chunksize=1))
            elapsed_s = time.perf_counter() - start
            assert sorted(results) == list(range(1 - count, 1))
            yield {"s": elapsed_s / count}


def large_map(setting: Setting) -> Iterator[Sample]:
    count = setting.size(100_000, 20_000)
    maps = 5
    with open_pool(setting.peer) as pool:
        assert pool.map(negate, range(count)) == [-i for i in range(count)]
        while True:
            start = time.perf_counter()
            for _ in range(maps):
                pool.map(negate, range(count))
            yield {"s": (time.perf_counter() - start) / maps / count}


LONG_S = 0.1
SHORT_S = 10e-6


def uneven_tasks(setting: Setting) -> Iterator[Sample]:
    """Five long tasks, evenly spread among short ones."""
    count = setting.size(4000, 1000)
    tasks = [(i, LONG_S if i % (count // 5) == 0 else SHORT_S) for i in range(count)]
    ideal_s = in_order_schedule_s([duration_s for _, duration_s in tasks], WORKERS)
    with open_pool(setting.peer) as pool:
        pool.map(uneven, [(0, SHORT_S)] * 100, chunksize=1)
        while True:
            start = time.monotonic()
            arrivals = [(*result, time.monotonic()) for result in pool.imap_unordered(uneven, tasks, chunksize=1)]
            wall_s = time.monotonic() - start
            assert len(arrivals) == count
            yield {"wall": wall_s / ideal_s, **_short_task_delays_s(arrivals, count // 5)}


def in_order_schedule_s(durations_s: list[float], workers: int) -> float:
    """The ideal: each task starts, in order and at no cost, on the worker that is free first."""
    free_at = [0.0] * workers
    for duration_s in durations_s:
        heapq.heapreplace(free_at, free_at[0] + duration_s)
    return max(free_at)


def _short_task_delays_s(arrivals: list[tuple[int, float, float, float]], long_every: int) -> dict[str, float]:
    """Over all short tasks, the longest delay of a start, and from an end to the consumer's loop.

    A short task is due to start when any task submitted after it starts: in order, it cannot
    be later. So `late` counts waiting behind a long task, and not the rate of the pool as such.
    `held` has both: a result kept back by a worker that runs a long task, and a consumer that lags.
    """
    late_s = held_s = 0.0
    due = float("inf")
    for index, start, end, arrival in sorted(arrivals, reverse=True):
        due = min(due, start)
        if index % long_every != 0:
            late_s = max(late_s, start - due)
            held_s = max(held_s, arrival - end)
    return {"late": late_s, "held": held_s}


PAUSE_S = 5.0


def long_generator(setting: Setting) -> Iterator[Sample]:
    """Peak memory of the driver over what it had when the map began; one map per process.

    Half way the consumer pauses: a map that is not bounded then runs ahead and keeps its results.
    """
    half = setting.size(500_000, 50_000)
    with open_pool(setting.peer) as pool:
        pool.map(negate, range(100))
        _, before_mb = peak_and_current_rss_mb()
        start = time.perf_counter()
        results = pool.imap(negate, (i for i in range(2 * half)), **setting.options["bound"])
        total = sum(itertools.islice(results, half))
        elapsed_s = time.perf_counter() - start
        time.sleep(setting.size(PAUSE_S, 1.0))
        total += sum(results)
        assert total == -half * (2 * half - 1)
        peak_mb, _ = peak_and_current_rss_mb()
        yield {"s": elapsed_s / half, "mb": max(0.0, peak_mb - before_mb)}


def single_tasks(setting: Setting) -> Iterator[Sample]:
    items = range(setting.size(2000, 200))
    with open_task_runner(setting.peer) as run_all:
        assert run_all(negate, range(100)) == [-i for i in range(100)]
        while True:
            start = time.perf_counter()
            run_all(negate, items)
            yield {"s": (time.perf_counter() - start) / len(items)}


_OTHERS = {
    "executor": "concurrent.futures.ProcessPoolExecutor",
    "loky": "loky, from joblib",
    "ray": "Ray tasks",
    "dask": "Dask futures",
}

EXPERIMENTS = (
    Experiment(
        "imap-unordered",
        imap_unordered,
        (Row("imap-unordered", "imap_unordered, chunksize 1, 10 000; per item", "s", at_most=0.5),),
    ),
    Experiment(
        "map",
        large_map,
        (Row("map", "map of 100 000, default chunks; per item", "s", at_most=1.1),),
        repeat_factor=2,
    ),
    Experiment(
        "uneven",
        uneven_tasks,
        (
            Row(
                "uneven",
                "5 x 100 ms among 4000 x 10 us: wall to ideal schedule",
                "x",
                at_most=1.1,
                reference=(),
                metric="wall",
            ),
            Row(
                "uneven-late",
                "the same: latest start of a short task",
                "s",
                at_most=0.020,
                reference=(),
                metric="late",
            ),
            Row("uneven-held", "the same: short task's end to the consumer, longest", "s", metric="held"),
        ),
    ),
    Experiment(
        "imap-million",
        long_generator,
        (
            Row(
                "imap-million",
                "imap of 1 000 000, buffersize 1000, slow consumer; driver's growth",
                "MB",
                reference=("fork",),
                metric="mb",
            ),
            Row("imap-million-time", "the same before the consumer pauses; per item", "s", reference=("fork",)),
        ),
        contenders=(
            Contender(FORK.key, "fork", {"bound": {}}),  # has no buffersize before Python 3.15
            Contender(SCALEOUT.key, "scaleout", {"bound": {"buffersize": 1000}}),
        ),
        is_isolated=True,
    ),
    # One experiment for each, so that Ray's and Dask's own processes disturb nobody else.
    *(
        Experiment(
            f"tasks-{key}",
            single_tasks,
            (Row(f"tasks-{key}", f"2000 single tasks, against {name}; per task", "s", reference=(key,)),),
            contenders=(SCALEOUT, Contender(key, key)),
        )
        for key, name in _OTHERS.items()
    ),
)
