"""Classes whose instances are actors."""

from __future__ import annotations

import inspect

from scaleout._runtime import session
from scaleout.handles import METHOD_OPTIONS, ActorHandle, method_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ACTOR_OPTIONS = (
    "checkpoint_every",
    "get_if_exists",
    "lifetime",
    "max_concurrency",
    "max_restarts",
    "max_task_retries",
    "memory",
    "name",
    "namespace",
    "num_cpus",
    "num_gpus",
    "on_failure",
    "resources",
)
METHOD_MARK = "__scaleout_method__"


class RemoteClass:
    """A class whose instances are actors: `C.remote(...)` starts one, and gives a handle at once.

    >>> import scaleout
    >>> @scaleout.remote
    ... class Counter:
    ...     def __init__(self):
    ...         self.count = 0
    ...
    ...     def add(self, amount):
    ...         self.count += amount
    ...         return self.count
    >>> counter = Counter.remote()
    >>> scaleout.get([counter.add.remote(2), counter.add.remote(3)])
    [2, 5]
    """

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self._class = cls
        self._given = options
        arguments = {name: value for name, value in options.items() if name != "get_if_exists"}
        methods = _methods_of(cls)
        is_async = any(
            inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
            for _, function in inspect.getmembers(cls, inspect.isfunction)
        )
        self._options = session.actor_options(class_name=cls.__name__, methods=methods, is_async=is_async, **arguments)
        self._client: Any = None
        self._record: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"an actor is not made directly: use {self.__name__}.remote(...)")

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor; its constructor gets these arguments. ValueError if its name is taken."""
        options = self._options
        client = session.default_client()
        if options["namespace"] is None:
            options = {**options, "namespace": client.namespace}
        by_name = options["namespace"], options["name"], options["is_detached"]
        is_shared = self._given.get("get_if_exists") and options["name"]
        if is_shared and (found := _find(*by_name)) is not None:
            return found
        try:
            return self._start(client, args, kwargs, options)
        except ValueError:
            if is_shared and (found := _find(*by_name)) is not None:
                return found  # somebody else was faster
            raise

    def _start(
        self, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> ActorHandle:
        if options["is_detached"] and client.steward:
            from scaleout.detached import outside  # not before somebody has such an actor: it is rare

            return outside.create(self._class, options, args, kwargs)
        if self._client is not client:
            self._record = client.prepare(self._class)
            self._client = client
        actor_id, hold = client.create_actor(self._record, args, kwargs, options)
        return _handle(actor_id, hold, options)

    def options(self, **options: Any) -> RemoteClass:
        """The same class with other options, for an actor: `C.options(name="one").remote()`."""
        session.check_options(options, ACTOR_OPTIONS)
        other = RemoteClass(self._class, {**self._given, **options})
        if self._client is not None:
            other._client, other._record = self._client, self._record
        return other

    def __reduce__(self) -> Any:
        return RemoteClass, (self._class, self._given)

    def __repr__(self) -> str:
        return f"<remote class {self.__module__}.{self.__qualname__}>"


def _methods_of(cls: type) -> dict[str, Any]:
    methods: dict[str, Any] = {}
    for name, function in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        options = dict(getattr(function, METHOD_MARK, {}))
        if "num_returns" not in options and (
            inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        ):
            options["num_returns"] = "streaming"
        methods[name] = options
    return methods


def method(**options: Any) -> Callable[[Any], Any]:
    """For a method of an actor's class: options that its calls have, as `@scaleout.method(num_returns=2)`."""
    session.check_options(options, METHOD_OPTIONS)

    def mark(function: Any) -> Any:
        method_options(options)
        setattr(function, METHOD_MARK, options)
        return function

    return mark


def _handle(actor_id: int, hold: Any, options: dict[str, Any]) -> ActorHandle:
    return ActorHandle(actor_id, hold, options["class_name"], options["name"], options["methods"])


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle to the living actor of this name: one of this program's, or of its cluster's detached ones.

    ValueError if there is none.
    """
    for what, given in (("name", name), ("namespace", namespace)):
        if not isinstance(given, str) and not (what == "namespace" and given is None):
            raise TypeError(f"the {what} of an actor is a string, not {given!r}")
    if namespace is None:
        namespace = session.default_client().namespace
    found = _find(namespace, name, True)
    if found is None:
        raise ValueError(f"there is no actor named {name!r} in namespace {namespace!r}")
    return found


def _find(namespace: str, name: str, is_detached: bool) -> ActorHandle | None:
    """This program's own comes first; `is_detached`: it may be one of the cluster's."""
    client = session.default_client()
    found = client.find_actor(namespace, name)
    if found is not None:
        return _handle(*found)
    if not client.steward or not is_detached:
        return None
    from scaleout.detached import outside

    return outside.find(namespace, name)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once, in the midst of what it does. Without `no_restart` it is started again if it may be."""
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill takes the handle of an actor, not {actor!r}; cancel is for tasks")
    if actor._hold is None:
        from scaleout.detached import outside

        outside.kill(actor, not no_restart)
    else:
        session.default_client().kill_actor(actor._hold, not no_restart)


def exit_actor() -> None:
    """From inside an actor's method: end the actor. Calls that are under way or come later get `ActorDiedError`."""
    session.leave_actor()
