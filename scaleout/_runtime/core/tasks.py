"""The life of a task as its owner sees it, in one table per event.

    PENDING --assign--> ASSIGNED --finish--> FINISHED
       ^                   |  |
       +----take_back------+  +--charge--> SUSPECT --assign--> ASSIGNED
    any but FINISHED --drop--> FINISHED

PENDING: waits in the group's ready queue. ASSIGNED: on a worker, running or queued behind what runs there; which of
the two, only the worker's control page knows. SUSPECT: its worker died while it ran; it will run again, alone.
FINISHED: its sink has been told, or never will be.

A pair that is not in a table is a bug: `illegal` raises with the task's story and leaves the state as it was.
"""

from __future__ import annotations

from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

PENDING = 0
ASSIGNED = 1
SUSPECT = 2
FINISHED = 3
STATE_NAMES = ("PENDING", "ASSIGNED", "SUSPECT", "FINISHED")

ON_ASSIGN = {PENDING: ASSIGNED, SUSPECT: ASSIGNED}
ON_FINISH = {ASSIGNED: FINISHED}
ON_TAKE_BACK = {ASSIGNED: PENDING}
ON_CHARGE = {ASSIGNED: SUSPECT}
ON_DROP = {PENDING: FINISHED, SUSPECT: FINISHED, ASSIGNED: FINISHED}


class Profile:
    """How long the calls of one function take, as far as measured.

    `slow_us` follows the 90th percentile: it rises by 20 % when a sample is above and falls by 2 % when below, so it
    rests where one sample in ten is above. A decaying maximum was rejected: one 100 ms call among thousands of
    10 µs ones kept prefetching off for hundreds of calls.
    """

    __slots__ = ("samples", "slow_us")

    def __init__(self) -> None:
        self.samples = 0
        self.slow_us = 1.0

    def add(self, duration_us: int) -> None:
        self.samples += 1
        if self.samples <= 4:
            if duration_us > self.slow_us:
                self.slow_us = float(duration_us)
        elif duration_us > self.slow_us:
            self.slow_us = min(self.slow_us * 1.2 + 1.0, float(duration_us))
        else:
            self.slow_us *= 0.98


class Task:
    """One call on its way. `payload`, `stored`, `callable`, `needs`, `envelope` and `sink` are opaque here.

    `sequence` is the task's number on the worker it is assigned to, valid while ASSIGNED. `attempts` counts the
    workers that died running it. `runner` is the lane it is on, while ASSIGNED. `place` is the only machine that has
    what it needs; None: it can run anywhere.
    """

    __slots__ = (
        "attempts",
        "callable",
        "envelope",
        "group",
        "how",
        "index",
        "max_retries",
        "name",
        "needs",
        "order",
        "parent",
        "payload",
        "place",
        "priority",
        "profile",
        "runner",
        "sequence",
        "sink",
        "size_bytes",
        "state",
        "stored",
        "submitted_ns",
        "__weakref__",
    )

    def __init__(
        self,
        group: Any,
        callable: Any,
        how: int,
        payload: bytes,
        needs: tuple[int, ...],
        stored: Any,
        sink: Any,
        index: int,
        profile: Profile,
    ) -> None:
        self.group = group
        self.callable = callable
        self.how = how
        self.payload = payload
        self.needs = needs
        self.stored = stored
        self.sink = sink
        self.index = index
        self.profile = profile
        self.size_bytes = len(payload)
        self.state = PENDING
        self.attempts = 0
        self.max_retries: int | None = None  # the group's
        self.sequence = 0
        self.runner: Any = None
        self.envelope: Any = None
        self.order = 0  # among the calls that its actor was sent; 0: it was not
        self.parent: Any = None  # a weak reference to the task that submitted it
        self.place: Any = None
        self.priority = 0
        self.name = ""  # the callable's, if it has none
        self.submitted_ns = 0

    def again(self, sink: Any) -> Task:
        """The same call for this sink, as it was before it was sent anywhere."""
        other = Task(
            self.group,
            self.callable,
            self.how,
            self.payload,
            self.needs,
            self.stored,
            sink,
            self.index,
            self.profile,
        )
        other.max_retries = self.max_retries
        other.envelope = self.envelope
        other.parent = self.parent
        other.priority = self.priority
        other.name = self.name
        other.submitted_ns = self.submitted_ns
        return other


def illegal(task: Task, event: str, story: Iterable[object]) -> InternalError:
    """The error for an event that the task's state does not admit."""
    recent = "; ".join(str(entry) for entry in story) or "nothing"
    return InternalError(
        f"task {task.index} cannot {event} in state {STATE_NAMES[task.state]}; what happened before: {recent}"
    )
