"""Drivers as processes of their own, to be killed, interrupted and watched from outside."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import DEADLINE_S, is_gone, kill, wait_until

MARK_NAME = "SCALEOUT_INTERNAL_PROGRAM"


class Program:
    """A running script, given as text or as its path, alone in its session. What it and its workers print is kept."""

    def __init__(self, script: str | Path, directory: Path, *arguments: str, **environ: str) -> None:
        self.directory = directory
        self.mark = f"{MARK_NAME}={uuid.uuid4().hex}"
        self.temporary = directory / "tmp"
        self.temporary.mkdir(exist_ok=True)
        name, value = self.mark.split("=")
        if isinstance(script, Path):
            path = script
        else:
            path = directory / "program.py"
            path.write_text(textwrap.dedent(script))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "always::ResourceWarning", str(path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            start_new_session=True,
            env={
                **os.environ,
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": os.path.dirname(__file__),
                "PYTHONUNBUFFERED": "",
                name: value,
                **environ,
            },
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output = {self.process.stdout.fileno(): b"", self.process.stderr.fileno(): b""}
        self._open = list(self.output)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.output[self.process.stdout.fileno()].decode()  # type: ignore[union-attr]

    @property
    def stderr(self) -> str:
        return self.output[self.process.stderr.fileno()].decode()  # type: ignore[union-attr]

    def _read(self, timeout_s: float) -> None:
        ready, _, _ = select.select(self._open, [], [], timeout_s)
        for fd in ready:
            data = os.read(fd, 65536)
            self.output[fd] += data
            if not data:
                self._open.remove(fd)

    def wait_for(self, text: str, count: int = 1) -> None:
        """Until the script has printed `text` so often."""
        give_up_at = time.monotonic() + DEADLINE_S
        while self.stdout.count(text) < count:
            assert self._open, f"ended without {text!r}: {self.stdout}\n{self.stderr}"
            assert time.monotonic() < give_up_at, f"no {text!r} within {DEADLINE_S} s: {self.stdout}\n{self.stderr}"
            self._read(0.1)

    def finish(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end of the script and of all that holds its output; returns its exit code."""
        give_up_at = time.monotonic() + deadline_s
        while self._open:
            assert time.monotonic() < give_up_at, f"still running after {deadline_s} s: {self.stdout}\n{self.stderr}"
            self._read(0.1)
        return self.process.wait(DEADLINE_S)

    def interrupt(self, whole_group: bool) -> None:
        if whole_group:
            os.killpg(self.pid, signal.SIGINT)
        else:
            os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def processes(self) -> list[int]:
        """Those that descend from the script and are alive, itself included."""
        mark = self.mark.encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/environ", "rb") as file:
                        is_ours = mark in file.read()
                except OSError:
                    continue
                if is_ours and not is_gone(int(name)):
                    found.append(int(name))
        return sorted(found)

    def wait_until_alone(self, *but: int) -> None:
        """Until no process of the script is left, but for these."""
        wait_until(lambda: set(self.processes()) <= set(but), f"processes of {self.pid} are gone")

    def check_nothing_left(self) -> None:
        self.wait_until_alone()
        assert list(self.temporary.iterdir()) == []


@contextmanager
def running(script: str | Path, directory: Path, *arguments: str, **environ: str) -> Iterator[Program]:
    program = Program(script, directory, *arguments, **environ)
    try:
        yield program
    finally:
        kill(program.pid)
        for pid in program.processes():
            kill(pid)
        program.process.wait(DEADLINE_S)
        assert program.process.stdout is not None
        assert program.process.stderr is not None
        program.process.stdout.close()
        program.process.stderr.close()


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
