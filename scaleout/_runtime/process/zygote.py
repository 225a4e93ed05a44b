"""The zygote: a small single-threaded process that forks workers in about a millisecond each.

It speaks frames over *channels*: one to the process that started it, and one to each worker that became an owner
itself. Over a channel come STATE (how children are to look: environment, directory, path, umask), OUTPUT fds, FORK
with the child's socket, KILL; back go FORKED, EXITED with the wait status, REFUSED. A channel that ends takes its
workers with it, and theirs. When the starter's channel ends, the zygote kills everything and exits.

It never runs user code and never starts a thread, so that a fork is always safe.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import marshal
import os
import select
import signal
import socket
import sys
import time

from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Channel:
    """One owner's line to the zygote, and the workers that live by it."""

    def __init__(self, sock: socket.socket, depth: int, owner: tuple[Channel, int] | None) -> None:
        self.link = Link(sock)
        self.depth = depth
        self.owner = owner  # (channel, worker id) of the worker at the other end; None: the starter
        self.state: dict[str, Any] = {}
        self.outputs: dict[int, int] = {}
        self.children: dict[int, int] = {}  # worker id -> pid


class Child:
    """What a forked process needs to become a worker."""

    def __init__(self, link_fd: int, worker_id: int, depth: int, channel: Channel) -> None:
        self.link_fd = link_fd
        self.worker_id = worker_id
        self.depth = depth
        self.state = channel.state
        self.outputs = dict(channel.outputs)


class Zygote:
    def __init__(self, channel_fd: int, starter_pid: int) -> None:
        self.root = Channel(socket.socket(fileno=channel_fd), 0, None)
        self.starter_pid = starter_pid
        self.channels: dict[int, Channel] = {self.root.link.fileno(): self.root}
        self.by_pid: dict[int, tuple[Channel, int]] = {}
        self.poll = select.poll()
        self.poll.register(self.root.link.fileno(), select.POLLIN)
        self.starter_fd = _open_pidfd(starter_pid)
        if self.starter_fd >= 0:
            self.poll.register(self.starter_fd, select.POLLIN)
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        self.lifeline_read, self.lifeline_write = os.pipe()
        self.poll.register(self.wake_read, select.POLLIN)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.parked_until: float | None = None

    def run(self) -> Child | None:
        """Serve until the starter is gone (returns None) or, in a forked child, until it is one (returns it)."""
        while True:
            timeout_ms = None
            if self.parked_until is not None:
                timeout_ms = max(0, int((self.parked_until - time.monotonic()) * 1000) + 1)
            ready = self.poll.poll(timeout_ms)
            if not ready and self.parked_until is not None and time.monotonic() >= self.parked_until:
                if not self.by_pid:
                    return None
                self.parked_until = None
            for fd, _ in ready:
                if fd == self.wake_read:
                    os.read(self.wake_read, 4096)
                elif fd == self.starter_fd:
                    self._kill_all()
                    return None
                elif fd in self.channels:
                    channel = self.channels[fd]
                    child = self._serve(channel)
                    if child is not None:
                        return child
                    if channel is self.root and not channel.link.is_open:
                        self._kill_all()
                        return None
            self._reap()

    def _serve(self, channel: Channel) -> Child | None:
        try:
            data = channel.link.receive()
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise
            data = b""
        if not data:
            self._drop_channel(channel)
            return None
        self.parked_until = None
        for kind, _, aux, number, body in channel.link.frames(data):
            if kind == frames.FORK:
                child = self._fork(channel, number)
                if child is not None:
                    return child
            elif kind == frames.KILL:
                pid = channel.children.get(number)
                if pid is not None:
                    _kill(pid, aux)
            elif kind == frames.STATE:
                channel.state = marshal.loads(body)
                _preload(channel.state)
            elif kind == frames.OUTPUT:
                fd = channel.link.fds.popleft()
                if number in channel.outputs:
                    os.close(channel.outputs[number])
                channel.outputs[number] = fd
            elif kind == frames.ADOPT:
                sock = socket.socket(fileno=channel.link.fds.popleft())
                adopted = Channel(sock, channel.depth + 1, (channel, number))
                adopted.outputs = {n: os.dup(fd) for n, fd in channel.outputs.items()}
                self.channels[sock.fileno()] = adopted
                self.poll.register(sock.fileno(), select.POLLIN)
            elif kind == frames.PARK:
                self.parked_until = time.monotonic() + aux / 1000
        return None

    def _fork(self, channel: Channel, worker_id: int) -> Child | None:
        link_fd = channel.link.fds.popleft()
        refusal = self._refusal(channel)
        if refusal:
            os.close(link_fd)
            _send(channel, frame(frames.REFUSED, refusal, number=worker_id))
            return None
        try:
            pid = os.fork()
        except OSError as error:
            os.close(link_fd)
            _send(channel, frame(frames.REFUSED, f"fork: {error.strerror}".encode(), number=worker_id))
            return None
        if pid == 0:
            return Child(link_fd, worker_id, channel.depth, channel)
        os.close(link_fd)
        channel.children[worker_id] = pid
        self.by_pid[pid] = (channel, worker_id)
        _send(channel, frame(frames.FORKED, aux=pid, number=worker_id))
        return None

    def _refusal(self, channel: Channel) -> bytes:
        if channel.depth > channel.state.get("max_depth", 1 << 30):
            return b"depth"
        if len(self.by_pid) >= channel.state.get("max_processes", 1 << 30):
            return b"processes"
        return b""

    def _reap(self) -> None:
        while self.by_pid:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            found = self.by_pid.pop(pid, None)
            if found is None:
                continue
            channel, worker_id = found
            channel.children.pop(worker_id, None)
            self._end_owned(channel, worker_id)
            _send(channel, frame(frames.EXITED, aux=status & 0xFFFFFFFF, number=worker_id))

    def _end_owned(self, channel: Channel, worker_id: int) -> None:
        """The worker is dead: so is what it owned."""
        for other in list(self.channels.values()):
            if other.owner == (channel, worker_id):
                self._drop_channel(other)

    def _drop_channel(self, channel: Channel) -> None:
        fd = channel.link.fileno()
        if fd >= 0:
            self.channels.pop(fd, None)
            self.poll.unregister(fd)
        channel.link.close()
        for output in channel.outputs.values():
            os.close(output)
        channel.outputs = {}
        for pid in channel.children.values():
            _kill(pid, signal.SIGKILL)

    def _kill_all(self) -> None:
        for pid in self.by_pid:
            _kill(pid, signal.SIGKILL)

    def close_in_child(self) -> tuple[int, int]:
        """What a child keeps of the zygote: nothing but the lifeline. Returns it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self.lifeline_read, os.getppid()


def become_worker(zygote: Zygote, child: Child, zygote_pid: int) -> int:
    """In the child: take on the driver's looks, close everything else; returns the fd of the link to the owner."""
    lifeline, _ = zygote.close_in_child()
    for number, fd in child.outputs.items():
        os.dup2(fd, number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    # The two fds that stay move to the lowest places, so that one call closes all the others.
    link_fd = fcntl.fcntl(child.link_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    lifeline = _reopen(lifeline)
    _keep_only(sorted((link_fd, lifeline)))
    _die_with_the_zygote(lifeline, zygote_pid)
    state = child.state
    if state.get("environ") is not None:
        _set_environ(state["environ"])
    try:
        os.chdir(state["cwd"])
    except (OSError, KeyError):
        pass  # the driver's directory may be gone; a relative path then fails where it is used
    if "umask" in state:
        os.umask(state["umask"])
    if "numpy" in sys.modules:  # preloaded: its global generator must not be the same in every worker
        sys.modules["numpy"].random.seed()
    sys.path[:] = state.get("path", sys.path)
    sys.argv[:] = state.get("argv", sys.argv)
    return link_fd


def _preload(state: dict[str, Any]) -> None:
    """Import what the user asked for, so that every worker has it from its first instruction on."""
    names = [name for name in state.get("preload", ()) if name != "__main__" and name not in sys.modules]
    if not names:
        return
    import importlib

    sys.path[:] = state.get("path", sys.path)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            sys.excepthook(*sys.exc_info())  # as the standard library's forkserver: no reason to have no workers
    gc.collect()
    gc.freeze()


def _keep_only(kept: list[int]) -> None:
    low = 3
    for fd in kept:
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _reopen(lifeline: int) -> int:
    """The lifeline anew: who is signalled belongs to the open file, which a forked fd shares with all other workers."""
    try:
        return os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no /proc: then only the closed link ends this worker
        return fcntl.fcntl(lifeline, fcntl.F_DUPFD_CLOEXEC, 3)


def _die_with_the_zygote(lifeline: int, zygote_pid: int) -> None:
    """SIGKILL for this process as soon as the zygote, the only writer of the pipe, is gone.

    PR_SET_PDEATHSIG would do the same but needs ctypes, whose import costs more than the fork.
    """
    if not hasattr(fcntl, "F_SETSIG"):  # pragma: no cover - not Linux: the closed link ends the worker
        return
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() != zygote_pid:
        os._exit(1)


def _set_environ(environ: dict[bytes, bytes]) -> None:
    current = os.environb
    for key in [key for key in current if key not in environ]:
        del current[key]
    for key, value in environ.items():
        if current.get(key) != value:
            current[key] = value
    if b"TZ" in environ:
        time.tzset()


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _send(channel: Channel, data: bytes) -> None:
    if channel.link.is_open:
        try:
            channel.link.send_now(data)
        except OSError:
            pass  # the other end is gone; its end of stream is on the way


def main(channel_fd: int, starter_pid: int, work: Callable[[int, int, int], None]) -> None:
    """The zygote's whole life. `work(link_fd, worker_id, depth)` is what a forked child runs; it does not return."""
    import atexit

    atexit._clear()
    os.closerange(channel_fd + 1, os.sysconf("SC_OPEN_MAX"))  # what the driver made inheritable is not ours
    gc.collect()
    gc.freeze()
    gc.disable()
    zygote = Zygote(channel_fd, starter_pid)
    zygote_pid = os.getpid()
    child = zygote.run()
    if child is None:
        os._exit(0)
    worker_id, depth = child.worker_id, child.depth
    link_fd = become_worker(zygote, child, zygote_pid)
    for channel in zygote.channels.values():
        channel.link.sock.detach()
    del zygote, child
    gc.enable()
    work(link_fd, worker_id, depth)
    os._exit(0)
