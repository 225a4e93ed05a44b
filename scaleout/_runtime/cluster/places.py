"""Where a cluster keeps its files on this machine.

Secrets (keys, the join token, the head's address) are in `$SCALEOUT_HOME/<cluster>/`, which several machines may share.
What belongs to processes of this machine (pid files, logs, the head's database) is in a local directory, which
they must not: `$XDG_RUNTIME_DIR/scaleout/` or `/tmp/scaleout-<uid>/`. Both are ours alone (0700).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from pathlib import Path

from scaleout._runtime.base import limits
from scaleout.errors import ClusterError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
"""Of a cluster: a part of the names of directories."""


WORK = "work-"
"""Begins the name of a tenant's directory beside the modules; the pid of its node's daemon follows."""


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ClusterError(
            f"{name!r} cannot be a cluster's name: accepted are up to 40 letters, digits, '_', '.' and '-', "
            "the first of them a letter or a digit"
        )
    return name


def top() -> Path:
    """Where the homes of all clusters are."""
    return Path(os.environ.get("SCALEOUT_HOME") or os.path.join(os.path.expanduser("~"), ".scaleout")).absolute()


def home(cluster: str) -> Path:
    """The directory of the cluster's secrets; made if it is not there."""
    return _private(top() / check_name(cluster))


def local_path(cluster: str) -> Path:
    """The directory of this machine's processes of the cluster."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    here = Path(runtime, "scaleout") if runtime and os.path.isdir(runtime) else Path(f"/tmp/scaleout-{os.getuid()}")
    return here / check_name(cluster)


def local(cluster: str) -> Path:
    """The same, made if it is not there."""
    path = local_path(cluster)
    _private(path.parent)
    return _private(path)


def sources(cluster: str) -> Path:
    """The directory of modules that drivers have sent, by hash; made if it is not there. Old ones go."""
    folder = _private(local(cluster) / "sources")
    for file in folder.iterdir():
        try:
            if file.name.startswith(WORK):
                if os.path.exists("/proc/self") and not os.path.exists(
                    f"/proc/{file.name.removeprefix(WORK).partition('-')[0]}"
                ):
                    shutil.rmtree(file, ignore_errors=True)
            elif time.time() - file.stat().st_mtime > limits.SOURCES_KEPT_SECONDS:
                file.unlink()
        except OSError:
            pass  # another node of this machine was faster
    return folder


def _private(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ClusterError(f"the directory {path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ClusterError(f"{path} is not a directory of this user; remove it, or set SCALEOUT_HOME to another place")
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, and never readable by others in between."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.new")  # others may write it from other machines
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
