"""The owner's line to the zygote that hosts its workers: starting it, asking for forks and kills.

In a driver the zygote is started here; in a worker that became an owner the line is a further channel to the zygote
that already runs, so both speak the same few frames and nothing else differs.

Used by one thread at a time: the session's until an owner has it and when it is parked, in between the reactor thread.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import socket
import sys
from functools import partial

from scaleout._runtime.base import context, limits
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANNEL_FD = 3

preloaded_modules: list[str] = []
"""What the zygote imports before it forks: `set_forkserver_preload`."""


class Host:
    """A channel to a zygote."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._pids: list[int] = []  # the zygote's, if it is ours

    @property
    def pid(self) -> int:
        """The zygote's; 0 if it is not ours."""
        return self._pids[0] if self._pids else 0

    @classmethod
    def start(cls, is_apart: bool = False) -> Host:
        """A zygote of our own, or in a worker a channel to the one it was forked from. `is_apart`: in a session of its
        own, as the system knows them."""
        if context.current is not None:
            sock = context.current.open_channel()
            sock.setblocking(False)
            return cls(Link(sock))
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            host = cls(Link(ours))
            try:
                _spawn_zygote(theirs.fileno(), host._pids, is_apart)
            except BaseException:
                host.close()
                raise
        return host

    def describe(self, state: dict[str, Any]) -> None:
        """The workers that are asked for from now on look like this."""
        self.link.queue(frame(frames.STATE, marshal.dumps(state)))

    def connect_outputs(self, stdout: int | None = None, stderr: int | None = None) -> None:
        """They write to these fds; by default, to what this process writes to."""
        for number, given in ((1, stdout), (2, stderr)):
            fd = _output_fd(number) if given is None else given
            if fd >= 0:
                self.link.queue(frame(frames.OUTPUT, number=number), fd)

    def give_output(self, number: int, fd: int) -> None:
        """The next workers write to this fd, which is theirs from now on. Cannot fail."""
        self.link.queue_and_give(frame(frames.OUTPUT, number=number), fd)

    def fork(self, worker_id: int, sock: socket.socket) -> None:
        """Ask for a worker; `sock` is its end of a socket pair. Cannot fail."""
        self.link.queue_and_give(frame(frames.FORK, number=worker_id), sock.detach())

    def kill(self, worker_id: int, signum: int) -> None:
        self.link.queue(frame(frames.KILL, aux=signum, number=worker_id))

    def adopt(self, worker_id: int, fd: int) -> None:
        """A worker of ours becomes an owner: the zygote gets its channel. Takes the fd."""
        self.link.queue(frame(frames.ADOPT, number=worker_id), fd)
        os.close(fd)

    def park(self, idle_s: float) -> None:
        """No work for now: the zygote leaves by itself after `idle_s`."""
        self.link.queue(frame(frames.PARK, aux=int(idle_s * 1000)))
        self.link.flush()

    def is_alive(self) -> bool:
        """Whether the zygote still listens: looks for the end of its stream without blocking."""
        try:
            return bool(self.link.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Ends the zygote and all its workers, or in a worker all that this owner started."""
        self.link.close()
        while self._pids:
            _reap(self._pids[-1], 0)
            self._pids.pop()
        for pid in list(_left_behind):
            if _reap(pid, os.WNOHANG):
                _left_behind.remove(pid)

    def end(self) -> None:
        """`close` that does not wait for what the zygote is busy with: a module of the user's that it imports."""
        for pid in self._pids:
            try:
                os.kill(pid, signal.SIGKILL)  # and with it go its workers
            except ProcessLookupError:
                pass
        self.close()

    def __del__(self) -> None:
        """A signal handler raised before anybody had it. The zygote ends with the link; it is reaped later."""
        _left_behind.extend(self._pids)


_left_behind: list[int] = []


def _reap(pid: int, flags: int) -> bool:
    """Whether it has been."""
    try:
        return os.waitpid(pid, flags)[0] == pid
    except ChildProcessError:
        return True  # by somebody else's waitpid(-1), or it is another process's child


def present_state(max_processes: int) -> dict[str, Any]:
    """How this process looks now, for workers that are to look the same."""
    umask = os.umask(0)
    os.umask(umask)
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = os.sep
    return {
        "environ": dict(os.environb),
        "cwd": cwd,
        "umask": umask,
        "path": [entry for entry in sys.path if isinstance(entry, str)],
        "argv": [str(argument) for argument in sys.argv],
        "max_processes": max_processes,
        "preload": list(preloaded_modules),
        "max_depth": limits.NESTING_DEPTH - 1,
    }


def _output_fd(number: int) -> int:
    try:
        os.fstat(number)
    except OSError:
        return -1
    return number


def _spawn_zygote(channel_fd: int, pids: list[int], is_apart: bool) -> None:
    """Start the zygote with `channel_fd` as its fd 3; its pid goes into the list, in a single call that C runs: between
    its start and that a signal handler could raise otherwise, and nobody would ever wait for it.

    Not `-m`: that would put the working directory first on the path. SIGINT is blocked from the first instruction on.
    """
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]

    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = (
        f"import sys; sys.path[:] = {path!r}\n"
        "from scaleout._runtime.process.boot import main\n"
        f"main({CHANNEL_FD}, {os.getpid()})"
    )
    arguments = [sys.executable, *_args_from_interpreter_flags(), "-c", code]
    actions: list[Any] = []
    null = os.open(os.devnull, os.O_RDWR)
    source = fcntl.fcntl(channel_fd, fcntl.F_DUPFD_CLOEXEC, 10)  # clear of the places that are written below
    try:
        actions.append((os.POSIX_SPAWN_DUP2, null, 0))
        for number in (1, 2):
            if _output_fd(number) < 0:
                actions.append((os.POSIX_SPAWN_DUP2, null, number))
        actions.append((os.POSIX_SPAWN_DUP2, source, CHANNEL_FD))
        spawn = partial(
            os.posix_spawn,
            file_actions=actions,
            setsid=is_apart,
            setsigmask=[signal.SIGINT],
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE],
        )
        pids.extend(map(spawn, (sys.executable,), (arguments,), (os.environ,)))
    finally:
        os.close(null)
        os.close(source)
