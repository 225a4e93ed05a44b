"""SCALEOUT_INLINE=1: tasks and actors in the thread that calls them, for debuggers and coverage.

A task runs when it is submitted, an actor is an object here; nothing is pickled. The same methods as
`client.tasks.OwnerClient`.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import itertools

from scaleout._runtime.base.references import ObjectRef
from scaleout.errors import ActorDiedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.client.graph import Options


class _Ended:
    """What became of a call."""

    __slots__ = ("__weakref__", "error", "value")

    def __init__(self, value: Any, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error


class _Actor:
    __slots__ = ("__weakref__", "death", "instance", "options")

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.instance: Any = None
        self.death: BaseException | None = None


class InlineClient:
    """See the module's docstring."""

    is_closed = False
    namespace = ""
    steward = ""

    def __init__(self, settings: Settings) -> None:
        self._cpus = settings.num_cpus
        self._ids = itertools.count(1)
        self._named: dict[tuple[str, str], tuple[int, _Actor]] = {}

    # -- tasks -----------------------------------------------------------------------------------

    def prepare(self, function: Any) -> Any:
        return function

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Any:
        """Run the call now; as for others, its exception is raised where its result is asked for."""
        try:
            result = function(*map(self._value, args), **{name: self._value(value) for name, value in kwargs.items()})
            if inspect.iscoroutine(result):
                import asyncio

                result = asyncio.run(result)
            if options.returns < 0:
                return map(self.put, result)
            if options.returns == 1:
                return self.put(result)
            results = list(result) if options.returns else []
            if len(results) != options.returns:
                raise ValueError(
                    f"the task was to return {options.returns} values (num_returns), and returned {len(results)}"
                )
        except (KeyboardInterrupt, SystemExit):
            raise  # it is the user's own thread
        except BaseException as error:  # noqa: BLE001 - the task's own
            refs = [ObjectRef(next(self._ids), _Ended(None, error)) for _ in range(max(1, options.returns))]
            return refs[0] if options.returns == 1 else iter(refs) if options.returns < 0 else refs
        return [self.put(value) for value in results] or None

    def _value(self, value: Any) -> Any:
        return self._get(value) if type(value) is ObjectRef else value

    # -- objects ---------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef:
        return ObjectRef(next(self._ids), _Ended(value))

    def _get(self, ref: ObjectRef) -> Any:
        ended = ref._hold
        if ended.error is not None:
            raise ended.error
        return ended.value

    def get(self, refs: Sequence[ObjectRef], deadline: float | None) -> list[Any]:
        return [self._get(ref) for ref in refs]

    def wait(self, refs: Sequence[ObjectRef], enough: int, deadline: float | None) -> set[int]:
        return set(range(len(refs)))

    def future_of(self, ref: ObjectRef) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if ref._hold.error is not None:
            future.set_exception(ref._hold.error)
        else:
            future.set_result(ref._hold.value)
        return future

    def cancel(self, ref: ObjectRef, force: bool, is_recursive: bool) -> None:
        pass  # it has ended

    def exported(self, ref: Any) -> None:
        raise TypeError("a reference cannot be pickled while SCALEOUT_INLINE is on")

    def describe(self, ref: ObjectRef) -> str:
        return "ready" if ref._hold.error is None else "failed"

    # -- actors ----------------------------------------------------------------------------------

    def create_actor(
        self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> tuple[int, _Actor]:
        key = (options["namespace"], options["name"])
        if options["name"] and key in self._named:
            raise ValueError(f"there is an actor named {key[1]!r} already in namespace {key[0]!r}")
        actor_id, actor = next(self._ids), _Actor(options)
        try:
            actor.instance = cls(
                *map(self._value, args), **{name: self._value(value) for name, value in kwargs.items()}
            )
        except Exception as error:  # noqa: BLE001 - the constructor's own
            actor.death = ActorDiedError(
                f"the actor {options['class_name']} is dead: its constructor raised an exception",
                class_name=options["class_name"],
                name=options["name"],
            )
            actor.death.__cause__ = error
        if options["name"]:
            self._named[key] = actor_id, actor
        return actor_id, actor

    def call_actor(
        self, actor: _Actor, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if actor.death is not None:
                raise actor.death
            return getattr(actor.instance, name)(*args, **kwargs)

        return self.submit(call, args, kwargs, options)

    def kill_actor(self, actor: _Actor, may_restart: bool) -> None:
        actor.death = ActorDiedError(
            f"the actor {actor.options['class_name']} is dead: it was killed by scaleout.kill",
            class_name=actor.options["class_name"],
            name=actor.options["name"],
        )
        self._named = {key: found for key, found in self._named.items() if found[1] is not actor}

    def find_actor(self, namespace: str, name: str) -> tuple[int, _Actor, dict[str, Any]] | None:
        found = self._named.get((namespace, name))
        return None if found is None else (*found, found[1].options)

    def actor_names(self) -> list[tuple[str, str]]:
        return sorted(self._named)

    # -- looking ---------------------------------------------------------------------------------

    def resources(self) -> tuple[dict[str, int], dict[str, int]]:
        return {"CPU": self._cpus * 1000}, {}

    def list_tasks(self) -> list[dict[str, Any]]:
        return []

    list_actors = list_objects = list_tasks

    def write_trace(self, path: str) -> int:
        from scaleout._runtime.node.history import write_trace

        return write_trace(path, (), ())

    def close(self) -> None:
        self.is_closed = True
