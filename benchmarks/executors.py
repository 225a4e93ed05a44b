"""Executors: calls in flight, and round trips."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.model import Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import open_executor
from benchmarks.workloads import negate


def submit_then_results(setting: Setting) -> Iterator[Sample]:
    calls = setting.size(10_000, 1000)
    with open_executor(setting.peer) as executor:
        while True:
            start = time.perf_counter()
            futures = [executor.submit(negate, i) for i in range(calls)]
            results = [future.result() for future in futures]
            elapsed_s = time.perf_counter() - start
            assert results == [-i for i in range(calls)]
            yield {"s": elapsed_s / calls}


def submit_round_trip(setting: Setting) -> Iterator[Sample]:
    calls = setting.size(2000, 200)
    with open_executor(setting.peer) as executor:
        assert executor.submit(negate, 3).result() == -3
        while True:
            start = time.perf_counter()
            for i in range(calls):
                executor.submit(negate, i).result()
            yield {"s": (time.perf_counter() - start) / calls}


_STDLIB = Contender("ProcessPoolExecutor", "executor")
_CONTENDERS = (_STDLIB, Contender("scaleout", "scaleout"))

EXPERIMENTS = (
    Experiment(
        "submit",
        submit_then_results,
        (
            Row(
                "submit",
                "executor.submit x 10 000, then results; per call",
                "s",
                at_most=0.15,
                reference=(_STDLIB.key,),
            ),
        ),
        contenders=_CONTENDERS,
    ),
    Experiment(
        "submit-result",
        submit_round_trip,
        (
            Row(
                "submit-result",
                "executor.submit(...).result() round trip",
                "s",
                at_most=0.5,
                reference=(_STDLIB.key,),
            ),
        ),
        contenders=_CONTENDERS,
    ),
)
