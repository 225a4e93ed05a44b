"""Large values: arrays, bytes and lists of 50 MB (decimal) in each direction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.model import POOLS, Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import open_pool
from benchmarks.workloads import echo, ends_of, existing_array, make_existing_array

_CALLS = 3


def array_items(setting: Setting) -> int:
    """float64 items: 50 MB, or 5 MB in a quick run."""
    return setting.size(6_250_000, 625_000)


def returned_array(setting: Setting) -> Iterator[Sample]:
    items = array_items(setting)
    with open_pool(setting.peer, initializer=make_existing_array, initargs=(items,)) as pool:
        assert pool.apply(existing_array).sum() == items * (items - 1) / 2

        def call() -> None:
            pool.apply(existing_array)[items // 2]

        yield from _timed(call)


def array_argument(setting: Setting) -> Iterator[Sample]:
    import numpy

    items = array_items(setting)
    array: Any = numpy.arange(items, dtype=numpy.float64)
    with open_pool(setting.peer) as pool:
        assert pool.apply(ends_of, (array,)) == items - 1
        yield from _timed(lambda: pool.apply(ends_of, (array,)))


def array_to_many(setting: Setting) -> Iterator[Sample]:
    import numpy

    items = array_items(setting)
    array: Any = numpy.arange(items, dtype=numpy.float64)
    arguments = [(array, i) for i in range(20)]
    chunksize = setting.options["chunksize"]
    with open_pool(setting.peer) as pool:
        assert pool.starmap(ends_of, arguments, chunksize) == [items - 1 + i for i in range(20)]
        while True:
            start = time.perf_counter()
            pool.starmap(ends_of, arguments, chunksize)
            yield {"s": (time.perf_counter() - start) / len(arguments)}


def bytes_both_ways(setting: Setting) -> Iterator[Sample]:
    yield from _echoes(setting, bytes(range(250)) * (array_items(setting) * 8 // 250))


def strings_both_ways(setting: Setting) -> Iterator[Sample]:
    """Strings of 100 characters: about a line of text each."""
    yield from _echoes(setting, [f"{i:0100d}" for i in range(array_items(setting) * 8 // 100)])


def _echoes(setting: Setting, value: Any) -> Iterator[Sample]:
    with open_pool(setting.peer) as pool:
        assert pool.apply(echo, (value,)) == value
        yield from _timed(lambda: pool.apply(echo, (value,)))


def _timed(call: Callable[[], Any]) -> Iterator[Sample]:
    """Seconds per call, the release of its result included."""
    while True:
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        yield {"s": (time.perf_counter() - start) / _CALLS}


def _pools(chunksize: int | None) -> tuple[Contender, ...]:
    return tuple(Contender(c.key, c.peer, {"chunksize": chunksize}) for c in POOLS)


EXPERIMENTS = (
    Experiment(
        "array-result",
        returned_array,
        (Row("array-result", "a worker returns an existing 50 MB array", "s", at_most=0.1),),
    ),
    Experiment(
        "array-argument",
        array_argument,
        (Row("array-argument", "a 50 MB array as argument", "s", at_most=0.1),),
    ),
    Experiment(
        "starmap-array",
        array_to_many,
        (
            Row(
                "starmap-array",
                "one 50 MB array to 20 tasks, starmap, chunksize 1; per task",
                "s",
                at_most=0.03,
            ),
        ),
        contenders=_pools(chunksize=1),
    ),
    # Default chunks: the standard library sends the array once per chunk of 3, not once per task.
    Experiment(
        "starmap-chunks",
        array_to_many,
        (Row("starmap-chunks", "the same, default chunks; per task", "s", at_most=0.03),),
        contenders=_pools(chunksize=None),
    ),
    Experiment(
        "bytes",
        bytes_both_ways,
        (Row("bytes", "50 MB of bytes there and back", "s", at_most=0.6),),
    ),
    Experiment(
        "strings",
        strings_both_ways,
        (Row("strings", "50 MB list of strings there and back", "s", at_most=0.6),),
    ),
)
