"""A cluster of two nodes on this machine beside the embedded runtime: `python -m benchmarks.cluster`.

Starts a head and a node with one CPU each, on loopback, in directories of their own, and runs the same measures in a
driver that is attached to them and in one with two workers of its own, in turn. Prints a table; ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MB = 1_000_000
REPEAT = 5

# measure, unit, at most (ratio to the contender named, or None: reported)
ROWS = (
    ("first", "a process: Pool(2), map of 10, exit", "s", "embedded", None),
    ("apply", "apply round trip", "us", "TLS ping-pong of the same size", 6.0),
    ("async", "apply_async x 10 000, then get all; per call", "us", "embedded", 2.0),
    ("imap", "imap_unordered, chunksize 1, 10 000; per item", "us", "embedded", 1.5),
    ("map", "map of 100 000, default chunks; per item", "us", "embedded", 1.5),
    ("submit", "executor.submit x 10 000, then results; per call", "us", "embedded", 1.5),
    ("joblib", "joblib: 5000 no-ops one by one; per call", "us", "embedded", 1.5),
    ("result", "a worker returns an existing 50 MB array", "s", "bare TLS socket, 50 MB", 1 / 0.7),
    ("argument", "a 50 MB array as argument", "s", "bare TLS socket, 50 MB", 1 / 0.7),
    ("fetch", "a task's 50 MB array, from the node that has it here", "s", "bare TLS socket, 50 MB", 1 / 0.7),
    ("between", "a task's 50 MB array, from the node that has it to another", "s", "bare TLS socket, 50 MB", 1 / 0.7),
    ("task", "scaleout tasks x 3000, then get; per task", "us", "embedded", 2.0),
)


def measures() -> dict[str, float]:
    """In a driver: seconds, by name."""
    import joblib
    import numpy

    import scaleout
    import scaleout.joblib_backend
    from benchmarks.workloads import negate
    from scaleout.futures import ScaleoutExecutor
    from scaleout.multiprocessing import Pool

    found = {}
    started = time.perf_counter()
    with Pool(1) as pool:
        pool.apply(negate, (1,))
        found["connect"] = time.perf_counter() - started
    array = numpy.ones(50 * MB // 8)
    with Pool(2, _make_array) as pool:
        pool.map(negate, range(1000), chunksize=1)
        found["apply"] = _per(1000, lambda: [pool.apply(negate, (number,)) for number in range(1000)])
        found["async"] = _per(
            10_000, lambda: [r.get() for r in [pool.apply_async(negate, (number,)) for number in range(10_000)]]
        )
        found["imap"] = _per(10_000, lambda: list(pool.imap_unordered(negate, range(10_000))))
        found["map"] = _per(100_000, lambda: pool.map(negate, range(100_000)))
        found["result"] = _per(1, lambda: pool.apply(_array))
        found["argument"] = _per(1, lambda: pool.apply(len, (array,)))
    with ScaleoutExecutor(2) as executor:
        executor.submit(negate, 1).result()
        found["submit"] = _per(
            10_000, lambda: [f.result() for f in [executor.submit(negate, number) for number in range(10_000)]]
        )
    with joblib.parallel_config(backend="scaleout", n_jobs=2):
        run = joblib.Parallel(batch_size=1, pre_dispatch="all")
        run(joblib.delayed(negate)(number) for number in range(100))
        found["joblib"] = _per(5000, lambda: run(joblib.delayed(negate)(number) for number in range(5000)))
    task = scaleout.remote(negate)
    scaleout.get([task.remote(number) for number in range(100)])
    found["task"] = _per(3000, lambda: scaleout.get([task.remote(number) for number in range(3000)]))
    found["fetch"] = min(_fetch_s() for _ in range(3))
    found["between"] = min(_between_s() for _ in range(3))
    scaleout.shutdown()
    return found


def _fetch_s() -> float:
    """From a large result that waits where it was made to an array here."""
    import scaleout

    made = scaleout.remote(_ones).remote(50 * MB // 8)
    scaleout.wait([made])
    return _once(lambda: scaleout.get(made))


def _between_s() -> float:
    """Two tasks that need one array and stay: until both have begun, one of them on the machine that lacks it."""
    import scaleout

    made = scaleout.remote(_ones).remote(50 * MB // 8)
    scaleout.wait([made])
    began = scaleout.remote(_began_at)
    started = time.time()
    return float(max(scaleout.get([began.remote(made, number) for number in range(2)])) - started)


def _ones(count: int) -> object:
    import numpy

    return numpy.ones(count)


def _began_at(array: object, number: int) -> float:
    now = time.time()
    time.sleep(0.5)
    return now


def _per(calls: int, run: Callable[[], object]) -> float:
    run()
    return _once(run) / calls


def _once(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _make_array() -> None:
    import numpy

    globals()["made"] = numpy.ones(50 * MB // 8)


def _array() -> object:
    return globals()["made"]


FIRST = """
from scaleout.multiprocessing import Pool
if __name__ == "__main__":
    with Pool(2) as pool:
        assert pool.map(abs, range(-10, 0)) == list(range(10, 0, -1))
"""


def first_s(environ: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST], env=environ, check=True)
    return time.perf_counter() - started


# -- the bare sockets that it is held against ------------------------------------------------------


@contextmanager
def tls_pair(home: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    from scaleout._runtime.cluster import keys, tls

    keys.Authority(home)
    identity = keys.own_identity(home, "node", tls.NODE, "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []
        accept = threading.Thread(
            target=lambda: accepted.append(
                tls.server_context(identity).wrap_socket(listener.accept()[0], server_side=True)
            )
        )
        accept.start()
        client = tls.client_context(identity).wrap_socket(socket.create_connection(listener.getsockname()))
        accept.join()
        for sock in (client, accepted[0]):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, accepted[0]:
            yield client, accepted[0]


def ping_pong_s(home: Path, rounds: int = 2000) -> float:
    """Between two processes."""
    with tls_pair(home) as (client, server):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(rounds):
                    server.sendall(server.recv(100))
            finally:
                os._exit(0)
        started = time.perf_counter()
        for _ in range(rounds):
            client.sendall(bytes(40))
            client.recv(100)
        elapsed = time.perf_counter() - started
        os.waitpid(pid, 0)
    return elapsed / rounds


def transfer_s(home: Path, size: int = 50 * MB) -> float:
    """From one process into a warm buffer of another."""
    with tls_pair(home) as (client, server):
        pid = os.fork()
        if pid == 0:
            try:
                data = bytes(1 << 20)
                for _ in range(2):
                    server.recv(1)
                    left = size
                    while left:
                        server.sendall(data[: min(left, len(data))])
                        left -= min(left, len(data))
            finally:
                os._exit(0)
        buffer = memoryview(bytearray(size))
        for _ in range(2):
            client.sendall(b"x")
            started = time.perf_counter()
            got = 0
            while got < size:
                got += client.recv_into(buffer[got:])
            elapsed = time.perf_counter() - started
        os.waitpid(pid, 0)
    return elapsed


# -- the whole -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.split("\n\n")[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=REPEAT)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measures()))
        return
    with tempfile.TemporaryDirectory(prefix="so-") as directory:
        found = _run(Path(directory), options.repeat)
    _print(found)


def _run(directory: Path, repeat: int) -> dict[str, dict[str, list[float]]]:
    for name in ("run", "away", "bare"):
        (directory / name).mkdir()
    embedded = {name: value for name, value in os.environ.items() if name != "SCALEOUT_ADDRESS"}
    environ = {**embedded, "SCALEOUT_HOME": str(directory / "home"), "XDG_RUNTIME_DIR": str(directory / "run")}
    command = [sys.executable, "-m", "scaleout.cli"]
    ready = []
    try:
        started = time.perf_counter()
        said = subprocess.run(
            [*command, "start", "--head", "--num-cpus", "1"], env=environ, check=True, capture_output=True, text=True
        )
        ready.append(time.perf_counter() - started)
        address = said.stdout.splitlines()[0].rsplit(" ", 1)[1]
        started = time.perf_counter()
        subprocess.run([*command, "start", "--address", address, "--num-cpus", "1"], env=environ, check=True)
        ready.append(time.perf_counter() - started)
        near = {**environ, "SCALEOUT_ADDRESS": address}
        far = {**near, "XDG_RUNTIME_DIR": str(directory / "away")}  # it does not find the nodes' sockets
        found: dict[str, dict[str, list[float]]] = {"embedded": {}, "cluster": {}, "near": {}, "bare": {}}
        for _ in range(repeat):
            for name, of in (("embedded", embedded), ("cluster", far), ("near", near)):
                found[name].setdefault("first", []).append(first_s(of))
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.cluster", "--measure"], env=of, check=True, capture_output=True
                )
                for row, seconds in json.loads(done.stdout).items():
                    found[name].setdefault(row, []).append(seconds)
            found["bare"].setdefault("ping", []).append(ping_pong_s(directory / "bare"))
            found["bare"].setdefault("transfer", []).append(transfer_s(directory / "bare"))
        print(f"`scaleout start` returned after {ready[0]:.2f} s (head) and {ready[1]:.2f} s (node), of 1 s at most;")
        connected = statistics.median(found["cluster"]["connect"])
        print(f"a program has its first result {connected * 1e3:.0f} ms after it asked, of 300 at most;")
        print(f"{_idle([*command, 'status', '--json'], environ)}\n")
    finally:
        subprocess.run([*command, "stop"], env=environ, check=False, capture_output=True)
    return found


def _idle(status: list[str], environ: dict[str, str]) -> str:
    """What the nodes cost while nobody uses them."""
    import psutil

    nodes = json.loads(subprocess.run(status, env=environ, check=True, capture_output=True).stdout)
    processes = [psutil.Process(int(node["pid"])) for node in nodes]
    processes += [child for process in processes for child in process.children(recursive=True)]
    time.sleep(1)
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(10)
    used = sum(sum(process.cpu_times()[:2]) - cpu for process, cpu in zip(processes, before, strict=True))
    memory = max(process.memory_full_info().pss for process in processes)
    return (
        f"an idle node takes {used / 10 / len(nodes):.2%} of a core, of 0.5 % at most, "
        f"and {memory / MB:.0f} MB (the larger one, which is the head), of 60 at most"
    )


def _print(found: dict[str, dict[str, list[float]]]) -> None:
    median = statistics.median
    columns = ("measure", "embedded", "two nodes elsewhere", "compared with", "ratio", "at most", "two nodes here")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|")
    for key, text, unit, against, at_most in ROWS:
        scale, name = (1e6, "µs") if unit == "us" else (1e3, "ms")
        embedded, cluster, near = (median(found[which][key]) for which in ("embedded", "cluster", "near"))
        if against == "embedded":
            other, said = embedded, "embedded"
        else:
            other = median(found["bare"]["ping" if "ping" in against else "transfer"])
            said = f"{against}: {other * scale:.3g} {name}"
        bar = "–" if at_most is None else f"{at_most:.2g}"
        print(
            f"| {text} | {embedded * scale:.3g} {name} | {cluster * scale:.3g} {name} | {said} "
            f"| {cluster / other:.2f} | {bar} | {near * scale:.3g} {name} |"
        )


if __name__ == "__main__":
    main()
