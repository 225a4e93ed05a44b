"""Programs on a node's own machine: workers there are theirs by sockets and shared memory, with nothing relayed."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, counted, descendants, finish, go_on, kill, read_line, wait_until

from scaleout._runtime.cluster import near_socket
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, frame

WORKERS = """
import os, sys, time
import numpy
import scaleout
from scaleout._runtime import session
from scaleout.multiprocessing import Pool


def keeper():
    return session.default_session()._owner.keeper


def nears():
    return [node.near is not None for node in keeper().nodes]


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def near_pids():
    return [peer.pid for peer in list(keeper().peers.values()) if not peer.seat.is_relayed and peer.pid]


def kinds():
    '''How many workers are near, and how many relayed.'''
    relayed = [peer.seat.is_relayed for peer in list(keeper().peers.values())]
    return relayed.count(False), relayed.count(True)
"""


@pytest.fixture
def near(cluster: Cluster) -> Iterator[Cluster]:
    """A head with two CPUs on the programs' machine, and a node with two that they do not know to be there."""
    cluster.start_head()
    cluster.must(
        "start", "--address", cluster.address, "--num-cpus", "2", XDG_RUNTIME_DIR=str(cluster.directory / "away")
    )
    cluster.programs_are_near = True
    try:
        yield cluster
    finally:
        cluster.scaleout("stop", XDG_RUNTIME_DIR=str(cluster.directory / "away"))


def run(cluster: Cluster, script: str) -> str:
    return cluster.run(WORKERS + textwrap.dedent(script))


def pids_of_nodes(cluster: Cluster) -> list[int]:
    return [int(node["pid"]) for node in cluster.nodes()]


def test_workers_of_both_nodes(near: Cluster) -> None:
    said = run(
        near,
        """
        import multiprocessing
        from operator import neg
        from scaleout.futures import ScaleoutExecutor

        def edit(array):
            array[0] = 1
            return os.getpid(), multiprocessing.parent_process().pid, array

        def inner(numbers):
            with Pool(2) as pool:
                return pool.map(neg, numbers)

        @scaleout.remote
        def total(array):
            return float(array.sum()), numpy.ones(500_000)

        @scaleout.remote
        class Counter:
            def __init__(self):
                self.count = 0

            def add(self, array):
                self.count += len(array)
                return self.count

        if __name__ == "__main__":
            with Pool(4) as pool:
                pool.map(abs, range(8))
                assert kinds() == (2, 2), kinds()
                array = numpy.zeros(1_000_000)
                answers = pool.map(edit, [array] * 8, chunksize=1)
                assert all(found[0] == 1 for *_, found in answers) and array[0] == 0
                near = set(near_pids())
                assert {parent for pid, parent, _ in answers if pid in near} <= {os.getpid()}
                assert all(pool.apply(neg, (i,)) == -i for i in range(2000))
                assert pool.map(inner, [[1, 2], [3]] * 4, chunksize=1) == [[-1, -2], [-3]] * 4
                assert list(pool.imap_unordered(lambda text: len(text), ["x" * 100_000] * 200)) == [100_000] * 200
            with ScaleoutExecutor() as executor:
                assert list(executor.map(neg, range(1000))) == [-i for i in range(1000)]
            refs = [total.remote(scaleout.put(numpy.ones(1_000_000))) for _ in range(12)]
            assert [found[0] for found in scaleout.get(refs)] == [1_000_000] * 12
            counters = [Counter.remote() for _ in range(4)]
            for _ in range(3):
                answers = scaleout.get([counter.add.remote(array) for counter in counters])
            assert answers == [3_000_000] * 4
            assert kinds()[0] > 1 and kinds()[1] > 1
            del refs, counters, answers
            print("well")
        """,
    )
    assert said == "well\n"
    wait_until(lambda: not any(descendants(pid) for pid in pids_of_nodes(near)))


def test_what_they_print_is_marked(near: Cluster) -> None:
    lines = run(
        near,
        """
        def speak(number):
            print("line", number, flush=True)
            time.sleep(0.2)
            return os.getpid()

        if __name__ == "__main__":
            with Pool(4) as pool:
                pids = pool.map(speak, range(4), chunksize=1)
                here = near_pids()
                node = next(node.node_id for node in keeper().nodes if node.near is not None)
            for number, pid in enumerate(pids):
                print("said", node if pid in here else "other", pid, number)
        """,
    ).splitlines()
    said = [line.split()[1:] for line in lines if line.startswith("said")]
    near_lines = [f"({node}, pid {pid}) line {number}" for node, pid, number in said if node != "other"]
    assert near_lines and set(near_lines) <= set(lines)
    assert len(lines) == 8


def test_the_program_is_killed(near: Cluster) -> None:
    program = near.start(
        WORKERS
        + textwrap.dedent("""
        with Pool(4) as pool:
            pool.map(abs, range(8))
            wait_for(lambda: len(near_pids()) == 2)
            print(*near_pids(), flush=True)
            pool.map(time.sleep, [60] * 4, chunksize=1)
        """)
    )
    pids = [int(pid) for pid in read_line(program).split()]
    assert len(pids) == 2
    program.kill()
    program.communicate()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    wait_until(lambda: not any(descendants(pid) for pid in pids_of_nodes(near)))


def test_the_zygote_is_killed(near: Cluster) -> None:
    """Its workers go with it, uncharged; then there is another."""
    said = run(
        near,
        """
        import signal

        def work(number):
            time.sleep(0.01)
            return number

        if __name__ == "__main__":
            zygotes = set()
            with Pool(4, max_retries=1) as pool:
                for _ in range(3):
                    results = pool.map_async(work, range(200), chunksize=1)
                    wait_for(near_pids)
                    (pid, *_) = near_pids()
                    zygote = int(open(f"/proc/{pid}/stat").read().split()[3])
                    zygotes.add(zygote)
                    os.kill(zygote, signal.SIGKILL)
                    assert results.get(60) == list(range(200))
                    wait_for(lambda: any(nears()))
                    for peer in [peer for peer in list(keeper().peers.values()) if peer.seat.is_relayed]:
                        os.kill(peer.pid, signal.SIGKILL)  # so that there are near ones again
                    wait_for(lambda: sum(kinds()) == 4 and kinds()[0])
            assert len(zygotes) == 3
            print("well")
        """,
    )
    assert said == "well\n"


def test_the_node_is_killed(near: Cluster) -> None:
    program = near.start(
        WORKERS
        + textwrap.dedent("""
        def work(number):
            with open("count", "a") as file:
                file.write(f"{number}\\n")
            time.sleep(0.01)
            return number

        @scaleout.remote(max_retries=0)
        def once():
            time.sleep(60)

        if __name__ == "__main__":
            with Pool(4) as pool:
                pool.map(abs, range(8))
                never = [once.remote() for _ in range(4)]
                print(*near_pids(), flush=True)
                assert pool.map(work, range(400), chunksize=1) == list(range(400))
                done, left = scaleout.wait(never, num_returns=2, timeout=30)
                for ref in done:
                    try:
                        scaleout.get(ref)
                    except scaleout.errors.WorkerDiedError as error:
                        print(type(error).__name__)
        """)
    )
    pids = [int(pid) for pid in read_line(program).split()]
    wait_until((near.directory / "count").exists)
    kill(near.pid_of(near.address))
    wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    assert finish(program) == "WorkerDiedError\n" * 2
    assert set(counted(near).values()) <= {1, 2}


def test_a_near_node_is_drained(near: Cluster) -> None:
    program = near.start(
        WORKERS
        + textwrap.dedent("""
        with Pool(4) as pool:
            pool.map(abs, range(8))
            print(next(node.node_id for node in keeper().nodes if node.near is not None), flush=True)
            sys.stdin.readline()
            wait_for(lambda: kinds() == (0, 4))
            print(pool.map(abs, range(-4, 0)))
        """),
        stdin=True,
    )
    near.must("drain", read_line(program))
    go_on(program)
    assert finish(program) == "[4, 3, 2, 1]\n"


def test_a_near_node_is_drained_while_its_workers_are_called_directly(near: Cluster) -> None:
    program = near.start(
        WORKERS
        + textwrap.dedent("""
        with Pool(4) as pool:
            for number in range(500):
                assert pool.apply(abs, (-number,)) == number
            node = next(node for node in keeper().nodes if node.near is not None)
            print(node.node_id, flush=True)
            number = 0
            while kinds() != (0, 4):
                assert pool.apply(abs, (-number,)) == number
                number += 1
        """)
    )
    near.must("drain", read_line(program))
    assert finish(program) == ""


def test_few_descriptors(near: Cluster) -> None:
    """Workers that there are none for are relayed."""
    said = run(
        near,
        """
        import resource

        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_NOFILE, (70, 70))
            with Pool(60) as pool:
                assert pool.map(abs, range(-200, 0), chunksize=1) == [*range(200, 0, -1)]
                wait_for(lambda: sum(kinds()) == 60)
                print(kinds()[0] < 30, kinds()[0] > 5)
                assert pool.map(abs, range(-200, 0), chunksize=1) == [*range(200, 0, -1)]
        """,
    )
    assert said == "True True\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_users_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program must not even look into is no error: it goes by TLS."""
    (tmp_path / "scaleout").mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            os.listdir(tmp_path / "scaleout")
        assert near_socket.ask("default", "0" * 12, "0" * 32) is None
    finally:
        os.seteuid(0)


def test_values_of_both_kinds_of_nodes(near: Cluster) -> None:
    """What is made near is here; what is made elsewhere stays there, and is made again if it is lost, and nothing else
    is."""
    program = near.start(
        WORKERS
        + textwrap.dedent("""
        def note(text):
            with open("count", "a") as file:
                file.write(text + "\\n")

        @scaleout.remote
        def make(number):
            note(f"make {number}")
            time.sleep(0.05)
            return numpy.full(300_000, float(number))

        @scaleout.remote
        def add(left, right):
            note(f"add {int(left[0])} {int(right[0])}")
            return left + right

        def places(refs):
            return [ref._hold.places for ref in refs]

        if __name__ == "__main__":
            made = [make.remote(number) for number in range(16)]
            scaleout.wait(made, num_returns=16)
            away = [number for number, place in enumerate(places(made)) if place]
            assert 0 < len(away) < 16, away
            print(*away, flush=True)
            sys.stdin.readline()
            sums = [add.remote(made[number], made[15 - number]) for number in range(8)]
            assert [float(total[0]) for total in scaleout.get(sums)] == [15.0] * 8
            assert [float(array[0]) for array in scaleout.get(made)] == [*range(16)]
        """),
        stdin=True,
    )
    away = read_line(program).split()
    (pid,) = [int(node["pid"]) for node in near.nodes() if not node["is_head"]]
    kill(pid)
    wait_until(lambda: not psutil.pid_exists(pid))
    go_on(program)
    finish(program)
    times = counted(near)
    for number in range(16):
        assert times[f"make {number}"] == 1 + (str(number) in away), (number, away, times)


def test_gpus_are_given_out_by_the_node(cluster: Cluster) -> None:
    cluster.start_head("--num-gpus", "1")
    cluster.programs_are_near = True
    said = run(
        cluster,
        """
        @scaleout.remote(num_gpus=1)
        def device():
            return os.environ["CUDA_VISIBLE_DEVICES"], numpy.ones(500_000)

        @scaleout.remote
        def plain(found):
            return found[0], float(found[1].sum())

        if __name__ == "__main__":
            print(*scaleout.get([plain.remote(device.remote()) for _ in range(3)]))
            assert kinds()[0]
        """,
    )
    assert said == "('0', 500000.0) " * 2 + "('0', 500000.0)\n"


def test_a_fork_of_the_program(near: Cluster) -> None:
    said = run(
        near,
        """
        if __name__ == "__main__":
            pool = Pool(4)
            pool.map(abs, range(8))
            fds = {peer.link.fileno() for peer in keeper().peers.values() if not peer.seat.is_relayed}
            for near in (node.near for node in keeper().nodes if node.near is not None):
                fds.add(near._host.link.fileno())
                fds.update(output.fd for outputs in near.outputs._of.values() for output in outputs)
            assert len(fds) == 7
            mine = {os.fstat(fd).st_ino for fd in fds}
            pid = os.fork()
            if not pid:
                open_fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")]
                print(mine & {os.fstat(fd).st_ino for fd in open_fds})
                try:
                    pool.apply(abs, (-1,))
                except Exception as error:
                    print(type(error).__name__, flush=True)
                with Pool(2) as other:
                    print(other.map(abs, [-1, -2]), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            print(pool.map(abs, [-3]))
            pool.terminate()
        """,
    )
    first, _, *others = said.splitlines()
    assert first == "set()"
    assert others == ["[1, 2]", "[3]"]


def test_whoever_comes_by_the_socket(near: Cluster) -> None:
    """It gets nothing unless a node knows it; and the next one does."""
    folder = Path(near.environ["XDG_RUNTIME_DIR"]) / "scaleout/default"
    (path,) = folder.glob("node-*.sock")
    assert folder.stat().st_mode & 0o777 == 0o700
    pid = near.pid_of(near.address)
    before = psutil.Process(pid).num_fds()
    for said in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        frame(frames.ATTACH, b"\xff" * 10),
        frame(frames.ATTACH, b"0" * 32),
        frame(frames.ATTACH, b"0" * 100),
        HEADER.pack(1 << 30, frames.ATTACH, 0, 0, 0),
    ):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            try:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(10) == b""
            except ConnectionError:
                pass
    wait_until(lambda: psutil.Process(pid).num_fds() <= before)
    assert run(near, "with Pool(4) as pool:\n    print(pool.map(abs, [-1]), kinds())\n") == "[1] (2, 2)\n"


def test_a_stopped_node_leaves_no_socket(near: Cluster) -> None:
    folder = Path(near.environ["XDG_RUNTIME_DIR"]) / "scaleout/default"
    assert len(list(folder.glob("*.sock"))) == 1
    near.must("stop")
    assert not list(folder.glob("*.sock"))
    near.start_head()
    pid = near.pid_of(near.address)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid))
    near.scaleout("stop")
    assert not list(folder.glob("*.sock"))
