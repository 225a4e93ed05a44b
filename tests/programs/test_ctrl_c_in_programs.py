"""Ctrl-C in the middle of a program, caught by nobody: it ends promptly, quietly, and leaves nothing.

Each call would sleep for an hour, and there are 10 000: so whatever waits for one of them does not end in time.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from faults import state_of, wait_until
from outputs import output_of
from programs import running

SCRIPT = """
    import asyncio, os, sys, time
    from scaleout.futures import ScaleoutExecutor, aio, as_completed
    from scaleout.multiprocessing import Pool, RLock

    COUNT = 10_000

    def sleep(*_):
        os.write(1, b"busy\\n")
        time.sleep(3600)

    def tqdm_around_map():
        from tqdm import tqdm
        with ScaleoutExecutor(2) as executor:
            list(tqdm(executor.map(sleep, (n for n in range(COUNT))), total=COUNT))

    def tqdm_around_as_completed():
        from tqdm import tqdm
        with ScaleoutExecutor(2) as executor:
            list(tqdm(as_completed([executor.submit(sleep, n) for n in range(COUNT)])))

    def tqdm_around_imap():
        from tqdm import tqdm
        with Pool(2) as pool:
            list(tqdm(pool.imap(sleep, (n for n in range(COUNT)))))

    def tqdms_own_map():
        from tqdm import tqdm
        from tqdm.contrib.concurrent import _executor_map
        tqdm.set_lock(RLock())
        _executor_map(ScaleoutExecutor, sleep, range(COUNT), max_workers=2)

    def asyncio_gather():
        async def program():
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(executor, sleep, n) for n in range(COUNT)))
        with ScaleoutExecutor(2) as executor:
            asyncio.run(program())

    def asyncio_map():
        async def program():
            async for _ in aio.map(executor, sleep, range(COUNT)):
                pass
        with ScaleoutExecutor(2) as executor:
            asyncio.run(program())

    def asyncio_with_an_executor_that_nobody_ends():
        async def program(executor):
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(executor, sleep, n) for n in range(COUNT)))
        asyncio.run(program(ScaleoutExecutor(2)))

    def dask_delayed():
        import dask
        with ScaleoutExecutor(2) as executor:
            dask.compute([dask.delayed(sleep)(n) for n in range(100)], scheduler=executor)

    def dask_with_an_executor_that_nobody_keeps():
        import dask
        dask.compute([dask.delayed(sleep)(n) for n in range(100)], scheduler=ScaleoutExecutor(2))

    def pandas_in_a_pool():
        import pandas
        frame = pandas.DataFrame({"text": ["a"] * 100_000, "number": range(100_000)})
        with Pool(2) as pool:
            pool.map(sleep, (frame for _ in range(10)), chunksize=1)

    def as_completed_with_an_executor_that_nobody_ends():
        executor = ScaleoutExecutor(2)
        for _ in as_completed([executor.submit(sleep, n) for n in range(COUNT)]):
            pass

    globals()[sys.argv[1]]()
"""

PACKAGES = ("tqdm", "dask", "pandas")
WAYS = re.findall(r"^    def (\w+)\(\):", SCRIPT, re.MULTILINE)


def has_come_to_rest(pid: int) -> bool:
    """Whether it waits for results. A thread that submits ten thousand calls also waits, for a moment now and then."""
    before = cpu_ticks(pid)
    time.sleep(0.2)
    return state_of(pid) == "S" and cpu_ticks(pid) == before


def cpu_ticks(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c(way: str, whole_group: bool, tmp_path: Path) -> None:
    for package in PACKAGES:
        if way.startswith(package):
            pytest.importorskip(package, reason="the program uses it")
    with running(SCRIPT, tmp_path, way) as program:
        program.wait_for("busy\n", 2)
        wait_until(lambda: has_come_to_rest(program.pid), "the main thread waits")
        program.interrupt(whole_group)
        assert program.finish() == -signal.SIGINT, program.stdout + program.stderr
        assert program.stderr.endswith("KeyboardInterrupt\n"), program.stderr
        assert "in sleep" not in program.stderr  # workers print nothing
        assert "Exception ignored" not in program.stderr
        program.check_nothing_left()


def test_ctrl_c_of_long_ago(tmp_path: Path) -> None:
    """At a prompt it ends a statement, not the program: what executors have to do is finished as ever."""
    program = """
    import sys, time
    from scaleout.futures import ScaleoutExecutor

    sys.ps1, sys.last_value = ">>> ", KeyboardInterrupt()  # as they stand in an interactive interpreter

    def say(text):
        time.sleep(0.1)
        print(text)

    ScaleoutExecutor(1).submit(say, "done")
    """
    assert output_of(program, tmp_path) == ("done\n", "")
