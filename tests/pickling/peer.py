"""A worker for driver scripts: a real process that does what the runtime's worker does with payloads, one at a time.

Frames are a length and a marshalled tuple. The driver side is as the dispatcher is to be: it sends each worker the
definitions it lacks, then the task, and answers one "need" per task.
"""

from __future__ import annotations

import marshal
import os
import struct
import subprocess
import sys
import traceback
from typing import Any

from scaleout._runtime.pickling.decode import decode
from scaleout._runtime.pickling.definitions import DefinitionBook
from scaleout._runtime.pickling.encode import Encoded, Encoder
from scaleout._runtime.pickling.namespace import Namespace, main_info

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def send(file: Any, *fields: Any) -> None:
    body = marshal.dumps(fields)
    file.write(struct.pack("<Q", len(body)) + body)
    file.flush()


def receive(file: Any) -> tuple[Any, ...] | None:
    head = file.read(8)
    return marshal.loads(file.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None


def flat(encoded: Encoded) -> tuple[bytes, list[bytes]]:
    return b"".join(encoded.chunks), [bytes(buffer) for buffer in encoded.buffers]


class Remote(Exception):
    """What a worker raised."""


class Worker:
    """A worker process, and what its owner knows of it."""

    def __init__(self, book: DefinitionBook | None = None, strict: bool = True) -> None:
        self.book = book if book is not None else DefinitionBook()
        self.encoder = Encoder(self.book)
        self.known: set[int] = set()
        self.strict = strict
        self.shipped_bytes = 0
        source = "import sys; sys.path[:0] = sys.argv[1:]; import peer; peer.serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, ROOT, os.path.dirname(os.path.abspath(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        send(self.process.stdin, main_info(), strict)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def payload(self, function: Any, *args: Any) -> tuple[Encoded, Encoded]:
        return self.encoder.encode(function), self.encoder.encode(args)

    def call(self, function: Any, *args: Any) -> Any:
        return self.run(*self.payload(function, *args))

    def run(self, function: Encoded, args: Encoded) -> Any:
        file = self.process.stdin
        needs: tuple[int, ...] = (*function.needs, *args.needs)
        for attempt in range(2):
            while self.book.forgotten:
                number = self.book.forgotten.popleft()
                self.known.discard(number)
                send(file, "forget", [number])
            for number in needs:
                if number not in self.known:
                    self.known.add(number)
                    data, buffers = flat(self.book.bytes_of(number))
                    self.shipped_bytes += len(data)
                    send(file, "define", number, data, buffers)
            send(file, "task", needs, flat(function), flat(args))
            kind, *rest = receive(self.process.stdout) or ("died",)
            if kind == "need" and attempt == 0:
                module, name = rest
                stream = flat(function)[0] + flat(args)[0]
                needs = (*needs, *self.encoder.needs_after_miss(stream, module))
                continue
            if kind == "ok":
                return decode(*rest)
            raise Remote(kind, *rest)
        raise AssertionError


def serve() -> None:
    """The worker's loop."""
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    info, strict = receive(stdin)  # type: ignore[misc]
    namespace = Namespace()
    namespace.setup_main(info)
    encoder = Encoder(namespace.results)
    pending: list[Any] = []
    while (frame := receive(stdin)) is not None:
        kind, *rest = frame
        if kind == "define":
            pending.append(rest)
        elif kind == "forget":
            namespace.forget(*rest)
        else:
            needs, function, args = rest
            try:
                while pending:
                    namespace.define(*pending[0])
                    del pending[0]
                if strict:
                    namespace.activate(needs)
                call, values = decode(*function), decode(*args)
            except BaseException as error:  # noqa: BLE001 - loading user code
                missing = namespace.missing_name(error)
                if missing is not None:
                    send(stdout, "need", *missing)
                else:
                    send(stdout, "unpickling", traceback.format_exc())
                continue
            try:
                result = call(*values)
            except BaseException as error:  # noqa: BLE001 - running it
                send(stdout, "raised", type(error).__name__, str(error), traceback.format_exc())
                continue
            try:
                send(stdout, "ok", *flat(encoder.encode(result)))
            except BaseException:  # noqa: BLE001 - user reducers
                send(stdout, "pickling", traceback.format_exc())
