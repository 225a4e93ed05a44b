"""pandas objects as arguments and results."""

from __future__ import annotations

from pathlib import Path

import pytest
from outputs import EXAMPLES, output_of

pytest.importorskip("pandas", reason="these programs send pandas objects to workers")

HEAD = """
    import numpy, pandas
    from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal
    from scaleout.futures import ScaleoutExecutor
    from scaleout.multiprocessing import Pool

    COUNT = 20_000  # large enough for columns to cross through shared memory

    def make_frame():
        number = numpy.arange(COUNT)
        frame = pandas.DataFrame(
            {
                "integer": number,
                "number": numpy.where(number % 3, number / 7, numpy.nan),
                "truth": number % 2 == 0,
                "text": pandas.Series(["", "abc", None, "naïve"]).take(number % 4).reset_index(drop=True),
                "object": pandas.Series([1, "two", None, (3, 4)], dtype=object).take(number % 4).to_numpy(),
                "category": pandas.Categorical.from_codes(number % 3 - 1, ["red", "green"], ordered=True),
                "when": pandas.date_range("2024-03-30", periods=COUNT, freq="min", tz="Europe/Paris"),
                "naive": pandas.date_range("2024-03-30", periods=COUNT, freq="min"),
                "period": pandas.period_range("2024-03", periods=COUNT, freq="h"),
                "duration": pandas.to_timedelta(number, unit="s"),
                "nullable": pandas.array(number % 5, dtype="Int64"),
                "interval": pandas.cut(number, 4),
            },
            index=pandas.Index(number[::-1], name="row"),
        )
        frame.loc[frame.index[::10], ["when", "naive", "duration", "nullable"]] = None
        frame.attrs["unit"] = "mm"
        return frame

    def same(value):
        return value

    def change(frame):
        frame["number"] = frame["number"].fillna(0) + 1
        frame.loc[frame.index[0], "text"] = "changed"
        frame.iloc[1, 0] = -1
        frame["code"] = frame["category"].cat.codes
        return frame

    def summary(frame):
        return frame.groupby("category", observed=False)["number"].agg(["count", "mean"])
"""


@pytest.fixture
def script() -> str:
    """In each way to call: `calls` are functions that run `function(value)` in a worker."""
    return (
        HEAD
        + """
    frame, untouched = make_frame(), make_frame()
    with Pool(2) as pool, ScaleoutExecutor(2) as executor:
        calls = {
            "apply": lambda function, value: pool.apply(function, (value,)),
            "map": lambda function, value: pool.map(function, [value, value], chunksize=1)[1],
            "imap": lambda function, value: next(pool.imap(function, iter([value]))),
            "submit": lambda function, value: executor.submit(function, value).result(),
            "executor.map": lambda function, value: next(executor.map(function, [value])),
        }
"""
    )


def test_the_example_prints_the_same_on_both(tmp_path: Path) -> None:
    example = EXAMPLES / "pandas_columns.py"
    stdout, stderr = output_of(example, tmp_path)
    assert stdout.endswith("equal to what comes out without workers\n")
    assert stdout == output_of(example, tmp_path, "stdlib")[0]
    assert stderr == ""


def test_frames_series_and_indexes_come_back_equal(script: str, tmp_path: Path) -> None:
    program = """
        for call in calls.values():
            result = call(same, frame)
            assert_frame_equal(result, untouched)
            assert result.attrs == frame.attrs
        for name in frame:
            assert_series_equal(calls["submit"](same, frame[name]), untouched[name])
            assert_series_equal(calls["apply"](same, frame[name][::-7]), untouched[name][::-7])
        for index in (frame.index, frame.columns, pandas.MultiIndex.from_frame(frame[["category", "when", "text"]])):
            assert_index_equal(calls["map"](same, index), index)
        assert_frame_equal(calls["imap"](same, frame[:0]), untouched[:0])
    """
    assert output_of(script + program, tmp_path) == ("", "")


def test_what_a_worker_changes_is_its_own(script: str, tmp_path: Path) -> None:
    program = """
        expected = change(make_frame())
        for call in calls.values():
            result = call(change, frame)
            assert_frame_equal(result, expected)
            assert_frame_equal(frame, untouched)
            assert_frame_equal(call(summary, result), summary(expected))
            change(result)  # what came back is ours to change, too
    """
    assert output_of(script + program, tmp_path) == ("", "")


def test_many_pieces(script: str, tmp_path: Path) -> None:
    program = """
        narrow = frame[["number", "text"]]
        pieces = [narrow[start : start + 2] for start in range(0, COUNT, 2)]
        assert len(pieces) == 10_000
        assert_frame_equal(pandas.concat(pool.imap(same, (piece for piece in pieces), chunksize=100)), narrow)
        assert sum(executor.map(len, pieces, chunksize=100)) == COUNT
        try:
            pool.map(lambda piece: piece["nothing of that name"], pieces[:3])
        except KeyError as error:
            assert "nothing of that name" in str(error.__cause__)
        else:
            raise AssertionError("no exception")
    """
    assert output_of(script + program, tmp_path) == ("", "")
