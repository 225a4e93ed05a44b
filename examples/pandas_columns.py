"""pandas objects as arguments and results of a pool and of an executor.

What to change: the two imports. Columns cross through shared memory where they are large; a worker may change the frame
that it was given in place, and nobody else sees that.

What one sees: a table of readings, cleaned and summed up by station in workers, and that it equals, to the last value
and type, what the same functions give without workers.

    python examples/pandas_columns.py            # on scaleout
    python examples/pandas_columns.py stdlib     # on the standard library
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
from typing import Any

import numpy
import pandas
from pandas.testing import assert_frame_equal

import scaleout.futures
import scaleout.multiprocessing

READINGS = 100_000


def make_readings() -> pandas.DataFrame:
    """Strings, categories, times with a zone, numbers, and something missing in most columns."""
    number = numpy.arange(READINGS)
    value = numpy.sin(number / 1_000) * 30
    value[number % 7 == 0] = numpy.nan
    when = pandas.Series(pandas.date_range("2024-03-30", periods=READINGS, freq="s", tz="Europe/Paris"))
    when[number % 1_000 == 3] = pandas.NaT
    return pandas.DataFrame(
        {
            "station": pandas.Categorical.from_codes(number % 3, ["harbour", "hill", "tower"]),
            "when": when,
            "value": value,
            "note": pandas.Series(["", "gust", None, "naïve ☂"]).take(number % 4).reset_index(drop=True),
        }
    )


def clean(readings: pandas.DataFrame) -> pandas.DataFrame:
    """In place, as the frame is this worker's own."""
    readings["value"] = readings["value"].interpolate(limit_direction="both")
    readings["note"] = readings["note"].fillna("(none)")
    readings.loc[readings["value"] < 0, "value"] = 0.0
    return readings


def summary_of(readings: pandas.DataFrame) -> pandas.DataFrame:
    by_day = readings.groupby([readings["station"].astype(str), readings["when"].dt.date.rename("day")])
    return by_day["value"].agg(["count", "mean", "max"]).round(3)


def main() -> None:
    pool_class: Any = scaleout.multiprocessing.Pool
    executor_class: Any = scaleout.futures.ScaleoutExecutor
    if sys.argv[1:] == ["stdlib"]:
        pool_class, executor_class = multiprocessing.Pool, concurrent.futures.ProcessPoolExecutor

    readings = make_readings()
    stations = [part for _, part in readings.groupby("station", observed=True)]
    with pool_class(2) as pool:
        cleaned = pool.map(clean, stations, chunksize=1)
    with executor_class(2) as executor:
        summaries = list(executor.map(summary_of, cleaned))
    print(pandas.concat(summaries))

    assert_frame_equal(readings, make_readings())  # what the workers wrote, they wrote to their own
    for station, theirs, summary in zip(stations, cleaned, summaries, strict=True):
        ours = clean(station.copy())
        assert_frame_equal(theirs, ours)
        assert_frame_equal(summary, summary_of(ours))
    print("equal to what comes out without workers")


if __name__ == "__main__":
    main()
