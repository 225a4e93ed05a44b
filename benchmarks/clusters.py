"""Clusters of two nodes of one CPU on this machine: scaleout beside Ray and Dask. `python -m benchmarks.clusters`.

Of each, in turn: from nothing to a program's first result (cold), from a program's start to its first result on a
cluster that runs (connect), single tasks, and what all processes occupy (PSS) after that. Peers that are not installed
are left out. Every process that a cluster has left is ended, by a mark in its environment.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers import why_missing
from benchmarks.process_tree import pss_of

REPEAT = 3
TASKS = 2000
MARK = "BENCHMARK_OF"

PROGRAM = """
import os, sys, time
{connect}
get([task(0)])
print("first", flush=True)
get([task(number) for number in range(200)])
started = time.perf_counter()
get([task(number) for number in range({tasks})])
print((time.perf_counter() - started) / {tasks}, flush=True)
sys.stdin.readline()
os._exit(0)
"""

RAY = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
"""

CONNECT = {
    "scaleout": """
import scaleout
remote = scaleout.remote(lambda number: number)
task, get = remote.remote, scaleout.get
""",
    "ray": """
import logging
import ray
ray.init(address=os.environ["ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
remote = ray.remote(lambda number: number)
task, get = remote.remote, ray.get
""",
    "dask": """
import distributed
client = distributed.Client(os.environ["ADDRESS"])
task = lambda number: client.submit(lambda number: number, number, pure=False)
get = client.gather
""",
}


class Bench:
    """One cluster, from its start to its end. `start` gives the programs' address."""

    def __init__(self, peer: str, directory: Path) -> None:
        self._peer = peer
        self._mark = uuid.uuid4().hex
        (directory / "run").mkdir()
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SCALEOUT_")},
            MARK: self._mark,
            "SCALEOUT_HOME": str(directory / "home"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._directory = directory

    def _run(self, *command: str) -> str:
        done = subprocess.run([sys.executable, *command], env=self._environ, check=True, capture_output=True, text=True)
        return done.stdout

    def _spawn(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command],
            env=self._environ,
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> None:
        starts: dict[str, Callable[[], str]] = {"scaleout": self._scaleout, "ray": self._ray, "dask": self._dask}
        address = starts[self._peer]()
        self._environ["SCALEOUT_ADDRESS" if self._peer == "scaleout" else "ADDRESS"] = address

    def _scaleout(self) -> str:
        said = self._run("-m", "scaleout.cli", "start", "--head", "--num-cpus", "1")
        address = said.splitlines()[0].rsplit(" ", 1)[1]
        self._run("-m", "scaleout.cli", "start", "--address", address, "--num-cpus", "1")
        return address

    def _ray(self) -> str:
        """Two nodes on one machine are what Ray's own tests have, by this."""
        self._kept = self._spawn("-c", RAY)
        assert self._kept.stdout is not None
        return self._kept.stdout.readline().strip()

    def _dask(self) -> str:
        port = _free_port()
        address = f"tcp://127.0.0.1:{port}"
        self._spawn("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        for _ in range(2):
            self._spawn("-m", "dask", "worker", address, "--nthreads", "1", "--no-dashboard")
        return address

    def program(self) -> tuple[float, float, float]:
        """(seconds to its first result, seconds per task, MB of all processes while it is there)"""
        started = time.perf_counter()
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(connect=CONNECT[self._peer], tasks=TASKS)],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline() == "first\n"
        first_s = time.perf_counter() - started
        task_s = float(program.stdout.readline())
        size_mb = sum(map(pss_of, self._pids()))
        program.stdin.close()
        program.wait()
        return first_s, task_s, size_mb

    def _pids(self) -> list[int]:
        """Of all that was started with our mark."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def stop(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._pids():
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + 10
            while self._pids() and time.monotonic() < deadline:
                time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clusters", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeat", type=int, default=REPEAT)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    peers = []
    for peer in CONNECT:
        missing = why_missing(peer)
        if missing is None:
            peers.append(peer)
        else:
            print(f"{peer}: {missing}", file=sys.stderr)
    for number in range(options.repeat):
        for peer in peers:
            print(f"{peer}: {number + 1} of {options.repeat}", file=sys.stderr)
            found.setdefault(peer, []).append(_sample(peer))
    print(
        "| two nodes of one CPU | from nothing to a result | program to its first result | per task | memory of all |"
    )
    print("|---|---|---|---|---|")
    for peer, samples in found.items():
        cold_s, first_s, task_s, size_mb = (statistics.median(values) for values in zip(*samples, strict=True))
        print(f"| {peer} | {cold_s:.2f} s | {first_s:.2f} s | {task_s * 1e6:.0f} µs | {size_mb:.0f} MB |")


def _sample(peer: str) -> tuple[float, float, float, float]:
    with tempfile.TemporaryDirectory(prefix="so-", ignore_cleanup_errors=True) as directory:
        bench = Bench(peer, Path(directory))
        try:
            started = time.perf_counter()
            bench.start()
            begun_s = time.perf_counter() - started
            cold_s = begun_s + bench.program()[0]
            first_s, task_s, size_mb = bench.program()
            return cold_s, first_s, task_s, size_mb
        finally:
            bench.stop()


if __name__ == "__main__":
    main()
