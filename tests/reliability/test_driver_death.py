"""kill -9 of the driver, of the zygote, of both: who notices, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from faults import DEADLINE_S, is_gone, kill, note, notes, wait_until
from programs import parent_of, running

from scaleout.errors import ProcessLimitError, WorkerDiedError
from scaleout.multiprocessing import Pool

BUSY = """
    import os, sys, time
    from pathlib import Path
    from scaleout.multiprocessing import Pool

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def spin(_):
        say("busy", os.getpid())
        while True:
            pass

    def sleep(_):
        say("busy", os.getpid())
        time.sleep(3600)

    def nest(_):
        with Pool(2) as inner:
            inner.map(spin, range(2), chunksize=1)

    def store(_):
        import numpy
        keep = numpy.ones(1_000_000)
        say("busy", os.getpid())
        time.sleep(3600)

    def fork_and_spin(_):
        if os.fork() == 0:
            say("grandchild", os.getpid())
            time.sleep(3600)
        spin(_)

    def spawn_and_spin(_):
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], close_fds=False)
        say("grandchild", child.pid)
        spin(_)

    kind, workers = sys.argv[1:] or os.environ["KIND"].split()
    pool = Pool(int(workers))
    result = pool.map_async(globals()[kind], range(20), chunksize=1)
    result.get()
"""


@pytest.mark.parametrize(
    ("kind", "workers", "busy"), [("spin", 3, 3), ("sleep", 3, 3), ("nest", 2, 4), ("store", 2, 2)]
)
def test_a_killed_driver_takes_everything_along(kind: str, workers: int, busy: int, tmp_path: Path) -> None:
    with running(BUSY, tmp_path, KIND=f"{kind} {workers}") as program:
        program.wait_for("busy", busy)
        processes = program.processes()
        assert len(processes) >= 2 + workers  # the driver, the zygote, the workers
        began = time.monotonic()
        program.kill()
        program.check_nothing_left()
        assert program.stderr == ""
        print(f"all gone after {time.monotonic() - began:.3f} s")


def test_a_driver_that_is_stopped_and_then_killed(tmp_path: Path) -> None:
    with running(BUSY, tmp_path, KIND="spin 2") as program:
        program.wait_for("busy", 2)
        os.kill(program.pid, signal.SIGSTOP)
        program.kill()
        program.check_nothing_left()


@pytest.mark.parametrize("zygote_first", [True, False])
def test_zygote_and_driver_both_killed(zygote_first: bool, tmp_path: Path) -> None:
    with running(BUSY, tmp_path, KIND="spin 2") as program:
        program.wait_for("busy", 2)
        worker = int(program.stdout.split()[1])
        victims = [parent_of(worker), program.pid]
        for pid in victims if zygote_first else reversed(victims):
            os.kill(pid, signal.SIGKILL)
        program.check_nothing_left()


@pytest.mark.parametrize("kind", ["fork_and_spin", "spawn_and_spin"])
def test_grandchildren_that_hold_descriptors_do_not_keep_workers(kind: str, tmp_path: Path) -> None:
    """They are the user's own and stay; what is ours goes."""
    with running(BUSY, tmp_path, KIND=f"{kind} 2") as program:
        program.wait_for("busy", 2)
        program.wait_for("grandchild", 2)
        lines = [line.split() for line in program.stdout.splitlines()]
        grandchildren = [int(pid) for what, pid in lines if what == "grandchild"]
        program.kill()
        program.wait_until_alone(*grandchildren)
        assert not any(is_gone(pid) for pid in grandchildren)


# -- the zygote -------------------------------------------------------------------------------------


def zygotes() -> list[int]:
    """Those of this process that live. Not the parents of workers: a worker whose zygote died has another parent."""
    found = []
    for task in os.listdir("/proc/self/task"):
        for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
            try:
                is_zygote = b"_runtime.process.boot" in Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if is_zygote and not is_gone(int(pid)):
                found.append(int(pid))
    return found


def the_zygote() -> int:
    (zygote,) = wait_until(zygotes, "a zygote")
    return int(zygote)


def wait_for_file(log: str, index: int, path: str) -> int:
    note(log, index)
    while not os.path.exists(path):
        time.sleep(0.005)
    return index


def test_a_killed_zygote_costs_nobody_a_retry(tmp_path: Path) -> None:
    log, gate = tmp_path / "runs", tmp_path / "gate"
    with Pool(2, max_retries=1) as pool:
        pool.map(abs, range(4), chunksize=1)
        results = [pool.apply_async(wait_for_file, (str(log), i, str(gate))) for i in range(2)]
        for round_number in range(1, 4):  # more often than the item could be retried
            wait_until(lambda wanted=2 * round_number: len(notes(log)) >= wanted, "both tasks run")
            workers = pool._pool
            zygote = the_zygote()
            os.kill(zygote, signal.SIGKILL)
            for worker in workers:
                worker.join(DEADLINE_S)
                wait_until(lambda pid=worker.pid: is_gone(pid), "the workers of a dead zygote end")
        wait_until(lambda: len(notes(log)) >= 8, "both tasks run")
        gate.touch()
        assert [result.get(DEADLINE_S) for result in results] == [0, 1]
        assert pool.map(abs, range(4), chunksize=1) == [0, 1, 2, 3]
        assert the_zygote() != zygote
    assert Counter(notes(log)) == {"0": 4, "1": 4}


def test_without_retries_at_most_once_holds_also_when_the_zygote_dies(tmp_path: Path) -> None:
    log, gate = tmp_path / "runs", tmp_path / "gate"
    with Pool(1, max_retries=0) as pool:
        results = [pool.apply_async(wait_for_file, (str(log), i, str(gate))) for i in range(2)]
        wait_until(lambda: notes(log), "the first task runs")
        os.kill(the_zygote(), signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            results[0].get(DEADLINE_S)
        gate.touch()
        assert results[1].get(DEADLINE_S) == 1
    assert notes(log) == ["0", "1"]


def test_a_zygote_killed_while_its_workers_start(tmp_path: Path) -> None:
    """That is no failure of an initializer, however often it happens in a row."""
    gate = tmp_path / "gate"
    with Pool(4, wait_for_file, (str(tmp_path / "starts"), 0, str(gate))) as pool:
        wait_until(lambda: notes(tmp_path / "starts"), "an initializer runs")
        os.kill(the_zygote(), signal.SIGKILL)
        gate.touch()
        assert pool.map(abs, range(4)) == [0, 1, 2, 3]


def test_an_idle_zygote_that_died_is_replaced() -> None:
    with Pool(1) as pool:
        pool.apply(abs, (1,))
        zygote = the_zygote()
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: is_gone(zygote))
    with Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1


def test_a_zygote_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    with Pool(1) as pool:
        with pytest.raises(ProcessLimitError, match="zygote"):
            for _ in range(1000):  # several calls may be served before the death of a zygote shows
                pool.apply(abs, (1,))
                for zygote in zygotes():
                    kill(zygote)
    with Pool(1) as pool:  # that is about the pool, not for ever
        assert pool.apply(abs, (-1,)) == 1


# -- grandchildren, and what else a worker's death may be hidden by ---------------------------------


def die_with_a_child(kind: str, log: str) -> int:
    """At the first attempt: leave a child behind that holds every descriptor, and die."""
    if notes(log):
        return int(notes(log)[0])
    if kind == "fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(3600)
    else:
        pid = subprocess.Popen(["sleep", "3600"], close_fds=False).pid
    note(log, pid)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("kind", ["fork", "popen"])
def test_a_worker_s_death_is_seen_although_its_child_lives(kind: str, tmp_path: Path) -> None:
    with Pool(1, max_retries=1) as pool:
        pid = pool.apply_async(die_with_a_child, (kind, str(tmp_path / "pid"))).get(DEADLINE_S)
        try:
            assert not is_gone(pid)
            assert pool.map(abs, range(3)) == [0, 1, 2]
        finally:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))


REAPED = """
    import os, signal, sys, threading, time
    from scaleout.multiprocessing import Pool

    if os.environ["KIND"] == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    else:
        def steal():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.001)
        threading.Thread(target=steal, daemon=True).start()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def is_alive(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    for round in range(3):
        with Pool(2, max_retries=0) as pool:
            assert pool.map(abs, range(100), chunksize=1) == list(range(100))
            try:
                pool.apply(die)
            except Exception as error:
                assert error.exitcode == -9, error.exitcode
            assert pool.map(abs, range(10)) == list(range(10))
            with open(f"/proc/{pool._pool[0].pid}/stat") as file:
                zygote = int(file.read().rpartition(")")[2].split()[1])
            pids = [worker.pid for worker in pool._pool]
            os.kill(zygote, signal.SIGKILL)
            while any(map(is_alive, pids)):  # what one of them began now would be lost: there are no retries
                time.sleep(0.001)
            assert pool.map(abs, range(10)) == list(range(10))
            if round == 1:
                pool.close()
                pool.join()
    print("done")
"""


@pytest.mark.parametrize("kind", ["ignored", "stolen"])
def test_stolen_and_ignored_ends_of_children_change_nothing(kind: str, tmp_path: Path) -> None:
    with running(REAPED, tmp_path, KIND=kind) as program:
        assert program.finish() == 0, program.stderr
        assert (program.stdout, program.stderr) == ("done\n", "")
        program.check_nothing_left()
