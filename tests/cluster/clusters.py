"""Clusters of daemons on this machine's loopback, and programs that use them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

DEADLINE_S = 60.0

OURS = ("SCALEOUT_HOME", "XDG_RUNTIME_DIR", "SCALEOUT_ADDRESS", "SCALEOUT_TOKEN", "SCALEOUT_CLUSTER")


class Cluster:
    """A head, and nodes as they are wanted, with directories of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        runtime = directory / "run"
        runtime.mkdir()
        (directory / "away").mkdir()
        environ = {name: value for name, value in os.environ.items() if name not in OURS}
        self._programs: list[subprocess.Popen[str]] = []
        self.prefix: list[str] = []  # of all commands: what runs them on another machine
        self.programs_are_near = False  # as if they were on other machines: they do not find the nodes' sockets
        self.environ = {**environ, "SCALEOUT_HOME": str(directory / "home"), "XDG_RUNTIME_DIR": str(runtime)}

    # -- the command line ------------------------------------------------------------------------

    def scaleout(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """What a command says and how it ends, whatever that is."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-m", "scaleout.cli", *arguments],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def must(self, *arguments: str, **environ: str) -> str:
        done = self.scaleout(*arguments, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start_head(self, *arguments: str, cpus: int = 2) -> str:
        """The head's address."""
        return _address_in(self.must("start", "--head", "--num-cpus", str(cpus), *arguments))

    def start_node(self, *arguments: str, cpus: int = 2) -> str:
        return _address_in(self.must("start", "--address", self.address, "--num-cpus", str(cpus), *arguments))

    @property
    def address(self) -> str:
        return str(json.loads((self.directory / "home/default/head.json").read_text())["address"])

    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.must("status", "--json"))
        return found

    def pid_of(self, address: str) -> int:
        return next(int(node["pid"]) for node in self.nodes() if f"{node['host']}:{node['port']}" == address)

    def log(self) -> str:
        return self.must("logs")

    def stop(self) -> None:
        """Also of programs that a failed test has left: what they have said is shown."""
        try:
            for program in self._programs:
                if program.stdout is not None and not program.stdout.closed:
                    program.kill()
                    print(*program.communicate(), sep="\n")
        finally:
            self.scaleout("stop")

    # -- programs --------------------------------------------------------------------------------

    def start(self, script: str, stdin: bool = False, **environ: str) -> subprocess.Popen[str]:
        path = self.directory / f"program{time.monotonic_ns()}.py"
        path.write_text(textwrap.dedent(script))
        program = subprocess.Popen(
            [*self.prefix, sys.executable, str(path)],
            env={**self.environ, **self._runtime_of_programs, "SCALEOUT_ADDRESS": self.address, **environ},
            cwd=self.directory,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._programs.append(program)
        return program

    @property
    def _runtime_of_programs(self) -> dict[str, str]:
        return {} if self.programs_are_near else {"XDG_RUNTIME_DIR": str(self.directory / "away")}

    def run(self, script: str, **environ: str) -> str:
        """What a program prints; it must end well, and say nothing on stderr."""
        return finish(self.start(script, **environ))


def counted(cluster: Cluster) -> Counter[str]:
    """How often which line is in the file `count` that a program's tasks write."""
    return Counter((cluster.directory / "count").read_text().splitlines())


def finish(program: subprocess.Popen[str]) -> str:
    try:
        output, errors = program.communicate(timeout=DEADLINE_S)
    except BaseException:
        program.kill()
        program.communicate()
        raise
    assert program.returncode == 0, errors
    assert errors == "", errors
    return output


def _address_in(text: str) -> str:
    return text.splitlines()[0].rsplit(" ", 1)[1]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def read_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def go_on(program: subprocess.Popen[str]) -> None:
    """It waits for a line."""
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
