"""`@scaleout.remote`: functions whose calls are tasks."""

from __future__ import annotations

import functools
import inspect

from scaleout._runtime import session
from scaleout.actors import ACTOR_OPTIONS, RemoteClass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TASK_OPTIONS = (
    "max_retries",
    "memory",
    "name",
    "num_cpus",
    "num_gpus",
    "num_returns",
    "priority",
    "resources",
    "retry_exceptions",
    "timeout_s",
)


class RemoteFunction:
    """A function whose calls are tasks: `f.remote(...)` gives a reference to the result at once.

    >>> import scaleout
    >>> @scaleout.remote
    ... def add(a, b):
    ...     return a + b
    >>> scaleout.get(add.remote(1, 2))
    3
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._given = options
        if "num_returns" not in options and inspect.isgeneratorfunction(function):
            options = {**options, "num_returns": "streaming"}
        self._options = session.task_options(**options)
        self._client: Any = None
        self._record: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a remote function is not called directly: use {self._function.__name__}.remote(...)")

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function in a worker: a reference to the result; several or an iterator, as `num_returns` says."""
        client = session.default_client()
        if self._client is not client:
            self._record = client.prepare(self._function)
            self._client = client
        return client.submit(self._record, args, kwargs, self._options)

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options, for a call: `f.options(num_returns=2).remote()`."""
        session.check_options(options, TASK_OPTIONS)
        other = RemoteFunction(self._function, {**self._given, **options})
        if self._client is not None:
            other._client, other._record = self._client, self._record
        return other

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._function, self._given)

    def __repr__(self) -> str:
        return f"<remote function {self._function.__module__}.{self._function.__qualname__}>"


def remote(*args: Any, **options: Any) -> Any:
    """Make a function's calls tasks, or a class's instances actors: `@remote`, or `@remote(num_cpus=2, ...)`."""
    if len(args) == 1 and not options:
        return _remote(args[0], {})
    if args:
        raise TypeError("remote is used as @remote, or with options by name: @remote(num_cpus=2)")
    return functools.partial(_remote, options=options)


def _remote(what: Any, options: dict[str, Any]) -> Any:
    if isinstance(what, type):
        session.check_options(options, ACTOR_OPTIONS)
        return RemoteClass(what, options)
    if not callable(what):
        raise TypeError(f"remote takes a function or a class, not {what!r}")
    session.check_options(options, TASK_OPTIONS)
    return RemoteFunction(what, options)
