"""What dies, and what comes of it: workers, nodes, the head, drivers."""

from __future__ import annotations

import os
import signal
import subprocess

from clusters import Cluster, descendants, finish, kill, read_line, wait_until

SLOW_MAP = """
    import os, sys, time
    from scaleout.multiprocessing import Pool

    def slow(number):
        with open("started", "a") as file:
            file.write(f"{number}\\n")
        time.sleep(0.1)
        return number * number

    if __name__ == "__main__":
        with Pool(4) as pool:
            result = pool.map_async(slow, range(60), chunksize=1)
            pool.apply(abs, (1,))
            print("running", flush=True)
            assert result.get() == [n * n for n in range(60)]
            assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))
            print("well")
"""

SLEEPERS = """
    import os, time
    from scaleout.multiprocessing import Pool

    def sleep(number):
        open(f"asleep{number}", "w").close()
        time.sleep(60)

    if __name__ == "__main__":
        with Pool(4) as pool:
            print("running", flush=True)
            try:
                pool.map(sleep, range(8), chunksize=1)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            assert pool.map(abs, [-1]) == [1]
        print("well")
"""


def start_sleepers(cluster: Cluster) -> subprocess.Popen[str]:
    """A program whose four workers are all busy for a minute."""
    program = cluster.start(SLEEPERS)
    assert read_line(program) == "running"
    wait_until(lambda: len(list(cluster.directory.glob("asleep*"))) == 4)
    return program


SHORT = """
import os
from scaleout._runtime.base import memory

memory.is_short = lambda share: os.path.exists(os.environ["SCALEOUT_HOME"] + "/short")
"""


def test_a_node_whose_memory_runs_short(cluster: Cluster) -> None:
    """The nodes of this test believe a file that says so."""
    (cluster.directory / "sitecustomize.py").write_text(SHORT)
    cluster.environ["PYTHONPATH"] = str(cluster.directory)
    cluster.start_head()
    program = cluster.start(
        """
        import os, time
        import scaleout
        from scaleout.errors import OutOfMemoryError

        @scaleout.remote
        def note(name, until):
            with open(name, "a") as file:
                file.write("begun\\n")
            while not os.path.exists(until):
                time.sleep(0.01)
            return name

        if __name__ == "__main__":
            first = note.remote("first", "over")
            while not os.path.exists("first"):
                time.sleep(0.01)
            second = note.remote("second", "over")
            while not os.path.exists("second"):
                time.sleep(0.01)
            open(os.environ["SCALEOUT_HOME"] + "/short", "w").close()
            while open("second").read().count("begun") < 2:
                time.sleep(0.01)
            os.unlink(os.environ["SCALEOUT_HOME"] + "/short")
            open("over", "w").close()
            assert scaleout.get([first, second]) == ["first", "second"]
            assert open("first").read() == "begun\\n"
            open(os.environ["SCALEOUT_HOME"] + "/short", "w").close()
            try:
                scaleout.get(note.options(max_retries=1).remote("third", "never"))
            except OutOfMemoryError as error:
                assert error.attempts == 2 and sum(error.usage.values()) > 1 << 20, (error.attempts, error.usage)
                print("well")
        """
    )
    assert finish(program) == "well\n"


def test_a_worker_that_is_killed(pair: Cluster) -> None:
    said = pair.run(
        """
        import os, signal
        from scaleout.errors import WorkerDiedError
        from scaleout.multiprocessing import Pool

        def once(number):
            try:
                os.close(os.open(f"marker{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return number
            os.kill(os.getpid(), signal.SIGKILL)

        def always(number):
            if number == 7:
                os._exit(3)
            return number

        if __name__ == "__main__":
            with Pool(4) as pool:
                assert pool.map(once, range(6), chunksize=1) == list(range(6))
                results = [pool.apply_async(always, (number,)) for number in range(10)]
                for number, result in enumerate(results):
                    try:
                        assert result.get() == number
                    except WorkerDiedError as error:
                        assert number == 7 and "exit code 3" in str(error), error
                assert pool.map(abs, [-1, -2]) == [1, 2]
            print("well")
        """
    )
    assert said == "well\n"


def test_a_node_that_is_killed(pair: Cluster) -> None:
    """Only what ran there runs again."""
    node = next(node for node in pair.nodes() if not node["is_head"])
    program = pair.start(SLOW_MAP)
    assert read_line(program) == "running"
    kill(int(node["pid"]))
    assert finish(program) == "well\n"
    started = (pair.directory / "started").read_text().split()
    assert len(started) <= 60 + 2 * 2  # two workers, each with one that runs and at most one that it had begun
    wait_until(lambda: [n["state"] for n in pair.nodes()] in (["alive"], ["alive", "suspected"]))


def test_a_node_that_stands_still(pair: Cluster) -> None:
    """Its machine answers, and it does not: the head gives it up, and with that the program does. When it goes on, it
    is another node to all, and takes part again."""
    node = next(node for node in pair.nodes() if not node["is_head"])
    program = pair.start(
        """
        import os, time
        from scaleout.multiprocessing import Pool

        def where(number):
            time.sleep(0.02)
            return os.getppid()

        if __name__ == "__main__":
            with Pool() as pool:
                assert len(set(pool.map(where, range(100), chunksize=1))) == 2
                print("both", flush=True)
                while len(set(pool.map(where, range(20), chunksize=1))) == 2 or len(pool._pool) > 2:
                    pass  # what is suspected gets nothing new, before it is given up
                print("one", flush=True)
                while len(set(pool.map(where, range(20), chunksize=1))) == 1:
                    pass
                print("both again")
        """
    )
    assert read_line(program) == "both"
    os.kill(int(node["pid"]), signal.SIGSTOP)
    assert read_line(program) == "one"
    wait_until(lambda: len(pair.nodes()) == 1)
    os.kill(int(node["pid"]), signal.SIGCONT)
    assert finish(program) == "both again\n"
    assert "the head had given this node up" in pair.log()


def test_a_node_that_is_stopped_by_its_user(pair: Cluster) -> None:
    node = next(node for node in pair.nodes() if not node["is_head"])
    program = pair.start(SLOW_MAP)
    assert read_line(program) == "running"
    os.kill(int(node["pid"]), signal.SIGTERM)
    assert finish(program) == "well\n"
    wait_until(lambda: len(pair.nodes()) == 1)  # it has said good-bye


def test_a_driver_that_is_killed(pair: Cluster) -> None:
    """What was its own ends with it, on every node."""
    program = start_sleepers(pair)
    pids = [int(node["pid"]) for node in pair.nodes()]
    assert [len(descendants(pid)) for pid in pids] == [3, 3]  # a zygote and two workers
    program.kill()
    program.communicate()
    wait_until(lambda: not any(descendants(pid) for pid in pids))


def test_ctrl_c_in_a_map(pair: Cluster) -> None:
    program = start_sleepers(pair)
    program.send_signal(signal.SIGINT)
    assert finish(program) == "interrupted\nwell\n"


def test_the_head_is_killed_and_started_again(cluster: Cluster) -> None:
    """A program that is attached to another node goes on, and the nodes find the new head."""
    cluster.start_head(cpus=1)
    other = cluster.start_node()
    before = {node["node_id"] for node in cluster.nodes() if not node["is_head"]}
    program = cluster.start(SLOW_MAP, SCALEOUT_ADDRESS=other, SCALEOUT_CLUSTER="default")
    assert read_line(program) == "running"
    cluster.must("drain", *before)
    kill(cluster.pid_of(cluster.address))
    address = cluster.address
    assert cluster.start_head(cpus=1) == address
    wait_until(lambda: before <= {node["node_id"] for node in cluster.nodes()})
    assert finish(program) == "well\n"
    assert "draining" in cluster.must("status")
