"""tqdm around `executor.map`, `as_completed` and `Pool.imap`, and tqdm's own parallel map on the executor's class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from outputs import EXAMPLES, output_of

pytest.importorskip("tqdm", reason="these programs show tqdm's bars")

HEAD = """
    import contextlib, sys
    from functools import partial
    from tqdm import tqdm
    from tqdm.contrib.concurrent import _executor_map
    from scaleout.futures import ScaleoutExecutor, as_completed
    from scaleout.multiprocessing import Pool, RLock

    COUNT = 10_000
    SQUARES = [n * n for n in range(COUNT)]

    def square(n):
        return n * n

    def inverse(n):
        return 1 / n
"""


def test_the_example_prints_the_same_on_both_executors(tmp_path: Path) -> None:
    example = EXAMPLES / "progress.py"
    stdout, stderr = output_of(example, tmp_path)
    assert stdout == output_of(example, tmp_path, "stdlib")[0]
    assert len({line.split()[-1] for line in stdout.splitlines()}) == 1
    assert "map: 100%" in stderr and "as_completed: 100%" in stderr
    assert "Traceback" not in stderr


def test_ten_thousand_items_and_generators(tmp_path: Path) -> None:
    program = """
    with ScaleoutExecutor(2) as executor:
        for items in (range(COUNT), (n for n in range(COUNT))):
            bar = tqdm(executor.map(square, items), total=COUNT)
            assert list(bar) == SQUARES
            assert bar.n == COUNT
        bar = tqdm(as_completed([executor.submit(square, n) for n in range(COUNT)]), total=COUNT)
        assert sorted(future.result() for future in bar) == SQUARES
        assert bar.n == COUNT
        bar = tqdm(executor.map(square, tqdm(n for n in range(COUNT)), buffersize=100))
        assert list(bar) == SQUARES
    with Pool(2) as pool:
        assert list(tqdm(pool.imap(square, (n for n in range(COUNT))), total=COUNT)) == SQUARES
        assert sorted(tqdm(pool.imap_unordered(square, range(COUNT), 10), total=COUNT)) == SQUARES
        with tqdm(total=COUNT) as bar:
            results = [pool.apply_async(square, (n,), callback=lambda _: bar.update()) for n in range(COUNT)]
            assert [result.get() for result in results] == SQUARES
        assert bar.n == COUNT
    """
    output_of(HEAD + program, tmp_path)


def test_an_exception_goes_through_the_bar(tmp_path: Path) -> None:
    """The bar stops at what came before; the executor goes on."""
    program = """
    with ScaleoutExecutor(2) as executor:
        bar = tqdm(executor.map(inverse, [1, 2, 0, 4]))
        try:
            list(bar)
        except ZeroDivisionError as error:
            assert "in inverse" in str(error.__cause__)
        else:
            raise AssertionError("no exception")
        assert bar.n == 2
        ends = [future.exception() for future in tqdm(as_completed([executor.submit(inverse, n) for n in range(3)]))]
        assert sorted(type(end).__name__ for end in ends) == ["NoneType", "NoneType", "ZeroDivisionError"]
        assert list(tqdm(executor.map(square, range(3)))) == [0, 1, 4]
    """
    output_of(HEAD + program, tmp_path)


def test_workers_write_beside_the_bar(tmp_path: Path) -> None:
    """The way that tqdm documents: its lock is given to the workers, here one that clean processes can be given."""
    program = """
    def talk(n):
        tqdm.write(f"worker's line {n}", file=sys.stdout)
        return n

    tqdm.set_lock(RLock())
    shares = {"initializer": tqdm.set_lock, "initargs": (tqdm.get_lock(),)}
    with ScaleoutExecutor(2, **shares) as executor, Pool(2, **shares) as pool:
        assert list(tqdm(executor.map(talk, range(10)))) == list(range(10))
        assert list(tqdm(pool.imap(talk, range(10, 20)))) == list(range(10, 20))
    """
    stdout, _ = output_of(HEAD + program, tmp_path)
    assert sorted(stdout.splitlines()) == sorted(f"worker's line {n}" for n in range(20))


def test_tqdms_own_map(tmp_path: Path) -> None:
    """What `process_map` calls with ProcessPoolExecutor."""
    program = """
    tqdm.set_lock(RLock())
    own_map = partial(_executor_map, ScaleoutExecutor)
    for lock_name in ("", "mp_lock"):
        assert own_map(square, range(100), lock_name=lock_name, max_workers=2) == SQUARES[:100]
    assert own_map(pow, (n for n in range(10)), [2] * 10, chunksize=3) == SQUARES[:10]
    assert own_map(square, range(COUNT), chunksize=100, max_tasks_per_child=20) == SQUARES
    with contextlib.suppress(ZeroDivisionError):
        own_map(inverse, [1, 0, 2])
        raise AssertionError("no exception")
    """
    output_of(HEAD + program, tmp_path)


def test_the_bar_of_tqdms_own_map(tmp_path: Path) -> None:
    """It counts calls by replacing the executor's `submit`, so one task is one step."""
    program = """
    tqdm.set_lock(RLock())
    for chunksize in (1, 4):
        _executor_map(ScaleoutExecutor, square, range(20), chunksize=chunksize, max_workers=2, desc=f"by {chunksize}")
    """
    _, stderr = output_of(HEAD + program, tmp_path)
    assert re.findall(r"by 1:.* (\d+)/20 ", stderr)[-1] == "20"
    assert re.findall(r"by 4:.* (\d+)/20 ", stderr)[-1] == "5"
