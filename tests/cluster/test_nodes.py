"""Nodes with different things, nodes that come and go while a program runs, and what their workers print."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, finish, go_on, kill, read_line, wait_until

WAITING = """
    import os, time
    import scaleout

    @scaleout.remote
    def where(marker):
        open(marker, "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        return os.getppid()

    if __name__ == "__main__":
        refs = [where.remote(f"began{number}") for number in range(4)]
        print("running", flush=True)
        print(len(set(scaleout.get(refs))))
        scaleout.shutdown()
"""


def test_a_node_that_joins_gets_work(cluster: Cluster) -> None:
    """Tasks that wait for a CPU run on the new one's."""
    cluster.start_head()
    program = cluster.start(WAITING)
    assert read_line(program) == "running"
    wait_until(lambda: len(list(cluster.directory.glob("began*"))) == 2)
    cluster.start_node()
    wait_until(lambda: len(list(cluster.directory.glob("began*"))) == 4)
    (cluster.directory / "go").touch()
    assert finish(program) == "2\n"


def test_a_pool_without_a_size_follows_the_nodes(cluster: Cluster) -> None:
    cluster.start_head()
    program = cluster.start(
        """
        import time
        from scaleout.multiprocessing import Pool, cpu_count

        if __name__ == "__main__":
            with Pool() as pool:
                for expected in (2, 5, 2):
                    while (len(pool._pool), cpu_count()) != (expected, expected):
                        assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
                        time.sleep(0.01)
                    print(expected, flush=True)
        """
    )
    assert read_line(program) == "2"
    node = cluster.start_node(cpus=3)
    assert read_line(program) == "5"
    kill(cluster.pid_of(node))
    assert finish(program) == "2\n"


def test_an_executor_without_a_size_follows_the_nodes(cluster: Cluster) -> None:
    cluster.start_head()
    program = cluster.start(
        """
        import os, time
        from scaleout.futures import ScaleoutExecutor

        def began(number):
            open(f"began{number}", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)

        if __name__ == "__main__":
            with ScaleoutExecutor() as executor:
                executor.submit(abs, 1).result()
                print("running", flush=True)
                while not os.path.exists("joined"):
                    time.sleep(0.01)
                list(executor.map(began, range(5)))
                print("well")
        """
    )
    assert read_line(program) == "running"
    cluster.start_node(cpus=3)
    # The program learns of it within a second; it has 2 workers until then, and then 5.
    (cluster.directory / "joined").touch()
    wait_until(lambda: len(list(cluster.directory.glob("began*"))) == 5)
    (cluster.directory / "go").touch()
    assert finish(program) == "well\n"


def test_a_draining_node_gets_no_more_work(pair: Cluster) -> None:
    program = pair.start(
        """
        import os, time
        from scaleout.multiprocessing import Pool

        def where(number):
            time.sleep(0.02)
            return os.getppid()

        if __name__ == "__main__":
            with Pool(4) as pool:
                assert len(set(pool.map(where, range(100), chunksize=1))) == 2
                print("both", flush=True)
                while len(set(pool.map(where, range(20), chunksize=1))) == 2:
                    pass
                print("one", len(pool._pool))
        """
    )
    assert read_line(program) == "both"
    node = next(node for node in pair.nodes() if not node["is_head"])
    pair.must("drain", node["node_id"])
    assert finish(program) == "one 4\n"


def test_resources_of_single_nodes(cluster: Cluster) -> None:
    cluster.start_head()
    cluster.start_node("--resources", '{"license": 1}')
    said = cluster.run(
        """
        import os
        import scaleout
        from scaleout.errors import InfeasibleError

        @scaleout.remote(resources={"license": 1})
        def licensed():
            return os.getppid()

        @scaleout.remote(num_cpus=3)
        def wide():
            pass

        if __name__ == "__main__":
            assert len(set(scaleout.get([licensed.remote() for _ in range(6)]))) == 1
            assert scaleout.cluster_resources()["license"] == 1
            try:
                wide.remote()
            except InfeasibleError as error:
                print(error)
            scaleout.shutdown()
        """
    )
    assert "3 CPU asked for" in said
    assert "no single node has that" in said


def test_amounts_are_the_nodes_to_say(cluster: Cluster) -> None:
    cluster.start_head()
    said = cluster.run(
        """
        import scaleout

        try:
            scaleout.init(num_cpus=8)
        except ValueError as error:
            print(error)
        """
    )
    assert "CPU cannot be given" in said


def test_what_workers_print(pair: Cluster) -> None:
    """Whole lines, with the node and the pid before them; the end of a line that never ends, too."""
    program = pair.start(
        """
        import os, sys
        from scaleout.multiprocessing import Pool

        def say(number):
            print("line", number)
            print("error", number, file=sys.stderr)
            os.write(1, b"no end")
            return os.getpid()

        if __name__ == "__main__":
            with Pool(2) as pool:
                pids = set(map(str, pool.map(say, range(4), chunksize=1)))
            sys.stdout.write(" ".join(["pids", *pids]) + "\\n")  # at once, or a worker's line comes in between
        """
    )
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    found = re.findall(r"^\(([0-9a-f]+), pid (\d+)\) (.*)$", output, re.M)
    assert sorted(re.findall(r"line \d", output)) == [f"line {number}" for number in range(4)]
    assert sorted(re.findall(r"error \d", errors)) == [f"error {number}" for number in range(4)]
    pids = set(re.search(r"^pids (.*)$", output, re.M)[1].split())  # type: ignore[index]
    assert {pid for _, pid, _ in found} == pids
    assert {node for node, _, _ in found} <= {node["node_id"] for node in pair.nodes()}
    assert output.count("no end") == 4


def test_lines_that_repeat_are_folded_and_levels_of_logging_hold(cluster: Cluster) -> None:
    cluster.start_head()
    program = cluster.start(
        """
        import logging, time
        from scaleout.multiprocessing import Pool

        def say(number):
            for _ in range(100):
                print("again")
            print("between")
            for _ in range(7):
                print("again")
            time.sleep(1.5)
            print("twice")
            print("twice", flush=True)
            mine, other = logging.getLogger("mine"), logging.getLogger("other")
            mine.debug("to be heard")
            for _ in range(50):
                mine.debug("again")
            mine.debug("last")
            other.info("not to be heard")
            return mine.isEnabledFor(logging.DEBUG), other.isEnabledFor(logging.INFO)

        if __name__ == "__main__":
            logging.basicConfig(format="%(levelname)s:%(name)s:%(message)s:%(process)d")
            logging.getLogger("mine").setLevel(logging.DEBUG)
            with Pool(1) as pool:
                assert pool.map(say, [0]) == [(True, False)]
        """
    )
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    lines = [line.partition(") ")[2] for line in output.splitlines()]
    assert lines == [
        *["again"] * 5,
        "[the line before came 95 more times]",
        "between",
        *["again"] * 5,
        "[the line before came 2 more times]",
        *["twice"] * 2,
    ]
    records = [re.fullmatch(r"DEBUG:mine:\((\w+), pid (\d+)\) (.*):(\d+)", line) for line in errors.splitlines()]
    assert [record and record[3] for record in records] == [
        "to be heard",
        *["again"] * 5,
        "[the record before came 45 more times]",
        "last",
    ]
    assert {record and (record[1], record[2]) for record in records} == {
        (cluster.nodes()[0]["node_id"], record and record[4]) for record in records
    }


def test_a_worker_that_prints_without_end_is_not_held_up(cluster: Cluster) -> None:
    cluster.start_head()
    program = cluster.start(
        """
        from scaleout.multiprocessing import Pool

        def flood(number):
            for line in range(300_000):
                print("x" * 50, line)
            return number

        if __name__ == "__main__":
            with Pool(2) as pool:
                assert pool.map(flood, range(2)) == [0, 1]
                assert pool.apply(print, ("the end",)) is None
        """
    )
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert re.search(r"\[\d+ lines were left out", output)
    assert len(output) < 20_000_000


GPU_USER = """
    import os, sys, time
    import scaleout

    @scaleout.remote(num_gpus=1, max_retries=0)
    def hold(seconds):
        path = "device" + os.environ["CUDA_VISIBLE_DEVICES"]
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        time.sleep(seconds)
        os.unlink(path)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    @scaleout.remote(num_gpus=2)
    def hold_both():
        for device in "01":
            os.close(os.open("device" + device, os.O_CREAT | os.O_EXCL))
        time.sleep(0.05)
        for device in "01":
            os.unlink("device" + device)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    if __name__ == "__main__":
        refs = [hold.remote(0.01) if number % 5 else hold_both.remote() for number in range(20)]
        assert {*scaleout.get(refs)} <= {"0", "1", "0,1"}
        print("well")
"""


def test_programs_share_the_gpus_of_a_node_and_nobody_has_one_that_another_has(cluster: Cluster) -> None:
    cluster.start_head("--num-gpus", "2")
    programs = [cluster.start(GPU_USER) for _ in range(3)]
    assert [finish(program) for program in programs] == ["well\n"] * 3


def test_who_waits_for_a_gpu_and_is_not_wanted_any_more(cluster: Cluster) -> None:
    cluster.start_head("--num-gpus", "1")
    keeper = cluster.start(
        """
        import sys, scaleout

        @scaleout.remote(num_gpus=1)
        class Keeper:
            def ready(self):
                return True

        if __name__ == "__main__":
            keeper = Keeper.remote()
            assert scaleout.get(keeper.ready.remote())
            print("has it", flush=True)
            sys.stdin.read()
        """,
        stdin=True,
    )
    assert read_line(keeper) == "has it"
    said = cluster.run(
        """
        import scaleout
        from scaleout.errors import GetTimeoutError, TaskCancelledError

        @scaleout.remote(num_gpus=1)
        def use():
            return 1

        @scaleout.remote
        def plain():
            return 2

        if __name__ == "__main__":
            ref = use.remote()
            try:
                scaleout.get(ref, timeout=1)
            except GetTimeoutError:
                scaleout.cancel(ref)
            try:
                scaleout.get(ref)
            except TaskCancelledError:
                print("cancelled")
            other = use.remote()
            assert scaleout.get(plain.remote()) == 2
            print("well")
        """
    )
    assert said == "cancelled\nwell\n"
    kill(keeper.pid)
    assert cluster.run(GPU_USER.replace("hold_both.remote()", "hold.remote(0.01)").replace('"0,1"', '"0"')) == "well\n"


def test_a_node_keeps_nothing_of_programs_that_have_ended(cluster: Cluster) -> None:
    address = cluster.start_head()
    node = psutil.Process(cluster.pid_of(address))
    sizes = []
    for _ in range(10):
        cluster.run(
            """
            import numpy, scaleout
            make = scaleout.remote(lambda: numpy.ones(1_000_000))
            assert scaleout.get(make.remote()).sum() == 1_000_000
            """
        )
        sizes.append(node.memory_full_info().uss)
    assert sizes[-1] - sizes[3] < 6e6, sizes  # what the first leave behind is used again


def has_autogroups() -> bool:
    """Whether the kernel shares processor time among sessions: not where control groups do it."""
    try:
        is_on = Path("/proc/sys/kernel/sched_autogroup_enabled").read_text() == "1\n"
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return False
    of_cpu = [path for _, kinds, path in groups if "cpu" in kinds.split(",")] or [path for _, _, path in groups]
    return is_on and set(of_cpu) == {"/"}


@pytest.mark.skipif(not has_autogroups(), reason="the kernel does not share processor time among sessions")
def test_programs_on_a_busy_node_have_equal_parts_of_it(cluster: Cluster) -> None:
    """However many workers each has: of a program with one worker and one with eight times as many as there are
    processors, the first has a whole processor."""
    address = cluster.start_head(cpus=1)
    node = psutil.Process(cluster.pid_of(address))
    busy = """
        import sys
        from scaleout.multiprocessing import Pool

        def burn(number):
            while True:
                pass

        pool = Pool({size})
        pool.map_async(burn, range({size}), chunksize=1)
        print("running", flush=True)
        input()
        pool.terminate()
    """
    cpus = len(os.sched_getaffinity(0))
    programs = [cluster.start(busy.format(size=size), stdin=True) for size in (1, 8 * cpus)]
    for program in programs:
        assert read_line(program) == "running"

    def workers() -> dict[int, list[psutil.Process]]:
        found: dict[int, list[psutil.Process]] = {}
        for process in node.children(recursive=True):
            if process.cpu_times().user > 0.1:
                found.setdefault(os.getsid(process.pid), []).append(process)
        return found

    wait_until(lambda: sorted(map(len, workers().values())) == [1, 8 * cpus])
    (alone,), _ = sorted(workers().values(), key=len)
    before, began = alone.cpu_times().user, time.monotonic()
    time.sleep(3)
    share = (alone.cpu_times().user - before) / (time.monotonic() - began)
    for program in programs:
        program.communicate("\n")
    # With all alike it would have a ninth of a processor, at most; other things run on this machine, too.
    assert share > 0.25, share


def test_an_actor_waits_for_a_node_that_has_room_for_it(cluster: Cluster) -> None:
    cluster.start_head()
    first = cluster.start_node("--resources", '{"seat": 1}')
    program = cluster.start(
        """
        import scaleout

        @scaleout.remote(resources={"seat": 1}, on_failure="restart", max_task_retries=-1)
        class Counter:
            count = 0

            def add(self):
                self.count += 1
                return self.count

        counter = Counter.remote()
        print(scaleout.get([counter.add.remote(), counter.add.remote()]), flush=True)
        input()
        ref = counter.add.remote()
        print(scaleout.wait([ref], timeout=2)[0], flush=True)
        print(scaleout.get(ref))
        """,
        stdin=True,
    )
    assert read_line(program) == "[1, 2]"
    kill(cluster.pid_of(first))
    go_on(program)
    assert read_line(program) == "[]"
    cluster.start_node("--resources", '{"seat": 1}')
    assert finish(program) == "1\n"


def test_an_actor_that_waits_for_a_node_can_be_killed_and_left(cluster: Cluster) -> None:
    cluster.start_head()
    first = cluster.start_node("--resources", '{"seat": 2}')
    program = cluster.start(
        """
        import gc, scaleout
        from scaleout.errors import ActorDiedError

        @scaleout.remote(resources={"seat": 1}, on_failure="restart", max_task_retries=-1)
        class Waits:
            def call(self):
                return "here"

        killed, left = Waits.remote(), Waits.remote()
        print(scaleout.get([killed.call.remote(), left.call.remote()]), flush=True)
        input()
        ref = killed.call.remote()
        assert not scaleout.wait([ref], timeout=1)[0]
        scaleout.kill(killed)
        try:
            scaleout.get(ref)
        except ActorDiedError as error:
            print("was killed" in str(error))
        del left
        gc.collect()
        while any(actor["state"] != "DEAD" for actor in scaleout.list_actors()):
            pass
        print("gone")
        """,
        stdin=True,
    )
    assert read_line(program) == "['here', 'here']"
    kill(cluster.pid_of(first))
    go_on(program)
    assert finish(program) == "True\ngone\n"
