"""How what a cluster costs grows with its nodes: the world of `world`, without faults.

The head's work must be the same for each node, however many there are, and nothing for each task; tasks must begin as
soon on many nodes as on few.
"""

from __future__ import annotations

import statistics
import tracemalloc
from typing import Any

from world import World

WAVES = 10
SETTLED_S = 20.0
WINDOW_S = 30.0


def growth(nodes: int, seed: int = 7) -> dict[str, Any]:
    """Figures of a cluster that has come up, with one driver that has a worker for each node, first idle, then at
    work."""
    tracemalloc.start()
    world = World(seed, nodes, drivers=1)
    world.mend()
    (driver,) = world.drivers
    driver.group.resized(nodes)
    world.clock.run_until(SETTLED_S)
    before = _messages(world)
    world.clock.run_until(SETTLED_S + WINDOW_S)
    between = _messages(world)
    tasks = min(nodes, 100)  # at a time: for each there is an idle worker
    for number in range(WAVES):
        driver.submit(tasks, duration_s=0.01)
        world.clock.run_until(SETTLED_S + WINDOW_S + (number + 1) * WINDOW_S / WAVES)
    idle, at_work = between - before, _messages(world) - between
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert all(task.outcomes == ["result"] for task in driver.tasks)
    delays = [task.delay_s for task in driver.tasks]
    return {
        "nodes": nodes,
        "head_messages_per_node_and_second": idle / nodes / WINDOW_S,
        "head_messages_per_task": (at_work - idle) / (WAVES * tasks),
        "delay_ms": 1e3 * statistics.median(delays),
        "delay_p99_ms": 1e3 * sorted(delays)[-len(delays) // 100],
        "head_bytes_per_node": _allocated(snapshot, "core/membership.py") / nodes,
        "driver_bytes_per_node": _allocated(snapshot, "core/roster.py", "core/placement.py", "core/dispatch.py")
        / nodes,
    }


def _messages(world: World) -> int:
    """To the head, so far."""
    return world.head_messages + world.lists_given


def _allocated(snapshot: tracemalloc.Snapshot, *files: str) -> int:
    return sum(
        statistic.size
        for statistic in snapshot.statistics("filename")
        if statistic.traceback[0].filename.endswith(files)
    )
