"""The Unix socket of a node: by it a program of the same user on the same machine gets a channel to a zygote there.

Both ends are here. Who may come is decided by the directory that the socket is in (ours alone) and by the kernel, which
says whose process is at the other end. What runs there, the node decides: the zygote is its child, and ends with it.
"""

from __future__ import annotations

import array
import contextlib
import marshal
import os
import socket
import struct
import sys
import threading
import time

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import places
from scaleout._runtime.cluster.admission import receive_frame
from scaleout._runtime.node.host import Host
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER_BYTES, frame
from scaleout._runtime.wire.link import FD_SPACE, NO_FLAGS, Link
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from scaleout._runtime.base.settings import Settings

CREDENTIALS = struct.Struct("3i")
"""Of SO_PEERCRED: pid, uid, gid."""

SESSION_BYTES = 64


def name_of(node_id: str) -> str:
    """Of the socket, in the cluster's local directory."""
    return f"node-{node_id}.sock"


def listen(local: Path, node_id: str) -> socket.socket | None:
    """The node's socket; None where there can be none: then programs of this machine come as others do."""
    if not hasattr(socket, "SO_PEERCRED"):  # pragma: no cover - macOS
        return None
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _short(local) as folder:
            sock.bind(f"{folder}/{name_of(node_id)}")
        sock.listen()
    except OSError:
        sock.close()
        return None
    return sock


def serve(listener: socket.socket, lodge: Callable[[socket.socket, str], object]) -> None:
    """Until the listening socket is closed: `lodge(connection, session)`, in any thread, for each that is ours."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            if listener.fileno() < 0:
                return
            time.sleep(0.1)  # no descriptors: some may be closed by then
            continue
        try:
            threading.Thread(target=_admit, args=(sock, lodge), name="scaleout-near", daemon=True).start()
        except RuntimeError:  # no more threads
            sock.close()


def _admit(sock: socket.socket, lodge: Callable[[socket.socket, str], object]) -> None:
    try:
        _, body = receive_frame(sock, SESSION_BYTES, time.monotonic() + limits.DIAL_SECONDS)
        if _is_ours(sock):
            lodge(sock, body.decode())
            return
    except (ClusterError, OSError, ValueError):
        pass  # it finds out that there is nothing for it here
    sock.close()


def give(sock: socket.socket, host: Host, settings: Settings) -> None:
    """The channel to this zygote goes to the program, and with it what the node has to say of workers. OSError: it is
    not there any more."""
    with sock:
        info = {
            "path": [entry for entry in sys.path if isinstance(entry, str)],
            "max_processes": settings.max_processes,
            "spill_dir": settings.spill_dir,
        }
        socket.send_fds(sock, [frame(frames.ATTACH, marshal.dumps(info))], [host.link.fileno()])
    host.link.close()  # the program's end is the only one from now on: with it goes the zygote


def ask(cluster: str, node_id: str, session: str) -> tuple[Host, dict[str, Any]] | None:
    """(a channel to a zygote of that node, what the node has to say of workers) for the driver that the node knows by
    this session; None if the node is on another machine, or another user's, or cannot. Blocks."""
    folder = places.local_path(cluster)
    if not hasattr(socket, "SO_PEERCRED"):  # pragma: no cover - macOS
        return None
    fds = array.array("i")
    try:
        if not (folder / name_of(node_id)).exists():
            return None
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(limits.DIAL_SECONDS)
            with _short(folder) as short:
                sock.connect(f"{short}/{name_of(node_id)}")
            if not _is_ours(sock):
                return None
            sock.sendall(frame(frames.ATTACH, session.encode()))
            data, ancillary, _, _ = sock.recvmsg(limits.FRAME_BYTES, FD_SPACE, NO_FLAGS)
            for _, _, raw in ancillary:
                fds.frombytes(raw)
        info: dict[str, Any] = marshal.loads(data[HEADER_BYTES:])
        channel = socket.socket(fileno=fds.pop())
    except (OSError, EOFError, ValueError, TypeError, IndexError):
        return None
    finally:
        for fd in fds:
            os.close(fd)
    channel.setblocking(False)
    return Host(Link(channel)), info


def _is_ours(sock: socket.socket) -> bool:
    """Whether the other end is a process of this user that this process can see."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return uid == os.getuid() and pid > 0


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A name of the directory that leaves room for the socket's: the path of one has 107 bytes."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}" if os.path.exists(f"/proc/self/fd/{fd}") else str(folder)
    finally:
        os.close(fd)
