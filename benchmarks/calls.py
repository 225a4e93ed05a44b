"""Small calls: round trips, many calls in flight, instances of classes from `__main__`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.model import (
    FORK,
    SCALEOUT,
    SPAWN,
    Contender,
    Experiment,
    Row,
    Sample,
    Setting,
)
from benchmarks.peers import POOL_IMPORT, open_pool
from benchmarks.scripts import ScriptProcess, script_directory
from benchmarks.workloads import negate


def apply_round_trip(setting: Setting) -> Iterator[Sample]:
    calls = setting.size(2000, 200)
    with open_pool(setting.peer) as pool:
        assert pool.apply(negate, (3,)) == -3
        while True:
            start = time.perf_counter()
            for i in range(calls):
                pool.apply(negate, (i,))
            yield {"s": (time.perf_counter() - start) / calls}


def apply_beside_busy_thread(setting: Setting) -> Iterator[Sample]:
    calls = setting.size(50, 20)
    with open_pool(setting.peer) as pool:
        assert pool.apply(negate, (3,)) == -3
        while True:
            with _computing_thread():
                start = time.perf_counter()
                for i in range(calls):
                    pool.apply(negate, (i,))
                elapsed_s = time.perf_counter() - start
            yield {"s": elapsed_s / calls}


@contextmanager
def _computing_thread() -> Iterator[None]:
    """A thread of this process that computes in Python, holding the GIL as long as it may."""
    is_over = False

    def compute() -> None:
        number = 0
        while not is_over:
            number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        is_over = True
        thread.join()


def apply_async_then_get(setting: Setting) -> Iterator[Sample]:
    calls = setting.size(10_000, 1000)
    with open_pool(setting.peer) as pool:
        while True:
            start = time.perf_counter()
            pending = [pool.apply_async(negate, (i,)) for i in range(calls)]
            results = [result.get() for result in pending]
            elapsed_s = time.perf_counter() - start
            assert results == [-i for i in range(calls)]
            yield {"s": elapsed_s / calls}


_POINT = """
from dataclasses import dataclass

@dataclass
class Point:
    x: int
    y: int

def mirrored(point):
    return Point(point.y, point.x)
"""

_POINT_DRIVER = """
import sys, time

def in_calls(pool, points):
    pending = [pool.apply_async(mirrored, (point,)) for point in points]
    return [result.get() for result in pending]

def in_map(pool, points):
    return pool.map(mirrored, points)

if __name__ == "__main__":
    points = [Point(i, i + 1) for i in range({count})]
    with Pool(2) as pool:
        assert in_map(pool, points)[:1] == in_calls(pool, points)[:1] == [Point(1, 0)]
        for line in sys.stdin:
            start = time.perf_counter()
            {{"calls": in_calls, "map": in_map}}[line.strip()](pool, points)
            print((time.perf_counter() - start) / len(points), flush=True)
"""


def dataclass_instances(setting: Setting) -> Iterator[Sample]:
    pool_import = POOL_IMPORT[setting.peer] + "\n"
    driver = _POINT_DRIVER.format(count=setting.size(5000, 500))
    if setting.options["in_main"]:
        files = {"script.py": pool_import + _POINT + driver}
    else:
        from_module = "from points import Point, mirrored\n"
        files = {"script.py": pool_import + from_module + driver, "points.py": _POINT}
    with script_directory(files) as directory, ScriptProcess(directory / "script.py") as script:
        while True:
            yield {metric: float(script.ask(metric)) for metric in ("calls", "map")}


_MODULE_CLASS = "scaleout, class in a module"

EXPERIMENTS = (
    Experiment(
        "apply",
        apply_round_trip,
        (Row("apply", "apply round trip", "s", at_most=0.5),),
    ),
    Experiment(
        "apply-busy",
        apply_beside_busy_thread,
        (Row("apply-busy", "the same while a driver thread computes", "s", at_most=1.2),),
        repeat_factor=3,
    ),
    Experiment(
        "apply-async",
        apply_async_then_get,
        (Row("apply-async", "apply_async x 10 000, then get all; per call", "s", at_most=0.3),),
    ),
    Experiment(
        "main-class",
        dataclass_instances,
        (
            Row(
                "main-class",
                "__main__ dataclass there and back, apply_async; per call",
                "s",
                at_most=1.5,
                reference=(_MODULE_CLASS,),
                metric="calls",
            ),
            Row(
                "main-class-map",
                "the same, map with default chunks; per item",
                "s",
                at_most=1.5,
                reference=(_MODULE_CLASS,),
                metric="map",
            ),
        ),
        contenders=(
            *(Contender(c.key, c.peer, {"in_main": True}) for c in (FORK, SPAWN, SCALEOUT)),
            Contender(_MODULE_CLASS, "scaleout", {"in_main": False}),
        ),
        repeat_factor=2,
    ),
)
