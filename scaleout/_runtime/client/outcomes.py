"""From what a sink is given to a value or a described failure."""

from __future__ import annotations

import pickle

from scaleout._runtime.wire import frames
from scaleout.errors import ForeignSessionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Direct:
    """A result that never left the process."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Failure:
    """Why a call gave no value.

    `status` is the phase (see `wire.frames`), `error` the exception of the user's code or the unpickling error, None
    if there is none, `traceback` the remote traceback's text, `error_repr` and `value_repr` what could be said
    of an error or result that cannot travel, `facts` what the owner knows of a worker's death.
    """

    __slots__ = ("code", "error", "error_repr", "facts", "status", "traceback", "value_repr")

    def __init__(self, status: int, error: BaseException | None = None) -> None:
        self.status = status
        self.error = error
        self.traceback = ""
        self.error_repr = ""
        self.value_repr = ""
        self.code: int | None = None
        self.facts: Any = None


def outcome(status: int, payload: Any) -> tuple[bool, Any]:
    """(True, value) or (False, Failure). Unpickles, so it may run code of the user's: never on the reactor."""
    if status == frames.OK:
        try:
            if type(payload) is bytes:
                return True, pickle.loads(payload)
            return True, payload.value if type(payload) is Direct else payload.load()
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, ForeignSessionError)):
                raise
            return False, Failure(frames.RESULT_NOT_UNPICKLED, error)
    if isinstance(payload, BaseException):
        return False, Failure(status, payload)
    failure = Failure(status)
    if isinstance(payload, dict):
        failure.facts = payload
    elif payload is not None and payload[0] == "refused":
        failure.facts = payload
    elif payload is not None:
        pickled, traceback, failure.error_repr, failure.value_repr, failure.code = payload
        failure.traceback = with_source_lines(traceback)
        if pickled is not None:
            try:
                failure.error = pickle.loads(pickled) if type(pickled) is bytes else pickled.load()
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failure.status = frames.RESULT_NOT_UNPICKLED
                failure.error = error
    return False, failure


def with_source_lines(traceback: str) -> str:
    """A worker's traceback, with the lines that the worker could not read: those of a notebook's cells or a prompt."""
    import linecache
    import re

    lines = traceback.splitlines(keepends=True)
    told = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        told.append(line)
        frame = re.match(r'  File "(.+)", line (\d+), in ', line)
        if frame and not following.startswith("    "):
            source = linecache.getline(frame[1], int(frame[2])).strip()
            if source:
                told.append(f"    {source}\n")
    return "".join(told)
