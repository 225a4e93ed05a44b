"""The interpreter's exit, with whatever is under way: prompt, quiet, and nothing is left."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from programs import running

HEAD = """
    import atexit, gc, os, signal, sys, threading, time
    from scaleout.multiprocessing import Pool

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def sleep(seconds=3600):
        say("busy")
        time.sleep(seconds)

    def square(number):
        return number * number

"""

ENDS_IN_S = 10.0
"""Far more than it takes: this machine may be loaded."""


def run(script: str, directory: Path, *, code: int = 0, stderr: str | None = "") -> tuple[list[str], str]:
    """The script's lines and its stderr; checks that it ended in time, with this code, and left nothing."""
    with running(HEAD + script, directory) as program:
        assert program.finish() == code, program.stdout + program.stderr
        ended_at = time.monotonic()
        lines = program.stdout.splitlines()
        ending = [float(line.split()[1]) for line in lines if line.startswith("ending ")]
        if ending:
            print(f"the exit took {ended_at - ending[0]:.3f} s")
            assert ended_at - ending[0] < ENDS_IN_S
        if stderr is not None:
            assert program.stderr == stderr
        program.check_nothing_left()
        return [line for line in lines if not line.startswith("ending ")], program.stderr


ENDING = """
    say("ending", time.monotonic())
"""

UNCLOSED = "ResourceWarning: unclosed running multiprocessing pool"


def test_with_work_pending(tmp_path: Path) -> None:
    _, stderr = run(
        """
    pool = Pool(2)
    pool.map(square, range(4), chunksize=1)
    results = pool.map_async(sleep, [3600] * 100, chunksize=1)
    while True:
        time.sleep(0.01)
        if results: break
    """
        + ENDING,
        tmp_path,
        stderr=None,
    )
    assert stderr.count("Traceback") == 0, stderr
    assert UNCLOSED in stderr


def test_with_a_closed_pool_and_work_pending(tmp_path: Path) -> None:
    run(
        """
    pool = Pool(2)
    pool.map(square, range(4), chunksize=1)
    results = pool.map_async(sleep, [3600] * 100, chunksize=1)
    pool.close()
    """
        + ENDING,
        tmp_path,
    )


def test_a_pool_in_a_local_variable(tmp_path: Path) -> None:
    _, stderr = run(
        """
    def main():
        pool = Pool(2)
        pool.map(square, range(4), chunksize=1)
    main()
    gc.collect()
    say("after")
    """
        + ENDING,
        tmp_path,
        stderr=None,
    )
    assert UNCLOSED in stderr
    assert "Traceback" not in stderr


def test_a_pool_in_a_reference_cycle(tmp_path: Path) -> None:
    _, stderr = run(
        """
    class Holder:
        pass
    holder = Holder()
    holder.self = holder
    holder.pool = Pool(2)
    holder.result = holder.pool.map_async(sleep, range(2))
    holder.pool.holder = holder
    del holder
    """
        + ENDING,
        tmp_path,
        stderr=None,
    )
    assert "Traceback" not in stderr, stderr
    assert "Exception ignored" not in stderr


def test_pools_started_and_never_used(tmp_path: Path) -> None:
    run(
        """
    pools = [Pool(2) for _ in range(3)]
    for pool in pools:
        pool.close()
    """
        + ENDING,
        tmp_path,
    )


def test_exit_right_after_the_start(tmp_path: Path) -> None:
    run(
        """
    pool = Pool(4)
    pool.close()
    """
        + ENDING,
        tmp_path,
    )


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="CPython 3.12 starts no process or thread in atexit functions"
)
def test_functions_registered_with_atexit_run(tmp_path: Path) -> None:
    """In the driver, where they may use pools if they were registered first; in workers, when their pool is closed."""
    lines, _ = run(
        """
    def register():
        atexit.register(say, "worker's")
        from multiprocessing import util
        util.Finalize(None, say, args=("worker's finalizer",), exitpriority=1)

    def last_words():
        with Pool(1) as pool:
            say("driver's", pool.apply(square, (3,)))

    atexit.register(say, "driver's first")
    pool = Pool(1, register)
    assert pool.apply(square, (2,)) == 4
    pool.close()
    pool.join()
    atexit.register(last_words)
    """
        + ENDING,
        tmp_path,
    )
    assert lines == ["worker's finalizer", "worker's", "driver's 9", "driver's first"]


def test_daemon_threads_that_use_the_pool(tmp_path: Path) -> None:
    run(
        """
    pool = Pool(2)
    started = threading.Semaphore(0)
    def use(kind):
        while True:
            try:
                if kind == "apply":
                    pool.apply(square, (2,))
                elif kind == "map":
                    pool.map(square, range(100), chunksize=1)
                elif kind == "imap":
                    list(pool.imap(square, iter(range(100)), buffersize=10))
                else:
                    pool.apply_async(square, (2,), callback=lambda value: None).get()
            except Exception:
                pass
            started.release()
    for kind in ("apply", "map", "imap", "callback"):
        threading.Thread(target=use, args=(kind,), daemon=True).start()
    for _ in range(20):
        started.acquire()
    """
        + ENDING
        + """
    pool.close()
    """,
        tmp_path,
    )


def test_a_thread_that_waits_for_a_result_when_the_program_ends(tmp_path: Path) -> None:
    """A thread that is not a daemon is waited for, as always; the pool works until then."""
    lines, _ = run(
        """
    pool = Pool(1)
    def work():
        main.join()
        say("result", pool.apply(square, (5,)))
        pool.terminate()
    main = threading.main_thread()
    threading.Thread(target=work).start()
    """
        + ENDING,
        tmp_path,
    )
    assert lines == ["result 25"]


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        ("sys.exit(5)", 5),
        ("raise SystemExit", 0),
        ("os._exit(6)", 6),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("1 / 0", 1),
    ],
)
def test_ways_to_leave(leave: str, code: int, tmp_path: Path) -> None:
    _, stderr = run(
        f"""
    pool = Pool(2)
    result = pool.map_async(sleep, range(1000, 1010), chunksize=1)
    next(iter(pool.imap(square, range(0)))) if False else None
    {ENDING.strip()}
    {leave}
    """,
        tmp_path,
        code=code,
        stderr=None,
    )
    assert stderr.count("Traceback") == (1 if leave == "1 / 0" else 0), stderr


def test_exit_inside_with(tmp_path: Path) -> None:
    run(
        """
    with Pool(2) as pool:
        pool.map_async(sleep, range(1000, 1010), chunksize=1)
    """.rstrip()
        + "\n        "
        + ENDING.strip()
        + """
        sys.exit(3)
    """,
        tmp_path,
        code=3,
    )


def test_feeders_of_endless_iterables(tmp_path: Path) -> None:
    run(
        """
    import itertools
    pool = Pool(2)
    endless = pool.imap(square, itertools.count())
    slow = pool.imap_unordered(square, (time.sleep(0.01) or number for number in itertools.count()))
    assert [next(endless) for _ in range(3)] == [0, 1, 4]
    next(slow)
    say("ending", time.monotonic())
    pool.terminate()
    """,
        tmp_path,
    )


def test_endless_iterables_and_no_terminate(tmp_path: Path) -> None:
    _, stderr = run(
        """
    import itertools
    pool = Pool(2)
    endless = pool.imap(square, itertools.count())
    assert [next(endless) for _ in range(3)] == [0, 1, 4]
    """
        + ENDING,
        tmp_path,
        stderr=None,
    )
    assert "Traceback" not in stderr, stderr


def test_large_results_alive_at_the_exit(tmp_path: Path) -> None:
    run(
        """
    import numpy
    def make(number):
        return numpy.full(1_000_000, number)
    pool = Pool(2)
    arrays = pool.map(make, range(4), chunksize=1)
    unseen = pool.map_async(make, range(4), chunksize=1)
    unseen.wait()
    pool.close()
    """
        + ENDING,
        tmp_path,
    )


def test_a_worker_that_is_to_leave_does_not_first_see_whether_more_comes(tmp_path: Path) -> None:
    """Who has sent large results keeps its pages warm for a while, in case that there are more to send."""
    lines, _ = run(
        """
    import numpy
    from scaleout._runtime.base import limits

    def large():
        limits.WARM_SECONDS = 1e5
        return numpy.ones(1 << 18)

    pool = Pool(1)
    say(pool.apply(large).sum())
    pool.close()
    pool.join()
    """
        + ENDING,
        tmp_path,
    )
    assert lines == ["262144.0"]


def test_a_closed_stdout_is_no_failure_of_a_task(tmp_path: Path) -> None:
    run(
        """
    read_end, write_end = os.pipe()
    keep = os.dup(1)
    os.dup2(write_end, 1)
    os.close(write_end)
    os.close(read_end)
    def talk(number):
        print("nobody hears", number)
        return number
    with Pool(2) as pool:
        assert pool.map(talk, range(10), chunksize=1) == list(range(10))
        pool.close()
        pool.join()
    os.dup2(keep, 1)
    """
        + ENDING,
        tmp_path,
        stderr=None,
    )


def test_what_tasks_print_is_there_before_their_result(tmp_path: Path) -> None:
    lines, _ = run(
        """
    def talk(number):
        print("task", number)
        return number
    with Pool(1) as pool:
        for number in range(3):
            pool.apply(talk, (number,))
            say("result", number)
        pool.apply_async(talk, (3,)).get()
        say("result 3")
    """
        + ENDING,
        tmp_path,
    )
    assert lines == [line for number in range(4) for line in (f"task {number}", f"result {number}")]
