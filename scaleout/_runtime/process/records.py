"""What a worker logs goes to its owner: the handlers that the program has set up are there.

Imported by workers whose owner has some. Like a process that was forked with them, such a worker has a handler on its
root logger, so that `logging.basicConfig` there does nothing unless it is forced.
"""

from __future__ import annotations

import logging
import marshal
import time

from scaleout._runtime.base import limits, this_process
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Worker = Any  # process.worker's


class OwnersHandlers(logging.Handler):
    """A handler that hands every record on. `bytes_per_second`: what is more is dropped, and counted."""

    def __init__(self, worker: Worker, bytes_per_second: float) -> None:
        super().__init__()
        self._worker = worker
        self._pid = this_process.pid
        self._bytes_per_second = self._allowance_bytes = bytes_per_second
        self._at = time.monotonic()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if this_process.pid != self._pid:  # a child that user code has forked: the link is not its own
            if logging.lastResort is not None and record.levelno >= logging.lastResort.level:
                logging.lastResort.emit(record)
            return
        try:
            body = marshal.dumps((_plain(record), self._dropped))
            now = time.monotonic()
            earned = (now - self._at) * self._bytes_per_second
            self._allowance_bytes = min(self._bytes_per_second, self._allowance_bytes + earned)
            self._at = now
            if len(body) > self._allowance_bytes:
                self._dropped += 1
                return
            self._allowance_bytes -= len(body)
            self._dropped = 0
            self._worker.need_requests().send(frame(frames.LOGGED, body))
        except Exception:  # noqa: BLE001 - as handlers do: what logging meets is no failure of what logs
            self.handleError(record)


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    """What is in the record, as `logging.handlers.QueueHandler` prepares it: the message and the traceback are text.
    What is not plain data beside them comes as text, too."""
    fields = dict(record.__dict__)
    message = record.getMessage()
    if len(message) > limits.RECORD_CHARACTERS:
        message = f"{message[: limits.RECORD_CHARACTERS]}... [{len(message)} characters]"
    text = fields.get("exc_text")
    if not text and record.exc_info:
        text = logging.Formatter().formatException(record.exc_info)
    fields.update(msg=message, message=message, args=None, exc_info=None, exc_text=text)
    found = {}
    for name, value in fields.items():
        try:
            marshal.dumps(value)
        except ValueError:
            value = str(value)
        found[str(name)] = value
    return found
