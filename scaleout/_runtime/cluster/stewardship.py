"""The head keeps the door of the steward of detached actors (`scaleout.detached`), and starts it when somebody knocks.

So a cluster without detached actors has no such process, and one that has died is there again for the next caller. The
steward has the listening socket from its start on; it goes on when the head's process dies, and the next head leaves
the door to it. An earlier one that had actors is started again at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from scaleout._runtime.base import limits
from scaleout._runtime.node.reactor import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scaleout._runtime.node.reactor import Reactor


STEWARD = "scaleout.detached.steward"


class Stewardship:
    """`port` is where the door was when the head was here last, or 0. `report(line)` writes to the log."""

    def __init__(self, local: Path, cluster: str, host: str, port: int, report: Callable[[str], None]) -> None:
        self._local = local
        self._cluster = cluster
        self._host = host
        self._address = ""
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._reactor: Reactor | None = None
        self._listener: socket.socket | None = None
        self.port = port
        self._started_at = 0.0
        self._failures = 0  # in a row
        self._is_over = False
        if not port or not _is_running(local):
            try:
                self._listen()
            except OSError:  # another has the port by now
                self.port = 0
                self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((self._host, self.port))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    def start(self, reactor: Reactor, address: str) -> None:
        """Any thread. Programs of the cluster have this address for it."""
        self._reactor = reactor
        self._address = address
        if self._listener is None:
            reactor.post(self._look_again)
        else:
            reactor.post(self._start_steward if _has_actors(self._local) else self._watch)

    # -- on the reactor thread -------------------------------------------------------------------

    def _watch(self) -> None:
        if self._is_over:
            return
        assert self._listener is not None and self._reactor is not None
        self._reactor.watch(self._listener.fileno(), self._knocked)

    def _knocked(self, events: int) -> None:
        assert self._listener is not None and self._reactor is not None
        self._reactor.forget(self._listener.fileno())
        if events & READABLE:
            self._start_steward()

    def _start_steward(self) -> None:
        assert self._listener is not None
        log = self._local / "node-steward.log"
        options = {"local": str(self._local), "listener": self._listener.fileno()}
        environ = {**os.environ, "SCALEOUT_ADDRESS": self._address, "SCALEOUT_CLUSTER": self._cluster}
        try:
            with open(log, "ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", STEWARD, json.dumps(options)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environ,
                    pass_fds=[self._listener.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._report(f"the steward cannot be started: {error}")
        self._started_at = time.monotonic()
        self._look_later()

    def _look_later(self) -> None:
        assert self._reactor is not None
        self._reactor.call_later(limits.STEWARD_LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        try:
            if not self._is_over:
                self._look()
        except OSError as error:  # no descriptors, or the port is somebody else's for now
            self._report(f"the steward's door cannot be kept: {error}")
            self._look_later()

    def _look(self) -> None:
        """Keep the door again if there is nobody behind it any more."""
        process = self._process
        if (process is not None and process.poll() is None) or (process is None and _is_running(self._local)):
            self._look_later()
            return
        if self._listener is None:
            self._listen()
        self._process = None
        if process is None or process.returncode == 0:
            self._failures = 0
            self._watch()
            return
        self._report(f"the steward has ended with status {process.returncode}: see its log")
        if time.monotonic() - self._started_at > limits.STEWARD_TRIAL_SECONDS:
            self._failures = 0
            self._start_steward()
            return
        self._turn_away()
        self._failures += 1
        assert self._reactor is not None
        self._reactor.call_later(min(2.0 ** (self._failures - 1), limits.STEWARD_PAUSE_SECONDS), self._watch)

    def _turn_away(self) -> None:
        """Those who have knocked."""
        assert self._listener is not None
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            pass

    # -- the end ---------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._is_over = True
        if self._listener is not None and self._reactor is not None:
            self._reactor.forget(self._listener.fileno())
            self._listener.close()

    def close(self) -> None:
        """Another thread than the reactor's, which still runs: no door, and no steward."""
        if self._reactor is not None:
            self._reactor.post(self._leave)
        process = self._process
        if process is not None:
            process.terminate()  # it may not have come so far that it is known by its lock
        stop(self._local)
        if process is not None:
            try:
                process.wait(limits.STEWARD_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def stop(local: Path) -> None:
    """End the steward of this directory, if there is one, and its actors."""
    for signum, seconds in ((signal.SIGTERM, limits.STEWARD_END_SECONDS), (signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + seconds
        is_told = False
        while _is_running(local):
            if not is_told:
                is_told = _tell(local, signum)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)


def _tell(local: Path, signum: int) -> bool:
    """Whether it could be told: its number is known, and is not that of an earlier one."""
    import psutil

    try:
        process = psutil.Process(int((local / "steward.lock").read_text()))
        if STEWARD not in process.cmdline():
            return False
        process.send_signal(signum)
    except (OSError, ValueError, psutil.Error):
        return False
    return True


def _is_running(local: Path) -> bool:
    """Whether there is a steward, of this head's process or of an earlier one: it holds a lock."""
    with open(local / "steward.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _has_actors(local: Path) -> bool:
    """Whether an earlier steward has left some behind."""
    path = local / "actors.sqlite"
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path)) as database:
            return bool(database.execute("SELECT count(*) FROM actors").fetchone()[0])
    except sqlite3.Error:
        return False
