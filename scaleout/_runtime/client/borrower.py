"""Tasks and objects in a worker: what tasks submit, put and wait for is their owner's to keep.

The same methods as `client.tasks.OwnerClient`; see `process.requests` for how a worker talks to its owner while its
own tasks run.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import marshal
import threading
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.base.references import Held, ObjectRef, collected
from scaleout._runtime.client.graph import Options, with_dependencies
from scaleout._runtime.client.lines import Answer, Lines
from scaleout._runtime.client.outcomes import Failure, outcome
from scaleout._runtime.client.streams import StreamOfRefs
from scaleout._runtime.client.task_errors import task_exceptions
from scaleout._runtime.pickling.encode import Encoder
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ForeignSessionError, InfeasibleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from scaleout._runtime.process.worker import Worker


class BorrowedFunction:
    """A function that the owner knows by a number of ours."""

    __slots__ = ("function", "number")

    def __init__(self, function: Any, number: int) -> None:
        self.function = function
        self.number = number


class WorkerClient:
    """See the module's docstring."""

    is_closed = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._requests = worker.need_requests()
        self._encoder = Encoder(worker.namespace.requests)
        self._function_numbers = itertools.count(1)
        self._methods: dict[str, BorrowedFunction] = {}
        self._lines = Lines(worker)

    # -- submitting ------------------------------------------------------------------------------

    def prepare(self, function: Any) -> BorrowedFunction:
        """The function, pickled and sent to the owner."""
        record = BorrowedFunction(function, next(self._function_numbers))
        flag, payload, names = self._pack(function)
        self._requests.send(
            frame(
                frames.FUNCTION,
                marshal.dumps((payload, names, function if type(function) is str else function.__qualname__)),
                flag=flag,
                number=record.number,
            )
        )
        return record

    def submit(self, record: BorrowedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """Queue a call: its reference, or several of them."""
        return self._submit(None, record, args, kwargs, options)

    def _submit(
        self, target: Any, record: BorrowedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Any:
        dependencies: Any = ()
        if any(type(value) is ObjectRef for value in (*args, *kwargs.values())):
            args, kwargs, dependencies = with_dependencies(args, kwargs)
        how: int
        value: Any
        how, value = frames.CALL_ARGS, args
        if target is not None or kwargs or dependencies:
            how, value = frames.CALL_ARGS_KWARGS if target is None else frames.METHOD, (args, kwargs)
        (flag, payload, names), contained = collected(self._pack, value)
        if target is not None and not (flag or names or dependencies or contained):
            line = self._lines.for_call(target, options)
            if line is not None and (ref := line.call(record.function, how, payload)) is not None:
                return ref
        requests = self._requests
        object_ids = [requests.next_id() for _ in range(max(options.returns, 1 if options.returns < 0 else 0))]
        refs = [ObjectRef(object_id, requests.held.made(object_id)) for object_id in object_ids]
        said = (
            0 if target is None else target.id,
            record.number,
            how,
            payload,
            bool(flag & frames.STORED),
            object_ids,
            [self._id_of(ref) for ref in dependencies],
            [ref._id for ref in contained],
            options.returns,
            self._plain(options),
            names,
        )
        if target is not None:
            self._lines.goes_by_owner(target, refs[0]._id if options.returns == 1 else -1)
        requests.send(frame(frames.SUBMIT, marshal.dumps(said), flag=flag))
        if options.returns < 0:
            return StreamOfRefs(self, refs[0])
        if options.returns == 1:
            return refs[0]
        return refs or None

    def _plain(self, options: Options) -> dict[str, Any]:
        plain = options.plain()
        kinds = options.retry_exceptions
        if not isinstance(kinds, bool):
            plain["retry_exceptions"] = b"".join(self._encoder.encode(kinds).chunks)
        return plain

    def next_of_stream(self, stream: ObjectRef, position: int, deadline: float | None) -> ObjectRef | None:
        """The reference to a stream's item, when it is there. None beyond the end."""
        object_id = self._requests.ask(("next_item", stream._id, position))
        if object_id is None:
            return None
        (held,) = self._requests.held.handed_over([object_id])
        self._requests.want([object_id], 1, False, deadline)
        if self._requests.ask(("is_end", object_id)):
            return None
        return ObjectRef(object_id, held)

    def drop_stream(self, stream: ObjectRef) -> None:
        """Nobody will take more of it: its reference dies now."""

    def _pack(self, value: Any) -> tuple[int, bytes, tuple[Any, ...]]:
        """(flag, payload, names of the owner's that are in it)"""
        encoded = self._encoder.encode(value)
        names: tuple[Any, ...] = tuple(encoded.needs)
        if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
            return frames.STORED, self._worker.store(encoded), names
        return 0, b"".join(encoded.chunks), names

    # -- actors ----------------------------------------------------------------------------------

    def call_actor(self, hold: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """As `submit`, of a method."""
        record = self._methods.get(name)
        if record is None:
            record = self._methods[name] = self.prepare(name)
        return self._submit(hold, record, args, kwargs, options)

    def create_actor(
        self, record: BorrowedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> tuple[int, Any]:
        """Start an actor: (its number, its hold). ValueError if its name is taken."""
        requests = self._requests
        if options["shape"] and (reason := requests.ask(("infeasible", options["shape"]))):
            raise InfeasibleError(reason)
        args, kwargs, dependencies = with_dependencies(args, kwargs)
        (flag, payload, names), contained = collected(self._pack, (args, kwargs))
        actor_id = requests.next_id()
        hold = requests.held.made(actor_id)
        said = (
            actor_id,
            record.number,
            payload,
            bool(flag & frames.STORED),
            [self._id_of(ref) for ref in dependencies],
            [ref._id for ref in contained],
            options,
            names,
        )
        requests.send(frame(frames.CREATE_ACTOR, marshal.dumps(said), flag=flag))
        if options["name"] and not requests.ask(("is_actor", actor_id)):
            raise ValueError(
                f"there is an actor named {options['name']!r} already in namespace {options['namespace']!r}"
            )
        return actor_id, hold

    @functools.cached_property
    def namespace(self) -> str:
        """Where names of actors are looked up that come without one."""
        found: str = self._requests.ask(("namespace",))
        return found

    @functools.cached_property
    def steward(self) -> str:
        """See `OwnerClient.steward`."""
        found: str = self._requests.ask(("steward",))
        return found

    def kill_actor(self, hold: Any, may_restart: bool) -> None:
        self._lines.close(hold)
        self._requests.ask(("kill_actor", hold.id, may_restart))

    def find_actor(self, namespace: str, name: str) -> tuple[int, Any, dict[str, Any]] | None:
        """(number, hold, options) of the living actor of that name."""
        found = self._requests.ask(("find_actor", namespace, name))
        if found is None:
            return None
        (held,) = self._requests.held.handed_over([found[0]])
        return found[0], held, found[1]

    def actor_names(self) -> list[tuple[str, str]]:
        return [tuple(pair) for pair in self._requests.ask(("actor_names",))]

    # -- objects ---------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef:
        """Keep a value, at the owner's."""
        requests = self._requests
        (flag, body, _), contained = collected(self._pack, value)
        object_id = requests.next_id()
        ref = ObjectRef(object_id, requests.held.made(object_id))
        if contained:
            flag |= frames.HAS_REFERENCES
            body = marshal.dumps((body, [inner._id for inner in contained]))
        requests.send(frame(frames.PUT, body, flag=flag, number=object_id))
        return ref

    def get(self, refs: Sequence[ObjectRef], deadline: float | None) -> list[Any] | None:
        """The values, in order; raises the first failure. None: the deadline came first."""
        here = {hold.id: hold for hold in [ref._hold for ref in refs] if type(hold) is Answer and hold.wait(deadline)}
        ids = [ref._id if ref._id in here else self._id_of(ref) for ref in refs]
        there = [object_id for object_id in dict.fromkeys(ids) if object_id not in here]
        found: dict[int, tuple[int, bytes]] = {}
        if there:
            want = self._requests.want(there, len(there), True, deadline)
            if want is None:
                return None
            found = want.values
            if len(ids) == 1:
                self._lines.got(ids[0])
        values: dict[int, Any] = {}
        try:
            for object_id in dict.fromkeys(ids):
                answer = here.get(object_id)
                values[object_id] = self._value_of(*(found.pop(object_id) if answer is None else answer.content))
        finally:
            for flag, body in found.values():
                self._worker.discard(flag, body)
        return [values[object_id] for object_id in ids]

    def _value_of(self, flag: int, body: bytes) -> Any:
        status = flag & frames.STATUS_MASK
        if status == frames.OK:
            try:
                return self._worker.load_object(flag, body)
            except BaseException as error:  # noqa: BLE001 - the user's, in rebuilding the value
                failure = Failure(frames.RESULT_NOT_UNPICKLED, error)
            raise task_exceptions.exception_of(failure)
        payload = marshal.loads(body)
        if flag & frames.STORED:
            payload = (_Loader(self._worker, payload[0]), *payload[1:])
        failure = outcome(status, payload)[1]
        raise task_exceptions.exception_of(failure)

    def wait(self, refs: Sequence[ObjectRef], enough: int, deadline: float | None) -> set[int]:
        """Positions of those that are there, when `enough` are or the deadline has come."""
        ids = [self._id_of(ref) for ref in refs]
        want = self._requests.want(ids, enough, False, deadline)
        ready = want.ready if want is not None else self._requests.ask(("there", ids))
        there = set(ready or ())
        return {position for position, object_id in enumerate(ids) if object_id in there}

    def future_of(self, ref: ObjectRef) -> concurrent.futures.Future[Any]:
        """See `ObjectRef.future`. A thread waits for it."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        threading.Thread(target=partial(self._fill, future, ref), daemon=True).start()
        return future

    def _fill(self, future: concurrent.futures.Future[Any], ref: ObjectRef) -> None:
        try:
            values = self.get([ref], None)
            assert values is not None
        except BaseException as error:  # noqa: BLE001 - the task's
            settle = partial(future.set_exception, error)
        else:
            settle = partial(future.set_result, values[0])
        try:
            settle()
        except concurrent.futures.InvalidStateError:
            pass  # it was cancelled, as by `asyncio.wait_for`

    def cancel(self, ref: ObjectRef, force: bool, is_recursive: bool) -> None:
        self._requests.ask(("cancel", self._id_of(ref), force, is_recursive))

    # -- references ------------------------------------------------------------------------------

    def _id_of(self, ref: ObjectRef) -> int:
        hold = ref._hold
        if type(hold) is Answer:
            hold = ref._hold = hold.share()
        if type(hold) is not Held:
            raise ForeignSessionError(f"{ref!r} belongs to another session")
        return ref._id

    def reference_of(self, object_id: int) -> ObjectRef:
        """For one that is unpickled here."""
        return ObjectRef(object_id, self.find_hold(object_id))

    def find_hold(self, object_id: int) -> Held:
        return self._requests.held.find(object_id)

    def exported(self, ref: ObjectRef) -> None:
        """User code pickles a reference: the owner finds it as long as somebody holds it."""

    def describe(self, ref: ObjectRef) -> str:
        return "of another process"

    def check(self) -> None:
        pass

    def resources(self) -> Any:
        """(what there is, what is in use), in milli-units."""
        return self._requests.ask(("resources",))

    def close(self) -> None:
        pass


class _Loader:
    def __init__(self, worker: Worker, body: bytes) -> None:
        self._worker = worker
        self._body = body

    def load(self) -> Any:
        return self._worker.exchange.load(self._body)
