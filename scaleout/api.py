"""`scaleout.init`, `get`, `put`, `wait` and their kind: the runtime's public functions."""

from __future__ import annotations

import os
import time

from scaleout._runtime import session
from scaleout._runtime.refs import ObjectRef
from scaleout.errors import GetTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

__all__ = [
    "as_completed",
    "available_resources",
    "cancel",
    "cluster_resources",
    "get",
    "init",
    "is_initialized",
    "put",
    "shutdown",
    "wait",
]


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds or None, not {timeout!r}")
    return time.monotonic() + timeout


def put(value: Any) -> ObjectRef:
    """A reference to `value`, which is stored once, however many tasks it is passed to.

    >>> import scaleout
    >>> scaleout.get(scaleout.put("kept"))
    'kept'
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put takes a value, not a reference: the object of a reference is stored already")
    return session.default_client().put(value)


def get(refs: Any, timeout: float | None = None) -> Any:
    """The value of a reference, or the list of the values of a list of references; waits for them.

    Raises what the task raised, with the worker's traceback as its cause; `GetTimeoutError` (a `TimeoutError`) if a
    value is not there within `timeout` seconds; another `scaleout.errors.ScaleoutError` if there will be none.

    >>> import scaleout
    >>> refs = [scaleout.put(number) for number in range(3)]
    >>> scaleout.get(refs)
    [0, 1, 2]
    """
    is_one = isinstance(refs, ObjectRef)
    wanted = [refs] if is_one else _checked(refs, "get")
    values = session.default_client().get(wanted, _deadline(timeout))
    if values is None:
        raise GetTimeoutError(f"no value within {timeout:g} s")
    return values[0] if is_one else values


def wait(
    refs: Sequence[ObjectRef], *, num_returns: int = 1, timeout: float | None = None
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """(ready, not ready), each in the order of `refs`, as soon as `num_returns` are ready or `timeout` seconds are
    over. `ready` has at most `num_returns`; failed tasks are ready, too.
    """
    wanted = _checked(refs, "wait")
    if len(set(wanted)) < len(wanted):
        raise ValueError("wait takes each reference once")
    if not isinstance(num_returns, int) or not 1 <= num_returns <= len(wanted):
        raise ValueError(
            f"num_returns is a number from 1 to {len(wanted)}, that of the references, not {num_returns!r}"
        )
    there = session.default_client().wait(wanted, num_returns, _deadline(timeout))
    ready = [position for position in range(len(wanted)) if position in there][:num_returns]
    chosen = set(ready)
    return [wanted[position] for position in ready], [
        ref for position, ref in enumerate(wanted) if position not in chosen
    ]


def as_completed(refs: Iterable[ObjectRef], timeout: float | None = None) -> Iterator[ObjectRef]:
    """The references, each as soon as it is ready. `GetTimeoutError` if not all are within `timeout` seconds."""
    left = _checked(list(refs), "as_completed")
    deadline = _deadline(timeout)
    client = session.default_client()
    while left:
        there = client.wait(left, 1, deadline)
        if not there:
            raise GetTimeoutError(f"{len(left)} references were not ready within {timeout:g} s")
        ready = [ref for position, ref in enumerate(left) if position in there]
        left = [ref for position, ref in enumerate(left) if position not in there]
        yield from ready


def cancel(ref: ObjectRef, *, force: bool = False, recursive: bool = True) -> None:
    """End the task that makes the object, if it has not ended: whoever gets the object gets `TaskCancelledError`.

    A task that runs is interrupted by a KeyboardInterrupt; with `force` its worker is killed. With `recursive`, what
    the task has submitted is cancelled as well.
    """
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel takes a reference, not {ref!r}")
    session.default_client().cancel(ref, force, recursive)


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: dict[str, float] | None = None,
    memory: int | None = None,
    object_store_memory: int | None = None,
    namespace: str = "",
    runtime_env: dict[str, Any] | None = None,
    ignore_reinit_error: bool = False,
) -> None:
    """Start the session with other resources than the defaults; without it the first use of anything starts it.

    `address` is "HOST:PORT" of a node of a cluster, or "local" for this machine; else `SCALEOUT_ADDRESS` says it.
    `num_cpus` (default: the CPUs this process may use), `num_gpus` (those that are seen), `memory` in bytes (the
    machine's) and `resources` (custom names) are what there is for tasks and actors to ask for. `object_store_memory`
    bounds the store, in bytes. `namespace` is where names of actors are looked up. `runtime_env` is what the workers of
    tasks and actors find: `{"env_vars": {name: value}, "working_dir": directory}`, the directory being the current one
    and the first that modules are looked for in; nodes of a cluster get a copy of it, of 50 MB at most. RuntimeError if
    there is a session already, unless `ignore_reinit_error`; ClusterError if the cluster cannot be reached.
    """
    overrides = {} if address is None else {"SCALEOUT_ADDRESS": _address(address)}
    env_vars, working_dir = _runtime_env(runtime_env or {})
    amounts: dict[str, float] = {}
    for name, amount in {"CPU": num_cpus, "GPU": num_gpus, "memory": memory, **(resources or {})}.items():
        if amount is None:
            continue
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
            raise ValueError(f"there can be no {amount!r} of the resource {name}")
        amounts[name] = amount
    if object_store_memory is not None and (not isinstance(object_store_memory, int) or object_store_memory < 1):
        raise ValueError(f"object_store_memory is a number of bytes, not {object_store_memory!r}")
    if ignore_reinit_error and session.has_client():
        return
    if object_store_memory is not None:
        overrides["SCALEOUT_STORE_BYTES"] = str(object_store_memory)
    session.init_client(amounts, overrides, namespace, env_vars, working_dir)


def _address(given: str) -> str:
    """As the setting SCALEOUT_ADDRESS has it, which checks the rest."""
    if not isinstance(given, str):
        raise TypeError(f"address is 'HOST:PORT' of a node of a cluster, or 'local', not {given!r}")
    return "" if given == "local" else given


def _runtime_env(given: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    """(variables, directory)"""
    if not isinstance(given, dict):
        raise TypeError(f"runtime_env is a dict, not {given!r}")
    for key in given:
        if key not in ("env_vars", "working_dir"):
            raise ValueError(f"runtime_env takes 'env_vars' and 'working_dir'; {key!r} is not supported")
    env_vars, working_dir = given.get("env_vars") or {}, given.get("working_dir")
    if not isinstance(env_vars, dict) or not all(isinstance(part, str) for pair in env_vars.items() for part in pair):
        raise TypeError(f"env_vars is a dict of strings, not {env_vars!r}")
    for name, value in env_vars.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"there can be no environment variable {name!r} with the value {value!r}")
    if working_dir is not None:
        working_dir = os.path.abspath(working_dir)
        if not os.path.isdir(working_dir):
            raise ValueError(f"working_dir is a directory, and there is none at {working_dir!r}")
    return env_vars, working_dir


def shutdown() -> None:
    """End the session's tasks, actors and objects. What is used afterwards starts a new one."""
    session.close_client()


def is_initialized() -> bool:
    """Whether there is a session for tasks, actors and objects."""
    return session.has_client()


def cluster_resources() -> dict[str, float]:
    """What there is, by name: "CPU", "GPU", "memory" in bytes, and custom ones."""
    total, _ = session.default_client().resources()
    return {name: amount / 1000 for name, amount in total.items() if amount}


def available_resources() -> dict[str, float]:
    """What no task or actor holds at this moment."""
    total, used = session.default_client().resources()
    return {name: (amount - used.get(name, 0)) / 1000 for name, amount in total.items() if amount}


def _checked(refs: Any, name: str) -> list[ObjectRef]:
    if not isinstance(refs, (list, tuple)):
        raise TypeError(f"{name} takes a reference or a list of references, not {refs!r}")
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"{name} takes references, as .remote() and put give them, not {ref!r}")
    return list(refs)
