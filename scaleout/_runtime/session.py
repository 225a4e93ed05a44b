"""What the shims see of the runtime: sessions, worker groups, and the outcomes of calls.

`default_session()` gives this process's session, made at the first use. Its `open_group(size, ...)` starts workers and
returns a handle:

    record = group.prepare(function)                 pickled for one API call
    group.submit(record, how, value, sink, index)    pickle the value, queue the call
    sink.deliver(index, status, payload)             called on the runtime's thread, once per submitted index
    group.drop(sink)                                 results not wanted any more
    group.close() / terminate() / join()
    group.workers                                    objects with worker_id, number, pid, exitcode

`how` is one of CALL_ARGS, CALL_ARGS_KWARGS, CALL_ITEM, MAP_ITEMS, STARMAP_ITEMS. `outcome(status, payload)` turns what
a sink was given into (True, value) or (False, Failure); the shims map failures to the exceptions of the module they
stand for, each by a subclass of `Exceptions`. Another engine can be put under the shims by providing this module's
names.
"""

from __future__ import annotations

import os
import sys
import threading

from scaleout._runtime.base import context, references, this_process
from scaleout._runtime.base.latch import Latch, acquire_within
from scaleout._runtime.base.limits import ACTOR_WINDOW_TASKS, EAGER_ITEMS, ENDLESS_RETRIES, FEED_TASKS, STREAM_AHEAD
from scaleout._runtime.base.settings import Settings
from scaleout._runtime.client.exceptions import Exceptions
from scaleout._runtime.client.graph import Options
from scaleout._runtime.client.outcomes import Failure, outcome
from scaleout._runtime.client.processes import WorkerProcess
from scaleout._runtime.core.tasks import Profile
from scaleout._runtime.node import host
from scaleout._runtime.wire.frames import (
    ARGUMENT_NOT_PICKLED,
    ARGUMENT_NOT_UNPICKLED,
    CALL_ARGS,
    CALL_ARGS_KWARGS,
    CALL_ITEM,
    CANCELLED,
    DROPPED,
    GROUP_BROKEN,
    MAP_ITEMS,
    OK,
    OUT_OF_MEMORY,
    RESULT_NOT_PICKLED,
    RESULT_NOT_UNPICKLED,
    SESSION_CLOSED,
    STARMAP_ITEMS,
    TASK_EXITED,
    TASK_RAISED,
    TIMED_OUT,
    WORKER_DIED,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.client.embedded import EmbeddedSession

__all__ = [
    "ARGUMENT_NOT_PICKLED",
    "ARGUMENT_NOT_UNPICKLED",
    "CALL_ARGS",
    "CALL_ARGS_KWARGS",
    "CALL_ITEM",
    "CANCELLED",
    "DROPPED",
    "EAGER_ITEMS",
    "FEED_TASKS",
    "GROUP_BROKEN",
    "MAP_ITEMS",
    "OK",
    "OUT_OF_MEMORY",
    "RESULT_NOT_PICKLED",
    "RESULT_NOT_UNPICKLED",
    "SESSION_CLOSED",
    "STARMAP_ITEMS",
    "TASK_EXITED",
    "TASK_RAISED",
    "TIMED_OUT",
    "WORKER_DIED",
    "Exceptions",
    "Failure",
    "Latch",
    "Profile",
    "WorkerProcess",
    "acquire_within",
    "at_close_idle",
    "close_all",
    "close_idle",
    "cpu_count",
    "default_session",
    "dump_stacks",
    "is_inline",
    "is_on_cluster",
    "outcome",
    "set_preload",
    "this_process",
    "warm_zygote",
]

BOOTSTRAPPING = """
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.

        A worker is importing a module that makes a Pool when it is imported.
        `__main__` needs no guard, but every other module does:

            if __name__ == '__main__':
                ...
"""

_session: EmbeddedSession | None = None
_lock = threading.Lock()
_client_lock = threading.RLock()


def default_session() -> EmbeddedSession:
    """This process's session; made, from the SCALEOUT_* settings, at the first call."""
    global _session
    session = _session
    if session is None or session.is_closed:
        with _lock:
            if _session is None or _session.is_closed:
                _session = _open_session()
            session = _session
    return session


def _open_session(overrides: dict[str, str] | None = None) -> EmbeddedSession:
    """The zygote is started first, so that it comes up on another core while this process imports the rest."""
    settings = Settings.from_environ({**os.environ, **(overrides or {})})
    if settings.inline:
        from scaleout._runtime.client.inline import InlineSession

        return InlineSession(settings)  # type: ignore[return-value]  # another class, the same interface
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise RuntimeError(
            "scaleout does not support running without the interpreter lock yet: "
            "start Python with -X gil=1 or PYTHON_GIL=1"
        )
    if context.current is not None and context.current.in_bootstrap:
        raise RuntimeError(BOOTSTRAPPING)
    if settings.address:
        from scaleout._runtime.client.cluster import ClusterSession

        return ClusterSession(settings)
    zygote = host.Host.start()
    try:
        from scaleout._runtime.client.embedded import EmbeddedSession

        return EmbeddedSession(settings, zygote)
    except BaseException:
        zygote.close()
        raise


def dump_stacks() -> None:
    """Print the stacks of this process's threads and of all its workers to stderr, wherever they are stuck.

    Workers print by themselves, a moment later, in no fixed order; what a worker's C code does is not shown.
    """
    import faulthandler
    import sys

    print(f"Stacks of process {os.getpid()}:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    if _session is not None:
        _session.dump_stacks()


def set_preload(modules: list[str]) -> None:
    """Names of modules that are imported once, before workers are forked: each starts with them loaded."""
    host.preloaded_modules[:] = modules


def cpu_count() -> int:
    """How many CPUs this process may use, or SCALEOUT_NUM_CPUS; on a cluster, how many its nodes have."""
    if _session is not None:
        return _session.num_cpus
    settings = Settings.from_environ(os.environ)
    return default_session().num_cpus if settings.address else settings.num_cpus


def is_on_cluster() -> bool:
    """Whether workers are those of a cluster's nodes: SCALEOUT_ADDRESS."""
    if _session is not None:
        return bool(_session.settings.address)
    return bool(Settings.from_environ(os.environ).address)


def is_inline() -> bool:
    """Whether calls run in the thread that makes them: SCALEOUT_INLINE."""
    if _session is not None:
        return _session.settings.inline
    return Settings.from_environ(os.environ).inline


# -- tasks, actors and objects -------------------------------------------------------------------


def default_client() -> Any:
    """What tasks are submitted by here; made at the first call."""
    client = references.client
    if client is None or client.is_closed:
        with _client_lock:
            client = references.client
            if client is None or client.is_closed:
                client = references.client = _new_client({})
    return client


def _new_client(
    resources: dict[str, float],
    namespace: str = "",
    env_vars: dict[str, str] | None = None,
    working_dir: str | None = None,
) -> Any:
    if context.current is not None:
        from scaleout._runtime.client.borrower import WorkerClient

        return WorkerClient(context.current.worker)
    session = default_session()
    if session.settings.inline:
        from scaleout._runtime.client.inline_tasks import InlineClient

        return InlineClient(session.settings)
    from scaleout._runtime.client.tasks import OwnerClient

    return OwnerClient(session, session.open_tasks(resources, env_vars, working_dir), namespace)


def init_client(
    resources: dict[str, float],
    overrides: dict[str, str],
    namespace: str,
    env_vars: dict[str, str],
    working_dir: str | None,
) -> None:
    """See `scaleout.init`. `overrides` are settings, by the names of their environment variables."""
    global _session
    with _client_lock:
        if has_client():
            raise RuntimeError("scaleout is initialized already; scaleout.shutdown() ends the session")
        if overrides and context.current is None:
            wanted = Settings.from_environ({**os.environ, **overrides})
            with _lock:
                if _session is not None and not _session.is_closed and _is_as(_session.settings, wanted):
                    overrides = {}
                if overrides and _session is not None and _session.is_in_use:
                    raise RuntimeError(
                        "address and object_store_memory cannot be set any more: there are pools or executors already"
                    )
                if overrides:
                    _session = _open_session(overrides)
        references.client = _new_client(resources, namespace, env_vars, working_dir)


def _is_as(settings: Settings, wanted: Settings) -> bool:
    """As far as `init` says."""
    return (settings.address, settings.store_bytes) == (wanted.address, wanted.store_bytes)


def close_client() -> None:
    """See `scaleout.shutdown`."""
    with _client_lock:
        client, references.client = references.client, None
        if client is None and context.current is None and getattr(_session, "has_tasks", False):
            client = _new_client({})  # workers of a pool have submitted some
    if client is not None:
        client.close()


def has_client() -> bool:
    """Whether there is a client that is of use."""
    return references.client is not None and not references.client.is_closed


def task_options(
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    memory: float = 0,
    resources: dict[str, float] | None = None,
    num_returns: Any = 1,
    max_retries: int | None = None,
    retry_exceptions: Any = False,
    timeout_s: float | None = None,
    name: str = "",
    priority: int = 0,
) -> Options:
    """What `@scaleout.remote` takes, checked."""
    returns = -STREAM_AHEAD if num_returns in ("streaming", "dynamic") else num_returns
    if isinstance(returns, bool) or not isinstance(returns, int) or (returns < 0 and returns != -STREAM_AHEAD):
        raise ValueError(f"num_returns is a number of results or 'streaming', not {num_returns!r}")
    if max_retries is not None and (not isinstance(max_retries, int) or max_retries < -1):
        raise ValueError(f"max_retries is 0 or more, -1 for always, or None for the default, not {max_retries!r}")
    if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and timeout_s > 0):
        raise ValueError(f"timeout_s is a number of seconds above 0, or None, not {timeout_s!r}")
    if not isinstance(name, str):
        raise ValueError(f"name is a string, not {name!r}")
    if not isinstance(priority, int):
        raise ValueError(f"priority is a whole number, not {priority!r}")
    if not isinstance(retry_exceptions, bool):
        kinds = retry_exceptions if isinstance(retry_exceptions, (list, tuple)) else [retry_exceptions]
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise ValueError(f"retry_exceptions is a bool or a list of exception classes, not {retry_exceptions!r}")
        retry_exceptions = tuple(kinds)
    if max_retries == -1:
        max_retries = ENDLESS_RETRIES
    shape = _shape(num_cpus, num_gpus, memory, resources)
    return Options(shape, returns, max_retries, retry_exceptions, timeout_s, name, priority)


def _shape(num_cpus: float, num_gpus: float, memory: float, resources: dict[str, float] | None) -> Any:
    from scaleout._runtime.core.resources import shape_of

    amounts = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory, **(resources or {})}
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
            raise ValueError(f"a task or actor cannot have {amount!r} of the resource {name}")
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise ValueError(f"num_gpus is a fraction of one, or a whole number, not {num_gpus!r}")
    return shape_of(amounts)


def actor_options(
    *,
    class_name: str,
    methods: dict[str, Any],
    is_async: bool,
    num_cpus: float = 0,
    num_gpus: float = 0,
    memory: float = 0,
    resources: dict[str, float] | None = None,
    name: str = "",
    namespace: str | None = None,
    lifetime: str | None = None,
    max_concurrency: int | None = None,
    on_failure: str = "raise",
    max_restarts: int | None = None,
    max_task_retries: int = 0,
    checkpoint_every: int = 0,
) -> dict[str, Any]:
    """What `@scaleout.remote` takes for a class, checked, as plain data."""
    _check_life(name, namespace, lifetime)
    if on_failure not in ("raise", "restart", "replay"):
        raise ValueError(f"on_failure is 'raise', 'restart' or 'replay', not {on_failure!r}")
    for given, number, least in (
        ("max_concurrency", 1 if max_concurrency is None else max_concurrency, 1),
        ("max_restarts", max_restarts or 0, -1),
        ("max_task_retries", max_task_retries, -1),
        ("checkpoint_every", checkpoint_every, 0),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{given} is a whole number from {least} on, not {number!r}")
    if max_restarts is None:
        max_restarts = 0 if on_failure == "raise" else -1
    elif max_restarts and on_failure == "raise":
        on_failure = "restart"
    if checkpoint_every and on_failure != "replay":
        raise ValueError("checkpoint_every is for on_failure='replay'")
    for hook in ("save_checkpoint", "load_checkpoint") if checkpoint_every else ():
        if hook not in methods:
            raise ValueError(f"checkpoint_every needs a method {hook!r}, which {class_name} does not have")
    if on_failure == "replay" and (is_async or (max_concurrency or 1) > 1):
        raise ValueError("on_failure='replay' is for actors that do one call after the other: it repeats their order")
    if max_concurrency is None:
        max_concurrency = 1000 if is_async else 1
    return {
        "class_name": class_name,
        "methods": methods,
        "name": name,
        "namespace": namespace,
        "is_detached": lifetime == "detached",
        "max_restarts": max_restarts,
        "max_task_retries": max_task_retries,
        "keeps_log": on_failure == "replay",
        "window": max(ACTOR_WINDOW_TASKS, max_concurrency),
        "shape": _shape(num_cpus, num_gpus, memory, resources),
        "of_worker": {
            "concurrency": max_concurrency,
            "is_async": is_async,
            "checkpoint_every": checkpoint_every,
        },
    }


def _check_life(name: str, namespace: str | None, lifetime: str | None) -> None:
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime is None or 'detached', not {lifetime!r}")
    for given, value in {"name": name, "namespace": namespace or ""}.items():
        if not isinstance(value, str):
            raise ValueError(f"{given} is a string, not {value!r}")
    if lifetime == "detached" and not name:
        raise ValueError("a detached actor needs a name: nothing else holds it")


def check_options(options: dict[str, Any], known: tuple[str, ...]) -> None:
    """TypeError for an option that there is not, with the nearest that there is."""
    for name in options:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
            raise TypeError(f"there is no option {name!r}{hint}")


def leave_actor() -> None:
    """See `scaleout.exit_actor`."""
    if context.current is None or context.current.actor is None:
        raise RuntimeError("exit_actor is for methods of actors")
    context.current.is_leaving = True
    context.current.worker.need_requests().ask(("leave_actor",))
    raise SystemExit(0)


def modules_of_program() -> list[Any]:
    """In a worker: the modules that it has from its program, as they are not installed where it runs."""
    from scaleout._runtime.process import sources

    return [sys.modules[name] for name in list(sources.of_program) if name in sys.modules]


def collect(handle: Any) -> None:
    """A handle is being pickled."""
    references.collect(handle)


def find_reference(object_id: int) -> Any:
    """What a pickled reference becomes."""
    return default_client().reference_of(object_id)


references.make_client = default_client
references.find_reference = find_reference


at_close_idle: list[Callable[[], None]] = []
"""What shims keep warm themselves ends by these."""


def close_idle() -> None:
    """End what is kept warm for the next group."""
    for close in at_close_idle:
        close()
    if _session is not None:
        _session.close_idle()


def close_all() -> None:
    """End the session with everything that is under way in it."""
    if _session is not None:
        _session.close()


def warm_zygote() -> tuple[int, int] | None:
    """(pid, fd) of the zygote that is kept warm between groups, if any."""
    parked = getattr(_session, "_parked", None)
    return (parked.pid, parked.link.fileno()) if parked is not None and parked.pid else None


def _after_fork_in_child() -> None:
    global _lock, _client_lock
    _lock, _client_lock = threading.Lock(), threading.RLock()
    context.current = None  # a worker's child is no worker: it needs a zygote of its own
    references.client = None  # a session of its own, too
    if _session is not None:
        _session.forget()


def _before_fork() -> None:
    if _session is not None:
        _session.before_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
context.at_exit.append(close_all)
