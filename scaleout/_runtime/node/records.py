"""What workers log, handled here as if it had been logged here: by the handlers, filters and formats of this process.

They are user code, and so run in a thread of their own, one record at a time.
"""

from __future__ import annotations

import marshal
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.node.callbacks import CallbackThread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Records:
    """See the module's docstring. Nobody waits for a handler that is slow: what is too much is dropped, and counted."""

    def __init__(self) -> None:
        self.thread = CallbackThread()
        self._taken = self._handled = 0  # the reactor counts the one, the thread the other
        self._dropped = 0
        self._last: Any = None  # what came last from other machines, and how often it did
        self._times = 0

    def take(self, body: bytes, origin: str) -> None:
        """A record has come; `origin` goes before its message, if there is one. On the reactor thread."""
        if self._taken - self._handled >= limits.WAITING_RECORDS:
            self._dropped += 1
            return
        self._taken += 1
        dropped, self._dropped = self._dropped, 0
        self.thread.put(partial(self._handle, body, origin, dropped))

    def _handle(self, body: bytes, origin: str, dropped: int) -> None:
        self._handled += 1
        fields, dropped_there = marshal.loads(body)
        dropped += dropped_there
        if dropped:
            log({**fields, "exc_text": None}, origin, f"[{dropped} records were left out: too many at once]")
        if not origin:
            log(fields, "", fields["msg"])
            return
        same = origin, fields["name"], fields["levelno"], fields["msg"]
        if same != self._last:
            self._tell_repeated()
            self._last, self._times = same, 0
        self._times += 1
        if self._times <= limits.FOLDED_LINES:
            log(fields, origin, fields["msg"])
            self._of_last = fields

    def _tell_repeated(self) -> None:
        more = self._times - limits.FOLDED_LINES
        if more > 0:
            self._times = 0
            log({**self._of_last, "exc_text": None}, self._last[0], f"[the record before came {more} more times]")

    def end(self) -> None:
        """Let those be handled that have come."""
        if self.thread.is_running:
            self.thread.put(self._tell_repeated)
        self.thread.put(None)


def log(fields: dict[str, Any], origin: str, message: str) -> None:
    import logging

    fields = {**fields, "msg": origin + message, "message": origin + message}
    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))
