"""Makes a forked worker a multiprocessing child in good standing, as `multiprocessing.spawn` would have.

Follows `multiprocessing.spawn.prepare` and `BaseProcess._bootstrap` of CPython 3.13.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from multiprocessing import process as _process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

process: Any = _process  # much of what is used here is private to the standard library

LOGGING_DEFAULT_LEVEL = 30
"""`logging.WARNING`, without the import."""

STACKS_SIGNAL = signal.SIGUSR2
"""A worker that gets it prints the stacks of its threads to stderr."""


class WorkerProcess(_process.BaseProcess):
    """What `multiprocessing.current_process()` is in a worker."""

    def __init__(self, number: int, parent_identity: tuple[int, ...], authkey: bytes, parent: ParentProcess) -> None:
        self._identity = (*parent_identity, number)
        self._config = {"authkey": process.AuthenticationString(authkey), "semprefix": "/mp"}
        self._parent_pid = parent.pid
        self._parent_name = parent.name
        self._popen = None
        self._closed = False
        self._target = None
        self._args = ()
        self._kwargs: dict[str, Any] = {}
        self._name = "SpawnPoolWorker-" + ":".join(str(part) for part in self._identity)

    def _check_closed(self) -> None:
        pass


class ParentProcess(process._ParentProcess):
    """The owner of this worker; its sentinel is opened when somebody asks for it."""

    def __init__(self, name: str, pid: int) -> None:
        self._identity = ()
        self._name = name
        self._pid = pid
        self._parent_pid = None
        self._popen = None
        self._closed = False
        self._config: dict[str, Any] = {}

    @property
    def _sentinel(self) -> int:
        fd: int = os.pidfd_open(self._pid)
        self.__dict__["_sentinel"] = fd
        return fd


def assume(info: dict[str, Any]) -> None:
    """Name, identity, authkey, log level and start method, as the owner gave them in HELLO."""
    try:
        faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
    except (OSError, ValueError):
        signal.signal(STACKS_SIGNAL, signal.SIG_IGN)  # stderr is closed
    parent = ParentProcess(info["parent_name"], info["parent_pid"])
    worker = WorkerProcess(info["number"], tuple(info["parent_identity"]), info["authkey"], parent)
    process._current_process = worker
    process._parent_process = parent
    process._children = set()
    from multiprocessing import context

    context._default_context.set_start_method("spawn", force=True)
    if info.get("log_level") is not None:
        from multiprocessing import util

        util.get_logger().setLevel(info["log_level"])
        if info.get("log_to_stderr"):
            util.log_to_stderr()
    if info.get("root_log_level") is not None:
        import logging

        logging.getLogger().setLevel(info["root_log_level"])
    if info.get("logger_levels"):
        import logging

        for name, level in info["logger_levels"].items():
            logging.getLogger(name).setLevel(level)
    if info.get("hides_stdin", True):
        sys.stdin = open(os.devnull)


def records_are_handled() -> bool:
    """Whether this process has set up handlers for what is logged."""
    module = sys.modules.get("logging")  # it may be half imported, by another thread
    root = getattr(module, "root", None)
    if root is None:
        return False
    null = getattr(module, "NullHandler", ())
    loggers = [root, *root.manager.loggerDict.copy().values()]
    return any(not isinstance(handler, null) for logger in loggers for handler in getattr(logger, "handlers", ()))


def resource_tracker_fd() -> int:
    """The fd to this process's resource tracker, -1 while there is none."""
    # Whatever stands in sys.modules may be half imported, by another thread.
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    fd = getattr(tracker, "_fd", None)
    return -1 if fd is None else fd


def use_resource_tracker(fd: int) -> None:
    """Report shared resources to the driver's tracker, so that they outlive this worker."""
    from multiprocessing import resource_tracker

    resource_tracker._resource_tracker._fd = fd  # type: ignore[attr-defined]


def owner_info() -> dict[str, Any]:
    """What a worker of this process is told in HELLO to become its child; plain data."""
    current = process.current_process()
    info: dict[str, Any] = {
        "parent_name": current.name,
        "parent_pid": os.getpid(),
        "parent_identity": tuple(current._identity),
        "authkey": bytes(current.authkey),
    }
    # Whatever stands in sys.modules may be half imported, by another thread.
    logger = getattr(sys.modules.get("multiprocessing.util"), "_logger", None)
    if logger is not None:
        info["log_level"] = logger.getEffectiveLevel()
        info["log_to_stderr"] = bool(sys.modules["multiprocessing.util"]._log_to_stderr)
    root = getattr(sys.modules.get("logging"), "root", None)
    if root is not None:
        if records_are_handled():
            info["records"] = True
        if "records" in info or root.level != LOGGING_DEFAULT_LEVEL:
            info["root_log_level"] = int(root.level)
        loggers = list(root.manager.loggerDict.items())
        # Those of other classes are made by who has these, in the worker, too. Levels may be members of an enum.
        plain = getattr(sys.modules["logging"], "Logger", None)
        info["logger_levels"] = {
            str(name): int(logger.level) for name, logger in loggers if type(logger) is plain and logger.level
        }
    return info
