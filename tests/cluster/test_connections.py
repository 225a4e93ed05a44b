"""Connections that break while both ends are well. A proxy between program and node breaks them."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import Cluster, finish, read_line

ABORT = struct.pack("ii", 1, 0)


class Proxy:
    """Hands on bytes between whoever connects here and `address`, until it is told to break."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.is_open = True
        self.accepted = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            self.accepted += 1
            if not self.is_open:
                near.close()
                continue
            far = socket.create_connection(self._target)
            with self._lock:
                self._pairs.append((near, far))
            for source, target in ((near, far), (far, near)):
                self._start(self._hand_on, source, target)

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def break_all(self, with_reset: bool) -> None:
        """What is on the way is lost."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                if with_reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self) -> None:
        self.is_open = False
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_all(False)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    cluster.start_head()
    made = Proxy(cluster.address)
    yield made
    made.close()


WORK = """
    import os, sys, time
    import numpy
    import scaleout
    from scaleout.multiprocessing import Pool

    folder = sys.argv[0] + ".ran"

    def noted(number, array):
        with open(folder, "a") as file:
            file.write(f"{number}\\n")
        time.sleep(0.002)
        return number, array * 2

    @scaleout.remote(max_restarts=0)
    class Sum:
        def __init__(self):
            self.total = 0
        def add(self, value):
            self.total += value
            return self.total

    if __name__ == "__main__":
        total = Sum.remote()
        arrays = [numpy.full(size, size, dtype="i8") for size in (10, 100_000, 1_000_000)]
        with Pool(2) as pool:
            pool.map(abs, range(10))
            print("running", flush=True)
            end = time.monotonic() + 4
            rounds = 0
            while time.monotonic() < end:
                tasks = [(rounds * 30 + index, arrays[index % 10 % 3 if index < 20 else 0]) for index in range(30)]
                for (number, array), (got, doubled) in zip(tasks, pool.starmap(noted, tasks, chunksize=1)):
                    assert number == got and (doubled == array * 2).all() and len(doubled) == len(array)
                rounds += 1
                assert scaleout.get(total.add.remote(1)) == rounds
        ran = [int(line) for line in open(folder)]
        assert sorted(ran) == list(range(rounds * 30)), (len(ran), rounds)
        print("well", flush=True)
"""


@pytest.mark.parametrize("with_reset", [False, True])
def test_nothing_is_lost_and_nothing_runs_twice(cluster: Cluster, proxy: Proxy, with_reset: bool) -> None:
    """And an actor that must not restart lives on."""
    program = cluster.start(WORK, SCALEOUT_ADDRESS=proxy.address, SCALEOUT_CLUSTER="default")
    assert read_line(program) == "running"
    breaks = 0
    chance = random.Random(5)
    while program.poll() is None and breaks < 25:
        time.sleep(chance.random() * 0.25)
        proxy.break_all(with_reset)
        breaks += 1
    assert finish(program) == "well\n"
    assert proxy.accepted > 10


def test_a_program_that_does_not_come_back(cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
    """Its work ends, some seconds later; it sees a node that is gone."""
    program = cluster.start(
        """
        import time
        from scaleout.errors import ScaleoutError
        from scaleout.multiprocessing import Pool
        with Pool(2) as pool:
            pool.map(abs, range(10))
            print("running", flush=True)
            try:
                pool.map(time.sleep, [0.01] * 10_000, chunksize=1)
            except ScaleoutError as error:
                print("no node" in str(error), flush=True)
        """,
        SCALEOUT_ADDRESS=proxy.address,
        SCALEOUT_CLUSTER="default",
    )
    assert read_line(program) == "running"
    proxy.is_open = False
    proxy.break_all(True)
    assert read_line(program) == "True"
    program.communicate()
    deadline = time.monotonic() + 60
    while "has not come back" not in cluster.log():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_workers_that_are_wanted_meanwhile(cluster: Cluster, proxy: Proxy) -> None:
    """A pool is opened and a worker dies while the connection is broken."""
    program = cluster.start(
        """
        import os, sys, time
        from scaleout.multiprocessing import Pool

        def die(marker):
            if not os.path.exists(marker):
                open(marker, "w").close()
                time.sleep(0.3)
                os._exit(1)
            return "lives"

        with Pool(1) as pool:
            pool.map(abs, range(10))
            result = pool.apply_async(die, (sys.argv[0] + ".marker",))
            while not os.path.exists(sys.argv[0] + ".marker"):
                time.sleep(0.01)
            print("running", flush=True)
            time.sleep(0.1)
            with Pool(2) as other:
                print(other.map(abs, range(-3, 0)), result.get())
        """,
        SCALEOUT_ADDRESS=proxy.address,
        SCALEOUT_CLUSTER="default",
    )
    assert read_line(program) == "running"
    proxy.is_open = False
    proxy.break_all(True)
    time.sleep(1)
    proxy.is_open = True
    assert finish(program) == "[3, 2, 1] lives\n"
