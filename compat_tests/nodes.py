"""A cluster on this machine's loopback, whose nodes lend the suites their workers.

The tests are the same and know nothing of it: the programs that they are find `SCALEOUT_ADDRESS` in their environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compat_tests import evidence

CPUS = 2
START_LIMIT_S = 60.0
PROBE = """
import os, time
from scaleout.multiprocessing import Pool
zygotes = set()
deadline = time.monotonic() + 30
with Pool({workers}) as pool:
    while len(zygotes) < {count} and time.monotonic() < deadline:  # some are up before others
        zygotes.update(pool.map(lambda _: os.getppid(), range(100), chunksize=1))
print(len(zygotes - {{os.getpid()}}))
"""


class NodesError(Exception):
    """The cluster did not come up."""


@contextmanager
def running(count: int) -> Iterator[dict[str, str]]:
    """What is in the environment of programs that are to use `count` nodes, while those run."""
    with tempfile.TemporaryDirectory(prefix="compat-nodes-", ignore_cleanup_errors=True) as folder:
        settings = {"SCALEOUT_HOME": folder, "XDG_RUNTIME_DIR": folder}
        environ = {**os.environ, **settings}
        environ.pop("SCALEOUT_ADDRESS", None)
        try:
            _scaleout(environ, "start", "--head", "--num-cpus", str(CPUS))
            address = str(json.loads((Path(folder) / "default" / "head.json").read_text(encoding="utf-8"))["address"])
            for _ in range(count - 1):
                _scaleout(environ, "start", "--address", address, "--num-cpus", str(CPUS))
            settings["SCALEOUT_ADDRESS"] = address
            away = Path(folder) / "away"
            away.mkdir()
            settings["XDG_RUNTIME_DIR"] = str(away)  # as if on another machine: they do not find the nodes' sockets
            settings[evidence.NODES_VARIABLE] = str(count)
            _check_use({**environ, **settings}, count)
            yield settings
        finally:
            _scaleout(environ, "stop")


def _check_use(environ: dict[str, str], count: int) -> None:
    """Whether a program's workers are indeed those of all the nodes."""
    probe = PROBE.format(workers=count * CPUS, count=count)
    done = subprocess.run(
        [sys.executable, "-c", probe], env=environ, capture_output=True, text=True, timeout=START_LIMIT_S
    )
    if done.stdout.strip() != str(count):
        raise NodesError(f"a pool on {count} nodes has workers of {done.stdout.strip() or '?'}\n{done.stderr}")


def _scaleout(environ: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scaleout.cli", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
    )
    if done.returncode:
        raise NodesError(f"scaleout {' '.join(arguments)}: {done.stderr}")
    return done.stdout
