"""What a pool costs at rest: memory of all its processes, and whether anything wakes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.model import SCALEOUT, SPAWN, Experiment, Row, Sample, Setting
from benchmarks.peers import POOL_IMPORT
from benchmarks.process_tree import activity, pss_mb
from benchmarks.scripts import ScriptProcess, script_directory

_PLAIN_DRIVER = """
import sys
from tasks import square

if __name__ == "__main__":
    with Pool(2) as pool:
        for line in sys.stdin:
            assert pool.map(square, range(1000), chunksize=1)[-1] == 999 * 999
            print("done", flush=True)
"""

_PLAIN_TASKS = """
def square(x):
    return x * x
"""

# Small values first: numpy and all that passes arrays is loaded before the first look.
_LARGE_DRIVER = """
import sys
import numpy
from tasks import echo, fresh, total

def pass_arrays(pool, size_bytes):
    items = size_bytes // 8
    array = numpy.ones(items)
    for _ in range(3):
        assert pool.apply(fresh, (items,))[0] == 1
        assert pool.apply(total, (array, 0)) == items
    assert pool.starmap(total, [(array, i) for i in range(20)])[-1] == items + 19
    assert len(pool.apply(echo, (bytes(size_bytes),))) == size_bytes

def pass_strings(pool, size_bytes):
    strings = [f"{i:0100d}" for i in range(size_bytes // 100)]
    assert pool.apply(echo, (strings,)) == strings

if __name__ == "__main__":
    with Pool(2) as pool:
        pool.map(total, [numpy.ones(10)] * 100, chunksize=1)
        for line in sys.stdin:
            kind, size_bytes = line.split()
            {"arrays": pass_arrays, "strings": pass_strings}[kind](pool, int(size_bytes))
            print("done", flush=True)
"""

_LARGE_TASKS = """
import numpy

def echo(value):
    return value

def fresh(items):
    return numpy.ones(items)

def total(array, index=0):
    return float(array.sum()) + index
"""

SETTLE_S = 5.0


def pool_memory(setting: Setting) -> Iterator[Sample]:
    """PSS of a driver that has run one map on Pool(2) and waits. A fresh driver each time."""
    files = {"script.py": POOL_IMPORT[setting.peer] + _PLAIN_DRIVER, "tasks.py": _PLAIN_TASKS}
    with script_directory(files) as directory:
        while True:
            with ScriptProcess(directory / "script.py") as script:
                script.ask("map")
                time.sleep(0.5)
                memory_mb = pss_mb(script.pid)
            yield {"mb": memory_mb}


def memory_kept(setting: Setting) -> Iterator[Sample]:
    """How much PSS stays after 50 MB values went to and fro. A fresh driver each time."""
    files = {"script.py": POOL_IMPORT[setting.peer] + _LARGE_DRIVER, "tasks.py": _LARGE_TASKS}
    with script_directory(files) as directory:
        while True:
            with ScriptProcess(directory / "script.py") as script:
                script.ask("arrays 8000")
                time.sleep(0.5)
                before_mb = pss_mb(script.pid)
                sample = {}
                for kind in ("arrays", "strings"):
                    script.ask(f"{kind} {setting.size(50_000_000, 5_000_000)}")
                    time.sleep(setting.size(SETTLE_S, 3.0))
                    sample[kind] = pss_mb(script.pid) - before_mb
            yield sample


def idle_pool(setting: Setting) -> Iterator[Sample]:
    """Processor time and context switches of a whole pool that has nothing to do."""
    settle_s, look_s = setting.size((SETTLE_S, 5.0), (2.0, 1.0))
    files = {"script.py": POOL_IMPORT[setting.peer] + _PLAIN_DRIVER, "tasks.py": _PLAIN_TASKS}
    with script_directory(files) as directory, ScriptProcess(directory / "script.py") as script:
        script.ask("map")
        time.sleep(settle_s)
        while True:
            before = activity(script.pid)
            time.sleep(look_s)
            after = activity(script.pid)
            yield {
                "switches": after.context_switches - before.context_switches,
                "s": after.cpu_s - before.cpu_s,
            }


EXPERIMENTS = (
    Experiment(
        "memory",
        pool_memory,
        (
            Row(
                "memory",
                "Pool(2), all processes (PSS)",
                "MB",
                at_most=1.5,
                reference=("spawn",),
                metric="mb",
            ),
        ),
        has_warm_up=False,
    ),
    Experiment(
        "memory-kept",
        memory_kept,
        (
            Row(
                "memory-kept",
                "growth 5 s after 50 MB arrays and bytes (PSS)",
                "MB",
                at_most=20,
                reference=(),
                metric="arrays",
            ),
            # 500 000 small objects leave holes in the interpreters' own heaps, whoever carried them.
            Row(
                "memory-kept-strings",
                "growth 5 s after a list of strings on top (PSS)",
                "MB",
                at_most=20,
                reference=(),
                metric="strings",
            ),
        ),
        contenders=(SPAWN, SCALEOUT),
        has_warm_up=False,
    ),
    Experiment(
        "idle",
        idle_pool,
        (
            Row(
                "idle",
                "idle Pool(2) for 5 s: context switches",
                "count",
                at_most=0,
                reference=(),
                metric="switches",
            ),
            Row("idle-cpu", "the same: processor time", "s", reference=()),
        ),
        has_warm_up=False,
    ),
)
