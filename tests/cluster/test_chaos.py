"""Workers and nodes are killed at random under mixed work: every result is right, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest
from clusters import Cluster, descendants, wait_until

CHAOS_S = 25.0

MIXED = """
    import os, sys, time, threading
    import numpy
    import scaleout
    from scaleout.errors import ScaleoutError
    from scaleout.futures import ScaleoutExecutor
    from scaleout.multiprocessing import Pool

    def square(number):
        time.sleep(0.002)
        return number * number

    def doubled(array):
        time.sleep(0.01)
        return array * 2

    @scaleout.remote(max_retries=-1)
    def ones(n):
        time.sleep(0.01)
        return numpy.ones(n)

    @scaleout.remote(max_retries=-1)
    def twice(array):
        return array * 2

    @scaleout.remote(max_retries=-1)
    def total(*arrays):
        return float(sum(array.sum() for array in arrays))

    @scaleout.remote(on_failure="replay", max_task_retries=-1)
    class Sum:
        def __init__(self):
            self.value = 0

        def add(self, number):
            self.value += number
            return self.value

    rounds = {}

    def pools(until):
        array = numpy.arange(100_000.0)
        with Pool(4, max_retries=100) as pool:
            while time.monotonic() < until:
                assert pool.map(square, range(200), chunksize=3) == [n * n for n in range(200)]
                for back in pool.imap(doubled, [array] * 10):
                    assert (back == array * 2).all()
                rounds["pools"] = rounds.get("pools", 0) + 1

    def executors(until):
        while time.monotonic() < until:
            with ScaleoutExecutor(3, max_retries=100) as executor:
                futures = [executor.submit(square, n) for n in range(100)]
                assert [future.result() for future in futures] == [n * n for n in range(100)]
                rounds["executors"] = rounds.get("executors", 0) + 1

    def tasks(until):
        while time.monotonic() < until:
            parts = [ones.remote(200_000) for _ in range(10)]
            twofold = [twice.remote(part) for part in parts]  # large values, which stay at the nodes
            assert scaleout.get(total.remote(*twofold)) == 4_000_000
            assert scaleout.get(total.remote(*parts)) == 2_000_000
            del parts
            assert scaleout.get(twofold[3]).sum() == 400_000
            assert scaleout.get(total.remote(*twofold, *twofold)) == 8_000_000
            rounds["tasks"] = rounds.get("tasks", 0) + 1

    def actors(until):
        actor = Sum.remote()
        expected = 0
        while time.monotonic() < until:
            got = scaleout.get([actor.add.remote(n) for n in range(20)])
            for n in range(20):
                expected += n
                assert got[n] == expected, (n, got[n], expected)
            rounds["actors"] = rounds.get("actors", 0) + 1

    def run(part, until, failures):
        try:
            part(until)
        except BaseException as error:
            import traceback
            failures.append(traceback.format_exc())

    if __name__ == "__main__":
        until = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else os.environ["SCALEOUT_INTERNAL_SECONDS"])
        failures = []
        threads = [
            threading.Thread(target=run, args=(part, until, failures)) for part in (pools, executors, tasks, actors)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        scaleout.shutdown()
        for failure in failures:
            print(failure)
        print(sorted(rounds) if not failures else "failed")
"""


@pytest.mark.slow
def test_mixed_work_while_workers_and_nodes_are_killed(cluster: Cluster) -> None:
    chance = random.Random(7)
    cluster.start_head()
    nodes = [cluster.start_node(), cluster.start_node()]
    pids = {address: cluster.pid_of(address) for address in nodes}
    head = cluster.pid_of(cluster.address)
    program = cluster.start(MIXED, SCALEOUT_INTERNAL_SECONDS=str(CHAOS_S))
    deadline = time.monotonic() + CHAOS_S - 3
    killed_nodes = 0
    while time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.3)
        if chance.random() < 0.15:
            address = chance.choice(nodes)
            os.kill(pids.pop(address), signal.SIGKILL)
            nodes.remove(address)
            killed_nodes += 1
            new = cluster.start_node()
            nodes.append(new)
            pids[new] = cluster.pid_of(new)
        else:
            workers = [
                process
                for pid in (head, *pids.values())
                for zygote in psutil.Process(pid).children()
                for process in zygote.children()
            ]
            if workers:
                kill_if_there(chance.choice(workers))
    output, errors = program.communicate(timeout=120)
    assert program.returncode == 0, errors
    assert output == "['actors', 'executors', 'pools', 'tasks']\n", output
    assert errors == ""
    assert killed_nodes
    wait_until(lambda: not any(descendants(pid) for pid in (head, *pids.values())))
    for pid in (head, *pids.values()):
        process = psutil.Process(pid)
        assert process.num_fds() < 60
        assert not [m for m in process.memory_maps() if "memfd" in m.path]


def kill_if_there(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
