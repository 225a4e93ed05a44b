"""An executor as dask's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
from outputs import EXAMPLES, output_of

for name in ("dask.array", "dask.bag"):
    pytest.importorskip(name, reason="these programs compute dask collections")

HEAD = """
    import dask, dask.array, dask.bag
    import numpy
    from scaleout.futures import ScaleoutExecutor

    class Point:
        def __init__(self, x):
            self.x = x

    @dask.delayed
    def inverse(n):
        return 1 / n

    @dask.delayed
    def point(x):
        return Point(x)

    @dask.delayed
    def double(point):
        point.x *= 2
        return point
"""


def test_the_example_prints_the_same_as_with_dasks_own_scheduler(tmp_path: Path) -> None:
    example = EXAMPLES / "dask_scheduler.py"
    stdout, stderr = output_of(example, tmp_path)
    assert len(stdout.splitlines()) == 3
    assert stdout == output_of(example, tmp_path, "threads")[0]
    assert stderr == ""


def test_delayed_bag_and_array(tmp_path: Path) -> None:
    program = """
    with ScaleoutExecutor(2) as executor:
        doubled, same = dask.compute(double(point(3)), point("same"), scheduler=executor)
        assert (type(doubled), doubled.x, same.x) == (Point, 6, "same")  # of this very class

        total = dask.delayed(sum)([inverse(n) for n in range(1, 500)])
        assert total.compute(scheduler=executor) == sum(1 / n for n in range(1, 500))

        bag = dask.bag.from_sequence(range(10_000), npartitions=20).filter(lambda n: n % 3 == 0)
        assert bag.map(lambda n: n * n).sum().compute(scheduler=executor) == sum(n * n for n in range(0, 10_000, 3))
        groups = dask.bag.from_sequence(range(30), npartitions=3).groupby(lambda n: n % 2)  # by way of files
        assert sorted((key, sum(group)) for key, group in groups.compute(scheduler=executor)) == [(0, 210), (1, 225)]

        with dask.config.set(scheduler=executor):
            array = dask.array.arange(1_000_000, chunks=100_000)
            ends = (array + 1)[::100_000].compute()
            ends[0] = -1  # writable
            assert ends.tolist() == [-1, *range(100_001, 1_000_000, 100_000)]
            assert array.sum().compute() == sum(range(1_000_000))
            matrix = array[:1_000].reshape(50, 20).rechunk((10, 20))
            left, values, right = dask.array.linalg.svd(matrix)
            assert numpy.allclose((left * values) @ right, numpy.arange(1_000).reshape(50, 20))
    """
    assert output_of(HEAD + program, tmp_path) == ("", "")


def test_an_exception_comes_with_its_cause(tmp_path: Path) -> None:
    program = """
    with ScaleoutExecutor(2) as executor:
        try:
            dask.compute([inverse(n) for n in (1, 0, 2)], scheduler=executor)
        except ZeroDivisionError as error:
            assert "in inverse" in str(error.__cause__)
        else:
            raise AssertionError("no exception")
        assert dask.compute(inverse(4), scheduler=executor) == (0.25,)
    """
    assert output_of(HEAD + program, tmp_path) == ("", "")


def test_an_executor_that_nobody_keeps(tmp_path: Path) -> None:
    """As in the shortest of programs, which leaves it to be dropped."""
    program = """
    assert dask.compute(inverse(4), scheduler=ScaleoutExecutor()) == (0.25,)
    """
    assert output_of(HEAD + program, tmp_path) == ("", "")
