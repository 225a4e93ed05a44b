"""What tasks have done lately: a bounded list of plain tuples, cheap enough to be kept always.

An event is (name, number of the task's object, when it was submitted, when its result was here, how long it ran in µs,
pid, status, whether it is a call of an actor). Times are of `time.monotonic_ns`.
"""

from __future__ import annotations

import os
import time
from collections import deque

from scaleout._runtime.base import limits
from scaleout._runtime.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

STATUS_NAMES = {
    frames.OK: "FINISHED",
    frames.CANCELLED: "CANCELLED",
    frames.DROPPED: "CANCELLED",
}


class History:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.events: deque[tuple[Any, ...]] = deque(maxlen=limits.HISTORY_EVENTS)
        self.transfers: deque[tuple[Any, ...]] = deque(maxlen=limits.HISTORY_EVENTS)
        """(bytes, when reading a large value began, how long it took in ns)"""


def state_of(status: int) -> str:
    return STATUS_NAMES.get(status, "FAILED")


def write_trace(path: str, events: Iterable[tuple[Any, ...]], transfers: Iterable[tuple[Any, ...]]) -> int:
    """A file that chrome://tracing and Perfetto show; how many spans are in it."""
    import json

    here = os.getpid()
    spans: list[dict[str, Any]] = []

    def span(name: str, kind: str, pid: int, start_ns: int, length_ns: int, **facts: Any) -> None:
        spans.append(
            {
                "name": name,
                "cat": kind,
                "ph": "X",
                "pid": pid,
                "tid": kind,
                "ts": start_ns / 1000,
                "dur": max(0, length_ns) / 1000,
                "args": facts,
            }
        )

    for name, number, submitted_ns, ended_ns, duration_us, pid, status, _ in events:
        started_ns = ended_ns - duration_us * 1000
        span(name, "submit", here, submitted_ns, 0, id=f"{number:016x}")
        span(name, "queue", here, submitted_ns, started_ns - submitted_ns, id=f"{number:016x}")
        span(name, "run", pid, started_ns, duration_us * 1000, id=f"{number:016x}", state=state_of(status))
    for size_bytes, started_ns, length_ns in transfers:
        span("read", "transfer", here, started_ns, length_ns, bytes=size_bytes)
    names = {event[5] for event in events}
    for pid in names:
        spans.append({"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"worker {pid}"}})
    spans.append({"name": "process_name", "ph": "M", "pid": here, "args": {"name": "driver"}})
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"traceEvents": spans, "displayTimeUnit": "ms"}, file)
    return len(spans)


now_ns = time.monotonic_ns
