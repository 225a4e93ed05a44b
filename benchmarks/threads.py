"""Many driver threads that share one pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from benchmarks.model import POOLS, Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import open_pool
from benchmarks.workloads import negate


def calls_from_threads(setting: Setting) -> Iterator[Sample]:
    """Wall time per call over all threads together: the reciprocal of the total rate."""
    threads: int = setting.options["threads"]
    calls_per_thread = setting.size(3200, 320) // threads
    with open_pool(setting.peer) as pool:
        wrong: list[int] = []

        def apply_in_turn() -> None:
            for i in range(calls_per_thread):
                if pool.apply(negate, (i,)) != -i:
                    wrong.append(i)

        while True:
            running = [threading.Thread(target=apply_in_turn) for _ in range(threads)]
            start = time.perf_counter()
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            elapsed_s = time.perf_counter() - start
            assert not wrong
            yield {"s": elapsed_s / (calls_per_thread * threads)}


_ONE_THREAD = "scaleout, 1 thread"

EXPERIMENTS = (
    Experiment(
        "threads",
        calls_from_threads,
        (
            Row(
                "threads",
                "apply by 16 driver threads on one pool; per call of all",
                "s",
                at_most=1.0,
                reference=(_ONE_THREAD,),
            ),
        ),
        contenders=(
            *(Contender(c.key, c.peer, {"threads": 16}) for c in POOLS),
            Contender(_ONE_THREAD, "scaleout", {"threads": 1}),
        ),
    ),
)
