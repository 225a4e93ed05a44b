"""The lines of an actor's worker: sockets by which other workers call the actor past the owner. See `client.lines`.

    caller --TASK--> here --RESULT--> caller
                        +---ANSWERED--> owner, if the result is large or refers to objects, or the caller asks for that

A caller has one call at a time on its line, and only if all that it sent by the owner has been answered. What it sends
by the owner later is read here later: so looking at the lines before each task keeps the order of each caller's calls.
The owner does not know what is called here: it counts none of it as claimed, and sends none of it again.
"""

from __future__ import annotations

import marshal
import selectors
import socket
import time

from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import frame
from scaleout._runtime.wire.link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Worker = Any  # process.worker's, whose actor is called by what is here


class HostedLine:
    """One caller. `answered`: (number, flag, body, duration in µs) of the last answer, which its caller may still want
    elsewhere."""

    __slots__ = ("answered", "link")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.answered: tuple[int, int, bytes, int] | None = None


class Lines:
    """See the module's docstring. Only the main thread uses it, between tasks; `is_ready`: there is something to read,
    as whoever waited has seen."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._selector = selectors.DefaultSelector()
        self.is_ready = False

    def fileno(self) -> int:
        """Readable when one of the lines is."""
        selector: Any = self._selector
        number: int = selector.fileno()
        return number

    def add(self, fd: int) -> None:
        line = HostedLine(Link(socket.socket(fileno=fd)))
        self._selector.register(fd, selectors.EVENT_READ, line)

    def serve(self) -> None:
        """Do what has come by now: at most one call of each caller, so that none keeps the others waiting."""
        self.is_ready = False
        for key, _ in self._selector.select(0):
            self._read(key.data)

    def _read(self, line: HostedLine) -> None:
        received: list[tuple[int, int, int, int, bytes]] = []
        while not received or line.link.is_torn:  # what has begun to come is all there in a moment
            try:
                data = line.link.receive()
            except OSError:
                data = b""
            if not data:
                self._selector.unregister(line.link.fileno())
                line.link.close()
                break
            received += line.link.frames(data)
        for kind, flag, _, number, body in received:
            if kind == frames.TASK:
                self._call(line, flag, number, body)
            elif kind == frames.BY_OWNER and line.answered is not None and line.answered[0] == number:
                self._answer_owner(*line.answered)
                line.answered = None

    def _call(self, line: HostedLine, how: int, number: int, body: bytes) -> None:
        worker = self._worker
        method, payload = marshal.loads(body)
        started = time.monotonic_ns()
        worker.words[control_page.SINCE_NS] = started
        worker.words[control_page.RUNNING] = number
        status, answer = worker.guarded(self._attempt, how, method, payload)
        duration_us = min((time.monotonic_ns() - started) // 1000, 0xFFFFFFFF)
        if worker.context.is_leaving:  # the owner says why there is no answer
            return
        worker.prepare_answer()
        if status & (frames.STORED | frames.HAS_REFERENCES):
            self._answer_owner(number, status, answer, duration_us)
            line.answered = None
            reply = frame(frames.BY_OWNER, flag=status, aux=duration_us, number=number)
        else:
            line.answered = number, status, answer, duration_us
            reply = frame(frames.RESULT, answer, flag=status, aux=duration_us, number=number)
        try:
            line.link.send_now(reply)
        except OSError:
            pass  # its caller is gone, which shows at the next look

    def _attempt(self, how: int, method: str, payload: bytes) -> tuple[int, bytes]:
        worker = self._worker
        worker.callables.setdefault(method, method)
        worker.interruptible = True
        done: tuple[int, bytes]
        try:
            _, arguments, _ = worker.decode_call(how, method, payload)
        except BaseException as error:  # noqa: BLE001 - user code, in rebuilding the arguments
            worker.interruptible = False
            done = worker.encode_failure(frames.ARGUMENT_NOT_UNPICKLED, error)
        else:
            done = worker.perform(how, method, arguments, 1, 0)
        return done

    def _answer_owner(self, number: int, flag: int, body: bytes, duration_us: int) -> None:
        self._worker.send(frame(frames.ANSWERED, body, flag=flag, aux=duration_us, number=number))
