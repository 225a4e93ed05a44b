"""All experiments, in the order of the table."""

from __future__ import annotations

from benchmarks import arrays, calls, executors, joblib_calls, memory, microbenchmark, startup, threads, throughput
from benchmarks.model import Experiment

# Families keep their experiments together; the table ends with what is reported beyond the bars.
_REPORTED = ("uneven", "idle", "imap-million", "tasks-")

_ALL = (
    *startup.EXPERIMENTS,
    *calls.EXPERIMENTS,
    *throughput.EXPERIMENTS,
    *executors.EXPERIMENTS,
    *joblib_calls.EXPERIMENTS,
    *arrays.EXPERIMENTS,
    *memory.EXPERIMENTS,
    *threads.EXPERIMENTS,
    *microbenchmark.EXPERIMENTS,
)

EXPERIMENTS: tuple[Experiment, ...] = (
    *(experiment for experiment in _ALL if not experiment.name.startswith(_REPORTED)),
    *(experiment for name in _REPORTED for experiment in _ALL if experiment.name.startswith(name)),
)

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}

ROW_NAMES = [row.name for experiment in EXPERIMENTS for row in experiment.rows]
