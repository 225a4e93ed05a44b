"""What runs in the workers. Imported there by name, so it imports nothing heavy itself."""

from __future__ import annotations

import time
from typing import Any

_existing: Any = None


def negate(x: int) -> int:
    return -x


def with_scikit_learn(x: int) -> int:
    """As functions do that come out of a notebook: what they need they import."""
    import sklearn.linear_model

    assert sklearn.linear_model.LinearRegression
    return x


def echo(value: Any) -> Any:
    return value


def make_existing_array(items: int) -> None:
    """Pool initializer: the array that `existing_array` returns."""
    global _existing
    import numpy

    _existing = numpy.arange(items, dtype=numpy.float64)


def existing_array() -> Any:
    return _existing


def ends_of(array: Any, index: int = 0) -> float:
    """Touch an array argument at both ends, without reading all of it."""
    return float(array[0] + array[-1]) + index


def uneven(task: tuple[int, float]) -> tuple[int, float, float]:
    """Sleep (100 ms and such) or compute (less than 1 ms); index, start and end on the shared monotonic clock."""
    index, duration_s = task
    start = time.monotonic()
    if duration_s >= 0.001:
        time.sleep(duration_s)
    else:
        while time.monotonic() - start < duration_s:
            pass
    return index, start, time.monotonic()
