"""Classes whose instances are actors, and the handles by which they are called."""

from __future__ import annotations

import inspect

from scaleout._runtime import session

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
METHOD_OPTIONS = ("max_task_retries", "num_returns", "timeout_s")

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
        is_shared = self._given.get("get_if_exists") and options["name"]
        if is_shared and (found := client.find_actor(options["namespace"], options["name"])) is not None:
            return _handle(*found)
        if self._client is not client:
            self._record = client.prepare(self._class)
            self._client = client
        try:
            actor_id, hold = client.create_actor(self._record, args, kwargs, options)
        except ValueError:
            if is_shared and (found := client.find_actor(options["namespace"], options["name"])) is not None:
                return _handle(*found)  # somebody else was faster
            raise
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


class ActorHandle:
    """An actor, as others see it: `handle.method.remote(...)` calls it. Pass it on as any other value.

    The actor lives as long as a handle to it does, anywhere, or a call is under way.
    """

    def __init__(self, actor_id: int, hold: Any, class_name: str, name: str, methods: dict[str, Any]) -> None:
        self._id = actor_id
        self._hold = hold
        self._class_name = class_name
        self._name = name
        self._methods = methods

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("__") or name not in self.__dict__.get("_methods", ()):
            raise AttributeError(f"the actor class {self.__dict__.get('_class_name')} has no method {name!r}")
        method = ActorMethod(self, name, self._methods[name])
        self.__dict__[name] = method
        return method

    def __reduce__(self) -> Any:
        session.collect(self)
        return find_handle, (self._id, self._class_name, self._name, self._methods)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        name = f" {self._name!r}" if self._name else ""
        return f"<actor {self._class_name}{name}, {self._id:016x}>"


class ActorMethod:
    """A method of an actor."""

    def __init__(self, handle: ActorHandle, name: str, options: dict[str, Any]) -> None:
        self._id = handle._id
        self._hold = handle._hold
        self._name = name
        self._given = options
        self._options = _method_options(options)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it: a reference to the result. The calls of one caller are run in their order."""
        return session.default_client().call_actor(self._hold, self._name, args, kwargs, self._options)

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options, for a call."""
        session.check_options(options, METHOD_OPTIONS)
        other = ActorMethod.__new__(ActorMethod)
        other._id, other._hold, other._name = self._id, self._hold, self._name
        other._given = {**self._given, **options}
        other._options = _method_options(other._given)
        return other

    def __repr__(self) -> str:
        return f"<method {self._name} of the actor {self._id:016x}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a method of an actor is not called directly: use .{self._name}.remote(...)")


def _method_options(options: dict[str, Any]) -> Any:
    names = {"max_task_retries": "max_retries"}
    return session.task_options(**{names.get(name, name): value for name, value in options.items()})


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
        _method_options(options)
        setattr(function, METHOD_MARK, options)
        return function

    return mark


def _handle(actor_id: int, hold: Any, options: dict[str, Any]) -> ActorHandle:
    return ActorHandle(actor_id, hold, options["class_name"], options["name"], options["methods"])


def find_handle(actor_id: int, class_name: str, name: str, methods: dict[str, Any]) -> ActorHandle:
    """What a pickled handle becomes."""
    return ActorHandle(actor_id, session.default_client().find_hold(actor_id), class_name, name, methods)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle to the living actor of this name. ValueError if there is none."""
    client = session.default_client()
    if namespace is None:
        namespace = client.namespace
    found = client.find_actor(namespace, name)
    if found is None:
        raise ValueError(f"there is no actor named {name!r} in namespace {namespace!r}")
    return _handle(*found)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once, in the midst of what it does. Without `no_restart` it is started again if it may be."""
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill takes the handle of an actor, not {actor!r}; cancel is for tasks")
    session.default_client().kill_actor(actor._hold, not no_restart)


def exit_actor() -> None:
    """From inside an actor's method: end the actor. Calls that are under way or come later get `ActorDiedError`."""
    session.leave_actor()
