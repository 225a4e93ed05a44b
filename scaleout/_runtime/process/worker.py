"""A worker: takes tasks off its link one after another and runs them in the main thread.

    bytes from the owner -> frames -> queue -> [claim, decode, run, encode, send] -> next

Each result is sent before the next task is claimed: nothing could flush a batch while user code runs, and a death
would take finished results along. What the worker has claimed stands in its control page, so that the owner can
take back the rest, and knows what was running when the worker dies.
"""

from __future__ import annotations

import marshal
import os
import pickle
import signal
import socket
import sys
import threading
import time
from _thread import get_ident
from collections import deque
from functools import partial

from scaleout._runtime.base import context, limits
from scaleout._runtime.base.references import collected, with_values
from scaleout._runtime.pickling.plain import dumps, is_plain
from scaleout._runtime.process import actors, identity, initargs
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.control_page import (
    CLAIMED,
    IN_USER_CODE,
    INTERRUPTED,
    ITEM_INDEX,
    REVOKED_FROM,
    RUNNING,
    SINCE_NS,
)
from scaleout._runtime.wire.frames import HEADER, frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType
    from typing import Any

    from scaleout._runtime.pickling.encode import Encoder
    from scaleout._runtime.pickling.namespace import Namespace
    from scaleout._runtime.process.lines import Lines
    from scaleout._runtime.process.requests import Requests
    from scaleout._runtime.store.exchange import Exchange

pack = HEADER.pack
loads = pickle.loads
monotonic_ns = time.monotonic_ns


class LinkClosed(Exception):
    """The owner is gone, or done with this worker."""


class Referring(bytes):
    """A body that names references: it keeps them until it is sent. If they died before, their release would be on its
    way before the body that hands them on."""

    references: Any


class Shield:
    """See `Worker.shielded`. Only the main thread is ever struck."""

    __slots__ = ("_was", "_worker")

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._was: bool | None = None

    def __enter__(self) -> None:
        if get_ident() == self._worker.main_ident:
            self._was = self._worker.interruptible
            self._worker.interruptible = False

    def __exit__(self, *exception: object) -> None:
        if self._was is not None:
            self._worker.interruptible = self._was


class Worker:
    """The state of this process as a worker; there is one."""

    def __init__(self, link: Link, worker_id: int, depth: int) -> None:
        self.link = link
        self.worker_id = worker_id
        self.depth = depth
        self.queue: deque[tuple[int, int, int, int, bytes]] = deque()
        self.callables: dict[int, Any] = {}
        self.callable_bytes: dict[int, tuple[int, bytes]] = {}
        self.definitions: deque[tuple[int, int, bytes]] = deque()
        self.words: memoryview = memoryview(bytearray(8 * control_page.WORDS)).cast("Q")
        self.namespace: Namespace = None  # type: ignore[assignment]  # made by HELLO
        self.encoder: Encoder = None  # type: ignore[assignment]
        self._exchange: Exchange | None = None
        self.main_ident = get_ident()
        self.interruptible = False
        self.has_exit = False
        self.is_reading = False  # the main thread is, for itself: there are no requests yet
        self.nesting = 0  # tasks that run here, each inside the one that waits for it
        self.requests: Requests | None = None
        self.arrived: dict[int, tuple[int, bytes]] = {}  # what the next task depends on
        self.collects = False  # references in results are counted
        self.hosts_actor = False
        self.is_skipping = False  # a call of the actor's could not be decoded: what follows it comes again, in order
        self.is_returning = False  # a call of the actor's waited: what follows is given back, also after the wait
        self.concurrent: Any = None  # actors.ThreadedActor or AsyncActor: calls run beside each other
        self.checkpoints: actors.Checkpoints | None = None
        self.lines: Lines | None = None  # of other workers, to the actor here
        self._storing = threading.RLock()
        self._meeting = threading.RLock()  # of the main thread, which reads for itself, and whoever makes `Requests`
        self.context = context.WorkerContext(worker_id, depth, self.open_channel, {}, self)

    # -- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the owner says EXIT or is gone."""
        queue = self.queue
        try:
            while True:
                if isinstance(self.concurrent, actors.AsyncActor):
                    self.concurrent.run()
                    return
                while queue:
                    if self.lines is not None:  # what was sent there before this comes first
                        self.lines.serve()
                    entry = queue.popleft()
                    if entry[0] == frames.TASK:
                        self.execute(*entry[1:])
                    else:
                        self.obey(*entry)
                if self.lines is not None and self.lines.is_ready:
                    self.lines.serve()
                else:
                    self.receive()
        except (LinkClosed, BrokenPipeError, ConnectionResetError):
            pass

    def receive(self) -> None:
        """Wait for frames and queue them."""
        exchange = self._exchange
        if exchange is not None:
            self.report_released()
        if self.has_exit:
            raise LinkClosed
        if exchange is not None and exchange.is_used and not _is_readable((self.link, self.lines), limits.WARM_SECONDS):
            exchange.trim()
        if self.requests is not None:
            self.requests.wait_for_work()
            return
        if not self.goes_reading():
            return
        data = self.link.receive()
        if not data:
            raise LinkClosed
        self.queue.extend(self.sorted_out(data))

    def goes_reading(self) -> bool:
        """The main thread is about to read for itself; False if there are `Requests` since a moment ago, by which it
        must."""
        with self._meeting:
            self.is_reading = self.requests is None
            return self.is_reading

    def stops_reading(self) -> None:
        """What it has read is kept. Who has made `Requests` meanwhile may read from now on."""
        with self._meeting:
            self.is_reading = False
        if self.requests is not None:
            self.requests.main_is_back()

    def sorted_out(self, data: bytes) -> Sequence[tuple[int, int, int, int, bytes]]:
        """The frames in what the main thread has read for itself. If there are `Requests` since a moment ago, they get
        it: some of it may be for the thread that has made them."""
        if self.requests is not None:
            self.is_reading = False
            self.requests.main_has_read(data)
            return ()
        entries = []
        for entry in self.link.frames(data):
            if entry[0] in frames.AT_ONCE:
                self.obey(*entry)
            else:
                entries.append(entry)
        self.stops_reading()
        return entries

    def obey(self, kind: int, flag: int, aux: int, number: int, body: bytes) -> None:
        """Everything that is not a task."""
        if kind == frames.CALLABLE:
            self.callable_bytes[number] = (flag, body)
        elif kind == frames.DEFINITION:
            self.definitions.append((flag, number, body))
        elif kind == frames.FORGET:
            for number in marshal.loads(body):
                self.callables.pop(number, None)
                self.callable_bytes.pop(number, None)
        elif kind == frames.FORGET_DEFINITIONS:
            self.namespace.forget(marshal.loads(body))
        elif kind == frames.FREE:
            with self._storing:
                self.exchange.free(marshal.loads(body))
            self.words[control_page.USED_BYTES] = self.exchange.used_bytes
        elif kind == frames.SEGMENT:
            self.exchange.add(number, self.link.fds.popleft(), *marshal.loads(body))
        elif kind == frames.OBJECT:
            self.arrived[number] = (flag, body)
        elif kind == frames.RESUME:
            self.is_skipping = self.is_returning = False
        elif kind == frames.CANCEL:
            if self.concurrent is not None:
                self.concurrent.cancel(number)
        elif kind == frames.LINE:
            self.add_line(flag, aux, number)
        elif kind == frames.HELLO:
            self.hello(marshal.loads(body))
        elif kind == frames.LOOSE_FD:
            initargs.received.append(self.link.fds.popleft())
        elif kind == frames.INITIALIZE:
            self.initialize(flag, body)
        elif kind == frames.TRACKER:
            identity.use_resource_tracker(self.link.fds.popleft())
        elif kind == frames.EXIT:
            self.has_exit = True

    def hello(self, info: dict[str, Any]) -> None:
        fd = self.link.fds.popleft()
        self.words = control_page.map_page(fd, info["page"])
        os.close(fd)
        os.environ.update(info["environment"] or {})
        if info["modules"] is not None:
            from scaleout._runtime.process import sources

            self.context.sources = sources.install(self, *info["modules"])
        working_dir = info.get("working_dir")
        if working_dir is not None:
            if isinstance(working_dir, bytes):  # the hash of one that lies on the owner's machine
                working_dir = self.context.sources.unpacked(working_dir)
            os.chdir(working_dir)
            sys.path.insert(0, working_dir)
        identity.assume(info)
        if info.get("records"):
            import logging

            from scaleout._runtime.process.records import OwnersHandlers

            is_far = info["modules"] is not None
            logging.getLogger().addHandler(
                OwnersHandlers(self, limits.OUTPUT_BYTES_PER_SECOND if is_far else float("inf"))
            )
        self.context.session_info = info
        context.current = self.context
        from scaleout._runtime.pickling import reducers
        from scaleout._runtime.pickling.encode import Encoder
        from scaleout._runtime.pickling.namespace import Namespace

        self.namespace = Namespace()
        self.namespace.setup_main(info["main"])
        self.namespace.results.takes_nameless = info["takes_nameless"]
        self.collects = info.get("collects", False)
        of_actor = info.get("actor")
        if of_actor is not None:
            self.host_actor(**of_actor)
        self.encoder = Encoder(self.namespace.results, reducers.of_module(info["reducers"]))

    def initialize(self, flag: int, body: bytes) -> None:
        """Run the initializer; READY or INITIALIZER_FAILED, after which the process ends.

        Ctrl-C does not interrupt it: it would count as a failure, and the pool is to stay usable.
        """
        failure = None
        if body:
            try:
                self.define_pending()
                initializer, arguments = self.decode(flag, body)
                self.words[IN_USER_CODE] = 1
                initializer(*arguments)
            except BaseException as error:
                failure = error
            self.words[IN_USER_CODE] = 0
        if failure is None:
            self.send(frame(frames.READY))
            return
        flag, payload = self.encode_failure(frames.TASK_RAISED, failure)
        self.send(frame(frames.INITIALIZER_FAILED, payload, flag=flag & frames.STORED))
        code = failure.code if isinstance(failure, SystemExit) else 1
        leave(code if isinstance(code, int) else 1)

    # -- the task path ---------------------------------------------------------------------------

    def execute(self, how: int, callable_id: int, sequence: int, payload: bytes) -> None:
        words = self.words
        if self.is_skipping:
            self.forget_task(how, payload)
            self.forget_dependencies()
            return
        if self.is_returning:
            self.skip(how, sequence, payload)
            return
        started = monotonic_ns()
        words[SINCE_NS] = started
        words[CLAIMED] = words[RUNNING] = sequence
        if words[REVOKED_FROM] <= sequence:
            self.skip(how, sequence, payload)
            return
        if self.concurrent is not None and how & frames.HOW_MASK == frames.METHOD:
            self.start_concurrently(how, callable_id, payload, sequence)
            return
        status, answer = self.guarded(self.attempt, how, callable_id, payload, sequence)
        if self.arrived:
            self.forget_dependencies()
        if status < 0:
            return
        if how & frames.MAY_STAY and status & frames.STORED and not status & frames.STATUS_MASK:
            status |= frames.STAYS
        self.answer(sequence, status, answer, (monotonic_ns() - started) // 1000)
        if self.checkpoints is not None and how & frames.HOW_MASK == frames.METHOD:
            self.checkpoints.called(self)

    def guarded(self, attempt: Callable[..., tuple[int, bytes]], *arguments: Any) -> tuple[int, bytes]:
        """What a task came to, whenever Ctrl-C strikes."""
        self.nesting += 1
        try:
            status, answer = attempt(*arguments)
            self.interruptible = False
        except KeyboardInterrupt as error:  # arrived between two lines of ours
            status, answer = self.encode_failure(frames.TASK_RAISED, error)
        self.nesting -= 1
        return status, answer

    def answer(self, sequence: int, status: int, body: bytes, duration_us: int = 0) -> None:
        """Send a result. From any thread, if the actor here has several."""
        self.prepare_answer()
        self.send(pack(len(body), frames.RESULT, status, min(duration_us, 0xFFFFFFFF), sequence) + body)

    def prepare_answer(self) -> None:
        """What is to be there before a result is."""
        flush_output()
        if self._exchange is not None:
            self.report_released()  # so that the result's reader finds the ranges warm

    def help(self, how: int, callable_id: int, sequence: int, payload: bytes) -> None:
        """Run a task inside the one that waits for it."""
        words = self.words
        outer = words[RUNNING], words[SINCE_NS]
        self.execute(how, callable_id, sequence, payload)
        words[RUNNING], words[SINCE_NS] = outer
        self.interruptible = True

    def attempt(self, how: int, callable_id: int, payload: bytes, sequence: int) -> tuple[int, bytes]:
        """Decode, call, encode: (status, payload) for the result; (-1, b"") if the task went back undone."""
        self.interruptible = True
        try:
            function, arguments, returns = self.decode_call(how, callable_id, payload)
        except BaseException as error:
            self.interruptible = False
            return self.decoding_failed(error, sequence)
        return self.perform(how, function, arguments, returns, sequence)

    def perform(self, how: int, function: Any, arguments: Any, returns: int, sequence: int) -> tuple[int, bytes]:
        """Call, encode: (status, payload) for the result."""
        try:
            result = CALL[how & frames.HOW_MASK](self, function, arguments, how)
            if returns != 1:
                self.send_results(result, returns, sequence)
                result = None
        except BaseException as error:
            self.interruptible = False
            del arguments
            status = frames.TASK_EXITED if isinstance(error, SystemExit) else frames.TASK_RAISED
            return self.encode_failure(status, error)
        del arguments
        try:
            return self.pack(result)
        except BaseException as error:
            self.interruptible = False
            return self.encode_failure(frames.RESULT_NOT_PICKLED, error, result)
        finally:
            del result  # a traceback that the task keeps somewhere leads to this frame

    def decode_call(self, how: int, callable_id: int, payload: bytes) -> tuple[Any, Any, int]:
        """(function, arguments, number of results)"""
        returns = 1
        held = None
        dependencies: list[int] = []
        self.context.in_bootstrap = True
        try:
            if how & frames.ENVELOPE:
                payload, dependencies, references, returns = marshal.loads(payload)
                held = self.hold(references)
            if self.definitions:
                self.define_pending()
            function = self.callables.get(callable_id)
            if function is None:
                function = self.load_callable(callable_id)
            if how & frames.STORED:
                arguments = self.decode(how, payload)
            else:
                arguments = loads(payload)
            if dependencies:
                arguments = with_values(arguments, [self.take_dependency(number) for number in dependencies])
            return function, arguments, returns
        finally:
            self.context.in_bootstrap = False
            del held

    def pack(self, value: Any) -> tuple[int, bytes]:
        """(flag, body) of a result, or another value for the owner. Raises what pickling raises."""
        if is_plain(value):
            return frames.OK, dumps(value, 5)
        references: Any = None
        if self.collects or self.requests is not None:
            encoded, references = collected(self.encoder.encode, value)
        else:
            encoded = self.encoder.encode(value)
        flag = frames.OK
        if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
            body = self.store(encoded)
            flag |= frames.STORED
        else:
            chunks = encoded.chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if references:
            flag |= frames.HAS_REFERENCES
            body = Referring(marshal.dumps((body, [reference._id for reference in references])))
            body.references = references
        return flag, body

    def store(self, encoded: Any) -> bytes:
        """Copy a large value into our segments; what names its places."""
        with self._storing:
            body = self.exchange.store(encoded)
            self.words[control_page.USED_BYTES] = self.exchange.used_bytes
        return body

    def send_results(self, result: Any, count: int, sequence: int) -> None:
        """A task with several results: each goes on its own way. A negative count is that of the items which a stream
        may be ahead of its consumer."""
        if count == 0:
            return
        if count > 0:
            try:
                results = list(result)
            except TypeError:
                raise TypeError(
                    f"the task was to return {count} values (num_returns), and returned one {type(result).__name__}"
                ) from None
            if len(results) != count:
                raise ValueError(f"the task was to return {count} values (num_returns), and returned {len(results)}")
        else:
            results = result
        try:
            for position, value in enumerate(results):
                if count < 0:
                    self.need_requests().wait_until_taken(sequence, position + 1 + count)
                flag, body = self.pack(value)
                self.send(frame(frames.ITEM, body, flag=flag, aux=position, number=sequence))
        finally:
            if count < 0:
                self.need_requests().stream_ended(sequence)

    def load_callable(self, callable_id: int) -> Any:
        flag, body = self.callable_bytes[callable_id]
        function = self.decode(flag, body)
        self.callables[callable_id] = function
        return function

    def decode(self, flag: int, payload: bytes) -> Any:
        """A value whose stream or buffers may lie in the owner's segments."""
        if not flag & frames.STORED:
            return loads(payload)
        return self.exchange.load(payload)

    def define_pending(self) -> None:
        """Bind what came before this task. One that fails stays, so that each task that follows says so too."""
        while self.definitions:
            flag, number, body = self.definitions[0]
            if flag & frames.STORED:
                data, buffers = self.exchange.open(body)
                self.namespace.define(number, data, buffers)
            else:
                self.namespace.define(number, body, [])
            self.definitions.popleft()

    def decoding_failed(self, error: BaseException, sequence: int) -> tuple[int, bytes]:
        missing = self.namespace.missing_name(error)
        if missing is not None:
            self.is_skipping = self.hosts_actor
            self.send(frame(frames.NEED, marshal.dumps((*missing, describe(error))), number=sequence))
            return -1, b""
        return self.encode_failure(frames.ARGUMENT_NOT_UNPICKLED, error)

    def skip(self, how: int, sequence: int, payload: bytes) -> None:
        """The owner has taken this task back, and all that are queued behind it."""
        skipped = [sequence]
        self.forget_task(how, payload)
        kept = []
        while self.queue:
            entry = self.queue.popleft()
            if entry[0] == frames.TASK and entry[3] > sequence:
                skipped.append(entry[3])
                self.forget_task(entry[1], entry[4])
            elif entry[0] == frames.OBJECT:  # for one of these
                self.discard(entry[1], entry[4])
            else:
                kept.append(entry)
        self.queue.extend(kept)
        self.forget_dependencies()
        self.send(frame(frames.RETURNED, marshal.dumps(skipped)))

    def encode_failure(self, status: int, error: BaseException, value: Any = None) -> tuple[int, bytes]:
        """What became of a task that gave no result: (error pickled or None, traceback, repr of error, of value)."""
        pickled: bytes | None
        stored = 0
        text = describe(error)[: limits.FRAME_BYTES // 8]
        if isinstance(error, RecursionError):
            # With the frames of an endless recursion hanging on it, pickling it runs into the limit once more.
            error.__traceback__ = error.__context__ = None
        try:
            encoded = self.encoder.encode(error)
            if encoded.size_bytes > limits.INLINE_BYTES or encoded.buffers:
                pickled, stored = self.exchange.store(encoded), frames.STORED
            else:
                pickled = b"".join(encoded.chunks)
        except BaseException as pickling_error:
            pickled = None
            if status != frames.RESULT_NOT_PICKLED:
                status, value, error = frames.RESULT_NOT_PICKLED, error, pickling_error
                text = describe(error)[: limits.FRAME_BYTES // 8]
        code = error.code if isinstance(error, SystemExit) else None
        body = (
            pickled,
            text,
            safe_repr(error)[:10_000],
            safe_repr(value)[:10_000] if status == frames.RESULT_NOT_PICKLED else "",
            code if code is None or type(code) is int else 1,
        )
        return status | stored, marshal.dumps(body)

    # -- actors ------------------------------------------------------------------------------------

    def host_actor(self, concurrency: int, is_async: bool, checkpoint_every: int) -> None:
        """This worker is for an actor."""
        self.hosts_actor = True
        if is_async:
            self.concurrent = actors.AsyncActor(self, concurrency)
        elif concurrency > 1:
            self.need_requests()
            self.concurrent = actors.ThreadedActor(self, concurrency)
        if checkpoint_every:
            self.checkpoints = actors.Checkpoints(checkpoint_every)

    def add_line(self, is_to_caller: int, worker_id: int, actor_id: int) -> None:
        """Between another worker and this one: see `process.lines`."""
        fd = self.link.fds.popleft()
        if is_to_caller:
            fds = self.need_requests().line_fds
            if actor_id in fds:  # whoever asked for it was interrupted
                os.close(fds[actor_id][1])
            fds[actor_id] = worker_id, fd
            return
        if self.lines is None:
            from scaleout._runtime.process.lines import Lines

            self.lines = Lines(self)
            self.need_requests().lines_opened()
        self.lines.add(fd)

    def start_concurrently(self, how: int, callable_id: int, payload: bytes, sequence: int) -> None:
        """Decode here, in order; run elsewhere."""
        try:
            name, arguments, returns = self.decode_call(how, callable_id, payload)
        except BaseException as error:
            status, body = self.decoding_failed(error, sequence)
            self.forget_dependencies()
            if status >= 0:
                self.answer(sequence, status, body)
            return
        if isinstance(self.concurrent, actors.AsyncActor):
            self.concurrent.start(sequence, partial(self.run_async, name, arguments, returns, sequence))
        else:
            self.concurrent.start(sequence, partial(self.run_method, name, arguments, returns, sequence))

    def run_method(self, name: str, arguments: Any, returns: int, sequence: int) -> tuple[int, bytes]:
        """In a thread of the actor's."""
        try:
            result = actors.call_method(self, name, arguments, 0)
            if returns != 1:
                self.send_results(result, returns, sequence)
                result = None
        except BaseException as error:
            return self.failed(error)
        return self.packed(result)

    async def run_async(self, name: str, arguments: Any, returns: int, sequence: int) -> tuple[int, bytes]:
        """A task of the actor's event loop."""
        try:
            result = actors.call_method(self, name, arguments, 0)
            if hasattr(result, "__aiter__"):
                await self.stream(result, returns, sequence)
                result = None
            else:
                if hasattr(result, "__await__"):
                    result = await result
                if returns != 1:
                    self.send_results(result, returns, sequence)
                    result = None
        except BaseException as error:
            return self.failed(error)
        return self.packed(result)

    async def stream(self, values: Any, returns: int, sequence: int) -> None:
        """What an asynchronous generator of the actor's yields; see `send_results`."""
        requests = self.need_requests()
        position = 0
        try:
            async for value in values:
                while returns < 0 and not requests.has_taken(sequence, position + 1 + returns):
                    await self.concurrent.something_taken()
                flag, body = self.pack(value)
                self.send(frame(frames.ITEM, body, flag=flag, aux=position, number=sequence))
                position += 1
        finally:
            requests.stream_ended(sequence)
            if hasattr(values, "aclose"):
                await values.aclose()

    def failed(self, error: BaseException) -> tuple[int, bytes]:
        return self.encode_failure(frames.TASK_EXITED if isinstance(error, SystemExit) else frames.TASK_RAISED, error)

    def packed(self, result: Any) -> tuple[int, bytes]:
        try:
            return self.pack(result)
        except BaseException as error:
            return self.encode_failure(frames.RESULT_NOT_PICKLED, error, result)

    # -- references, and tasks inside tasks --------------------------------------------------------

    def send(self, data: bytes, fd: int = -1) -> None:
        """Once user code may send something too, from any of its threads, one at a time."""
        if self.requests is None:
            self.link.send_now(data, fd)
        else:
            self.requests.report_released()
            self.requests.send(data, fd)

    def need_requests(self) -> Requests:
        """What user code asks its owner by, from now on."""
        if self.requests is None:
            from scaleout._runtime.process.requests import Requests

            with self._meeting:
                made = Requests(self)  # in which garbage may be collected, and a finalizer ask for the same
                if self.requests is None:
                    self.context.requests = self.requests = made
        return self.requests

    def hold(self, references: list[int]) -> Any:
        """References were handed over with a value: they are counted, and live until the value is unpickled."""
        return self.need_requests().held.handed_over(references) if references else None

    def take_dependency(self, number: int) -> Any:
        """A value that the task depends on, sent before it."""
        return self.load_object(*self.arrived.pop(number))

    def load_object(self, flag: int, body: bytes) -> Any:
        """The value of an OBJECT frame."""
        held = None
        if flag & frames.HAS_REFERENCES:
            body, references = marshal.loads(body)
            held = self.hold(references)
        value = self.decode(flag, body)
        del held
        return value

    def discard(self, flag: int, body: bytes) -> None:
        """An OBJECT frame that nobody needs: its ranges and references go back."""
        if flag & frames.HAS_REFERENCES:
            body, references = marshal.loads(body)
            self.hold(references)
        if flag & frames.STORED:
            self.exchange.give_back(body)

    def forget_task(self, how: int, payload: bytes) -> None:
        """A task that does not run here after all: the references in its arguments were handed over, and go back."""
        if how & frames.ENVELOPE:
            self.hold(marshal.loads(payload)[2])

    def forget_dependencies(self) -> None:
        """Those of tasks that do not run here after all."""
        arrived, self.arrived = self.arrived, {}
        for flag, body in arrived.values():
            self.discard(flag, body)

    def link_lost(self) -> None:
        """The owner is gone, as somebody who waits inside a task finds out: nothing here is of use any more."""
        leave(1)

    # -- large objects and nested sessions -------------------------------------------------------

    @property
    def exchange(self) -> Exchange:
        """Segments in and out, made at the first use."""
        if self._exchange is None:
            from scaleout._runtime.store.exchange import Exchange

            self._exchange = Exchange(
                announce=self.announce_segment,
                allowance_bytes=lambda: self.words[control_page.ALLOWANCE_BYTES],
                spill_dir=self.context.session_info.get("spill_dir"),
            )
        return self._exchange

    def announce_segment(self, segment_id: int, fd: int, size_bytes: int, is_on_disk: bool) -> None:
        self.send(frame(frames.SEGMENT, marshal.dumps((size_bytes, is_on_disk)), number=segment_id), fd)

    def report_released(self) -> None:
        exchange = self._exchange
        if exchange is not None:
            released = exchange.drain_released()
            if released:
                self.send(frame(frames.RELEASED, marshal.dumps(released)))

    def open_channel(self) -> socket.socket:
        """This worker is about to own workers itself: a line to the zygote, asked for through the owner."""
        ours, theirs = socket.socketpair()
        with self.shielded():
            self.send(frame(frames.CHANNEL), theirs.fileno())
        theirs.close()
        return ours

    def shielded(self) -> Shield:
        """While it lasts, a Ctrl-C that is meant for user code spares this thread."""
        return Shield(self)

    def on_sigint(self, signum: int, stack: FrameType | None) -> None:
        """Ctrl-C reaches user code only, and once; between tasks it is the driver's business."""
        words = self.words
        if self.interruptible and words[INTERRUPTED] in (0, words[RUNNING]):
            self.interruptible = False
            raise KeyboardInterrupt


def call_args(worker: Worker, function: Callable[..., Any], arguments: Any, how: int) -> Any:
    return function(*arguments)


def call_args_kwargs(worker: Worker, function: Callable[..., Any], arguments: Any, how: int) -> Any:
    return function(*arguments[0], **arguments[1])


def call_item(worker: Worker, function: Callable[..., Any], argument: Any, how: int) -> Any:
    return function(argument)


def map_items(worker: Worker, function: Callable[..., Any], items: list[Any], how: int) -> list[Any]:
    if how & frames.TRACE_ITEMS:
        return [function(item) for item in worker_items(worker, items)]
    return list(map(function, items))


def starmap_items(worker: Worker, function: Callable[..., Any], items: list[Any], how: int) -> list[Any]:
    if how & frames.TRACE_ITEMS:
        return [function(*item) for item in worker_items(worker, items)]
    return [function(*item) for item in items]


def worker_items(worker: Worker, items: list[Any]) -> Any:
    """The items of a chunk that killed a worker before, each noted in the control page before it runs."""
    try:
        for index, item in enumerate(items):
            worker.words[ITEM_INDEX] = index
            yield item
    finally:  # or it would be said of the next task that dies here
        worker.words[ITEM_INDEX] = control_page.NO_ITEM


CALL = (
    call_args,
    call_args_kwargs,
    call_item,
    map_items,
    starmap_items,
    actors.create_actor,
    actors.call_method,
    actors.restore_actor,
)


def describe(error: BaseException) -> str:
    """The traceback as text, without the frames of this module if there are others."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    trace = trace or error.__traceback__  # raised by C code: then ours are all there are
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as failure:  # a __str__ of the user's
        return f"{type(error).__name__}: (its traceback cannot be shown: {failure!r})\n"


def safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except BaseException as failure:
        return f"<{type(value).__name__} whose repr raised {type(failure).__name__}>"


def flush_output() -> None:
    """What a task printed is there before its result is. A closed stdout is no failure of the task."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        pass


def _is_readable(sources: Any, timeout_s: float) -> bool:
    import select

    poll = select.poll()
    for source in sources:
        if source is not None:
            poll.register(source.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def leave(code: int) -> None:
    """End the process as a multiprocessing child does: its executors, its finalizers, its atexit functions, flushed
    output. Only threads that it left running are not waited for."""
    import atexit

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for close in context.at_exit:
            close()
        for finish in reversed(getattr(sys.modules.get("threading"), "_threading_atexits", ())):
            finish()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util._exit_function()
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    os._exit(code)


def main(link_fd: int, worker_id: int, depth: int) -> None:
    """What a freshly forked child runs; does not return."""
    link = Link(socket.socket(fileno=link_fd))
    worker = Worker(link, worker_id, depth)
    signal.signal(signal.SIGINT, worker.on_sigint)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    code = 0
    try:
        worker.run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code)
