"""Tasks and objects in a worker: what tasks submit, put and wait for is their owner's to keep.

The same methods as `client.tasks.OwnerClient`; see `process.requests` for how a worker talks to its owner while its
own tasks run.
"""

from __future__ import annotations

import concurrent.futures
import marshal
import threading
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.base.references import Collected, Held, ObjectRef
from scaleout._runtime.client.graph import Options, with_dependencies
from scaleout._runtime.client.outcomes import outcome
from scaleout._runtime.client.task_errors import task_exceptions
from scaleout._runtime.pickling.encode import Encoder
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ForeignSessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from scaleout._runtime.process.worker import Worker


class BorrowedFunction:
    """A function that the owner knows by a number of ours."""

    __slots__ = ("function", "number")

    def __init__(self, function: Callable[..., Any], number: int) -> None:
        self.function = function
        self.number = number


class WorkerClient:
    """See the module's docstring."""

    is_closed = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._requests = worker.need_requests()
        self._encoder = Encoder(worker.namespace.requests)
        self._functions = 0
        self._records: dict[Any, BorrowedFunction] = {}

    # -- submitting ------------------------------------------------------------------------------

    def prepare(self, function: Callable[..., Any]) -> BorrowedFunction:
        """The function, pickled and sent to the owner."""
        self._functions += 1
        record = BorrowedFunction(function, self._functions)
        flag, payload, names = self._pack(function)
        self._requests.send(
            frame(frames.FUNCTION, marshal.dumps((payload, names)), flag=flag, number=record.number)
        )
        return record

    def submit(self, record: BorrowedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options) -> Any:
        """Queue a call: its reference, or several of them."""
        return self.submit_to(0, record, args, kwargs, options)

    def submit_to(
        self, target: int, record: BorrowedFunction, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> Any:
        if options.returns < 0:
            raise NotImplementedError
        dependencies: Any = ()
        if any(type(value) is ObjectRef for value in (*args, *kwargs.values())):
            args, kwargs, dependencies = with_dependencies(args, kwargs)
        with Collected() as contained:
            if kwargs or dependencies:
                how, value = frames.CALL_ARGS_KWARGS, (args, kwargs)
            else:
                how, value = frames.CALL_ARGS, args
            flag, payload, names = self._pack(value)
        requests = self._requests
        object_ids = [requests.next_id() for _ in range(options.returns)]
        refs = [ObjectRef(object_id, requests.held.made(object_id)) for object_id in object_ids]
        said = (
            target,
            record.number,
            how,
            payload,
            bool(flag & frames.STORED),
            object_ids,
            [ref._id for ref in dependencies],
            [ref._id for ref in contained],
            options.returns,
            options.plain(),
            names,
        )
        requests.send(frame(frames.SUBMIT, marshal.dumps(said)))
        if options.returns == 1:
            return refs[0]
        return refs or None

    def _pack(self, value: Any) -> tuple[int, bytes, tuple[Any, ...]]:
        """(flag, payload, names of the owner's that are in it)"""
        encoded = self._encoder.encode(value)
        names: tuple[Any, ...] = tuple(encoded.needs)
        if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
            return frames.STORED, self._worker.store(encoded), names
        return 0, b"".join(encoded.chunks), names

    # -- objects ---------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef:
        """Keep a value, at the owner's."""
        requests = self._requests
        with Collected() as contained:
            flag, body, _ = self._pack(value)
        object_id = requests.next_id()
        ref = ObjectRef(object_id, requests.held.made(object_id))
        if contained:
            flag |= frames.HAS_REFERENCES
            body = marshal.dumps((body, [inner._id for inner in contained]))
        requests.send(frame(frames.PUT, body, flag=flag, number=object_id))
        return ref

    def get(self, refs: Sequence[ObjectRef], deadline: float | None) -> list[Any] | None:
        """The values, in order; raises the first failure. None: the deadline came first."""
        ids = [self._id_of(ref) for ref in refs]
        distinct = list(dict.fromkeys(ids))
        if not distinct:
            return []
        want = self._requests.want(distinct, len(distinct), True, deadline)
        if want is None:
            return None
        values: dict[int, Any] = {}
        try:
            for object_id in distinct:
                values[object_id] = self._value_of(*want.values.pop(object_id))
        finally:
            for flag, body in want.values.values():
                self._worker.discard(flag, body)
        return [values[object_id] for object_id in ids]

    def _value_of(self, flag: int, body: bytes) -> Any:
        status = flag & frames.STATUS_MASK
        if status == frames.OK:
            return self._worker.load_object(flag, body)
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
            future.set_exception(error)
        else:
            future.set_result(values[0])

    def cancel(self, ref: ObjectRef, force: bool) -> None:
        self._requests.ask(("cancel", self._id_of(ref), force))

    # -- references ------------------------------------------------------------------------------

    def _id_of(self, ref: ObjectRef) -> int:
        if type(ref._hold) is not Held:
            raise ForeignSessionError(f"{ref!r} belongs to another session")
        return ref._id

    def reference_of(self, object_id: int) -> ObjectRef:
        """For one that is unpickled here."""
        return ObjectRef(object_id, self._requests.held.find(object_id))

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
