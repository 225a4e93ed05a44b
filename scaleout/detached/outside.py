"""Handles of detached actors, in the programs that call them."""

from __future__ import annotations

from scaleout._runtime import session
from scaleout.handles import ActorHandle, ActorMethod, options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACE = "\0scaleout"  # which no user has
NAME = "envoy"


class DetachedHandle(ActorHandle):
    """As any handle; but the actor lives on without it, until it is killed or leaves. `key` is the steward's number."""

    def __init__(self, key: int, namespace: str, class_name: str, name: str, methods: dict[str, Any]) -> None:
        super().__init__(key, None, class_name, name, methods)
        self._namespace = namespace

    def __getattr__(self, name: str) -> DetachedMethod:
        method = self.__dict__[name] = DetachedMethod(self, name, options_of(self, name))
        return method

    def __reduce__(self) -> Any:
        return DetachedHandle, (self._id, self._namespace, self._class_name, self._name, self._methods)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DetachedHandle) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<detached actor {self._class_name} {self._name!r}, {self._id:016x}>"


class DetachedMethod(ActorMethod):
    """A method of a detached actor."""

    def __init__(self, handle: DetachedHandle, name: str, options: dict[str, Any]) -> None:
        super().__init__(handle, name, options)
        self._label = f"{handle._class_name}.{name}"

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        of_call = self._options
        said = of_call.returns, of_call.max_retries, of_call.timeout_s
        is_stream = of_call.returns < 0
        options = session.task_options(num_returns="streaming" if is_stream else of_call.returns, name=self._label)
        options.channel = self._id
        return _tell("stream" if is_stream else "call", (self._id, self._name, said, *args), kwargs, options)


def create(cls: type, options: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> DetachedHandle:
    """Start a detached actor, `options` being those of `session.actor_options`. ValueError if its name is taken."""
    key = _ask("create", (cls, options, *args), kwargs)
    return _handle(key, options)


def find(namespace: str, name: str) -> DetachedHandle | None:
    """The living one of this name."""
    found = _ask("find", (namespace, name))
    return None if found is None else _handle(*found)


def kill(handle: ActorHandle, may_restart: bool) -> None:
    _ask("kill", (handle._id, may_restart))


def _handle(key: int, options: dict[str, Any]) -> DetachedHandle:
    names = (options[name] for name in ("namespace", "class_name", "name", "methods"))
    return DetachedHandle(key, *names)


def _ask(method: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    ref = _tell(method, args, kwargs or {}, session.task_options())
    return session.default_client().get([ref], None)[0]


def _tell(method: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Any) -> Any:
    client, hold = _envoy()
    return client.call_actor(hold, method, args, kwargs, options)


_known: Any = (None, None)  # a client, and its envoy's hold


def _envoy() -> tuple[Any, Any]:
    """(this process's client, the hold of the program's envoy, which lives as long as the program's session)"""
    global _known
    client = session.default_client()
    if _known[0] is not client or getattr(_known[1], "death", None):
        found = client.find_actor(NAMESPACE, NAME)
        if found is None:
            try:
                hold = _send_out(client)
            except ValueError:  # another thread or task was faster
                hold = client.find_actor(NAMESPACE, NAME)[1]
        else:
            hold = found[1]
        _known = client, hold
    return _known


def _send_out(client: Any) -> Any:
    from scaleout.detached.envoy import Envoy

    options = session.actor_options(
        class_name="Envoy",
        methods={},
        is_async=True,
        max_concurrency=Envoy.CALLS,
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        on_failure="restart",
    )
    _, hold = client.create_actor(client.prepare(Envoy), (client.steward,), {}, options)
    return hold
