"""The handles by which actors are called."""

from __future__ import annotations

import copy

from scaleout._runtime import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

METHOD_OPTIONS = ("max_task_retries", "num_returns", "timeout_s")


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
        method = self.__dict__[name] = ActorMethod(self, name, options_of(self, name))
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
        self._options = method_options(options)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it: a reference to the result. The calls of one caller are run in their order."""
        return session.default_client().call_actor(self._hold, self._name, args, kwargs, self._options)

    def options(self, **options: Any) -> ActorMethod:
        """The same method with other options, for a call."""
        session.check_options(options, METHOD_OPTIONS)
        other = copy.copy(self)
        other._given = {**self._given, **options}
        other._options = method_options(other._given)
        return other

    def __repr__(self) -> str:
        return f"<method {self._name} of the actor {self._id:016x}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a method of an actor is not called directly: use .{self._name}.remote(...)")


def options_of(handle: ActorHandle, name: str) -> dict[str, Any]:
    """Those of the actor's method of this name. AttributeError if there is none."""
    known = handle.__dict__
    if name.startswith("__") or name not in known.get("_methods", ()):
        raise AttributeError(f"the actor class {known.get('_class_name')} has no method {name!r}")
    found: dict[str, Any] = known["_methods"][name]
    return found


def method_options(options: dict[str, Any]) -> Any:
    names = {"max_task_retries": "max_retries"}
    return session.task_options(**{names.get(name, name): value for name, value in options.items()})


def find_handle(actor_id: int, class_name: str, name: str, methods: dict[str, Any]) -> ActorHandle:
    """What a pickled handle becomes."""
    return ActorHandle(actor_id, session.default_client().find_hold(actor_id), class_name, name, methods)
