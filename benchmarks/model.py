"""The nouns of the benchmarks: experiment, contender, row, setting. Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Sample = Mapping[str, float]
"""One repetition: metric name -> value. In every metric less is better."""


@dataclass(frozen=True)
class Setting:
    """What a measuring function is told: for whom, how large, with which options."""

    peer: str
    is_quick: bool
    options: Mapping[str, Any]

    def size(self, full: T, quick: T) -> T:
        return quick if self.is_quick else full


@dataclass(frozen=True)
class Contender:
    """One column of an experiment: a peer (see `peers`), perhaps with options."""

    key: str
    peer: str
    options: Mapping[str, Any] = field(default_factory=dict)


FORK = Contender("fork", "fork")
SPAWN = Contender("spawn", "spawn")
SCALEOUT = Contender("scaleout", "scaleout")
POOLS = (FORK, SPAWN, SCALEOUT)
STDLIB_POOL = ("fork", "spawn")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    With `reference`, the bar is on the ratio of the subject's median to the smallest median among
    these contenders; without, on the subject's value itself. `at_most=None`: reported, no bar.
    `minus` names a contender whose value in the same repetition is taken off first.
    """

    name: str
    measures: str
    unit: str  # "s", "MB", "x" or "count"
    at_most: float | None = None
    reference: tuple[str, ...] = STDLIB_POOL
    subject: str = "scaleout"
    metric: str = "s"
    minus: str | None = None


@dataclass(frozen=True)
class Experiment:
    """One measuring function, who takes part, and the rows that come out of it.

    `function(setting)` is a generator: it sets up and checks a result, then yields one sample
    per repetition. With `is_isolated`, each repetition has a fresh process; otherwise a contender keeps one
    process, and its first sample is thrown away if `has_warm_up`.
    """

    name: str
    function: Callable[[Setting], Iterator[Sample]]
    rows: tuple[Row, ...]
    contenders: tuple[Contender, ...] = POOLS
    is_isolated: bool = False
    has_warm_up: bool = True
    repeat_factor: int = 1  # short, noisy samples are taken this many times as often
