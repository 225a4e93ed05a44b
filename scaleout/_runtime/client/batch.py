"""The calls of one map on their way to a group, and what they share."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.core.tasks import Profile
    from scaleout._runtime.node.objects import ObjectTable, Place


class Batch:
    """A group's `submit` with all but the index and the value fixed; pair with `end`."""

    def __init__(
        self,
        group: Any,
        record: Any,
        how: int,
        sink: Any,
        profile: Profile | None,
        shared: SharedBuffers | None = None,
        limited: Any = None,
    ) -> None:
        self._group = group
        self._fixed = (record, how, sink, profile)
        self._limited = limited
        self._shared = shared
        self._share = shared.place_of if shared is not None else None

    def submit(self, index: int, value: Any) -> None:
        record, how, sink, profile = self._fixed
        self._group.submit(record, how, value, sink, index, profile, self._share, self._limited)

    def end(self) -> None:
        """All is submitted: what is shared now lives by the calls that use it."""
        if self._shared is not None:
            self._shared.release()


class SharedBuffers:
    """Stores a large buffer that occurs in several calls once.

    For items that are all there before the first is pickled, so the same memory means the same content. Never for items
    that a generator makes.
    """

    def __init__(self, objects: ObjectTable) -> None:
        self._objects = objects
        self._stored: dict[tuple[int, int], tuple[Place, memoryview]] = {}  # held once by us; the view keeps the memory

    def place_of(self, buffer: memoryview) -> Place:
        """Where the buffer is stored; held once more, for the caller."""
        key = (address_of(buffer.obj), buffer.nbytes)
        found = self._stored.get(key)
        if found is None:
            found = self._stored[key] = (self._objects.store_buffer(buffer), buffer)
        place = found[0]
        self._objects.hold([place[:3]])
        return place

    def release(self) -> None:
        if self._stored:
            self._objects.release([place[:3] for place, _ in self._stored.values()])
            self._stored = {}


def address_of(exporter: Any) -> int:
    """What identifies the memory that `exporter` shows, as long as it lives: an array made anew over the same data (as
    pickling one in Fortran order does) has the same."""
    interface = getattr(exporter, "__array_interface__", None)
    return interface["data"][0] if isinstance(interface, dict) else id(exporter)
