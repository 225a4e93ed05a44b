"""What goes wrong in these tests, and helpers to watch it: importable in workers, as it stands on the driver's path.

A `Fault` strikes at most `times` times, counted in files, so that a retry in another process knows of the attempts
before it. What ran is in an append-only file.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 30.0
"""For waits on what comes in milliseconds on a machine that is not loaded."""

EXIT_CODE = 7


class Fault:
    """Does `kind` to the process that calls `strike`, as long as it has not done so `times` times (None: for ever)."""

    def __init__(self, kind: str, directory: Path, times: int | None = None) -> None:
        self.kind = kind
        self.directory = str(directory)
        self.times = times

    def strike(self) -> None:
        if self.times is not None and not self._takes_a_turn():
            return
        if self.kind == "raise":
            raise ValueError("the fault struck")
        if self.kind == "exit":
            sys.exit(EXIT_CODE)
        if self.kind == "_exit":
            os._exit(EXIT_CODE)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "stop":
            with open(f"{self.directory}/stopped", "ab", buffering=0) as fifo:
                fifo.write(b"%d\n" % os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)
        raise AssertionError(f"still here after {self.kind}")

    def _takes_a_turn(self) -> bool:
        assert self.times is not None
        for number in range(self.times):
            try:
                os.close(os.open(f"{self.directory}/strike-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False


class Item:
    """An argument; the poisoned one strikes in its phase."""

    def __init__(self, index: int, phase: str = "", fault: Fault | None = None) -> None:
        self.index = index
        self.phase = phase
        self.fault = fault

    def __reduce__(self) -> Any:
        return rebuild_item, (self.index, self.phase, self.fault)


def rebuild_item(index: int, phase: str, fault: Fault | None) -> Item:
    if phase == "argument" and fault is not None:
        fault.strike()
    return Item(index, phase, fault)


class Work:
    """The callable: notes that it ran in `log`, returns the item's index. With a fault, unpickling it strikes."""

    def __init__(self, log: Path, fault: Fault | None = None) -> None:
        self.log = str(log)
        self.fault = fault

    def __reduce__(self) -> Any:
        return rebuild_work, (self.log, self.fault)

    def __call__(self, item: Item) -> Any:
        note(self.log, item.index)
        fault = item.fault
        if fault is not None:
            if item.phase == "run":
                fault.strike()
            if item.phase == "pickle":
                return StrikesWhenPickled(item.index, fault)
            if item.phase == "unpickle":
                return StrikesWhenUnpickled(fault)
        return item.index


def rebuild_work(log: str, fault: Fault | None) -> Work:
    if fault is not None:
        fault.strike()
    return Work(Path(log))


class StrikesWhenPickled:
    def __init__(self, index: int, fault: Fault) -> None:
        self.index = index
        self.fault = fault

    def __reduce__(self) -> Any:
        self.fault.strike()
        return int, (self.index,)


class StrikesWhenUnpickled:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __reduce__(self) -> Any:
        return strike, (self.fault,)


def strike(fault: Fault) -> None:
    fault.strike()


def note(log: str | Path, what: object) -> None:
    """One line, whole, whoever else writes."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{what}\n".encode())
    finally:
        os.close(fd)


def notes(log: str | Path) -> list[str]:
    try:
        return Path(log).read_text().split()
    except FileNotFoundError:
        return []


@contextmanager
def killer_of_stopped(directory: Path) -> Iterator[None]:
    """Kills every process that strikes with "stop", once it has indeed stopped."""
    path = directory / "stopped"
    os.mkfifo(path)
    fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # read-write: it never ends for want of a writer
    end_read, end_write = os.pipe()

    def watch() -> None:
        pending = b""
        while end_read not in select.select([fifo, end_read], [], [])[0]:
            pending += os.read(fifo, 4096)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                wait_until(lambda pid=int(line): state_of(pid) in ("T", ""))
                kill(int(line))

    thread = threading.Thread(target=watch, name="killer-of-stopped")
    thread.start()
    try:
        yield
    finally:
        os.write(end_write, b"x")
        thread.join()
        for fd in (fifo, end_read, end_write):
            os.close(fd)


def state_of(pid: int) -> str:
    """As in /proc: R, S, T, Z; "" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z", "X")


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def wait_until(condition: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """Looks again and again; AssertionError after the deadline."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < give_up_at, f"did not happen within {deadline_s} s: {what or condition}"
        time.sleep(0.002)
