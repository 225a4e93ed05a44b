"""Large buffers that occur in call after call: stored once, as long as their content stays what was stored.

Between two calls any code may run, the user's above all: a generator that fills one array anew for each call must have
each content delivered. So what was stored is compared with what is there now. Reading 50 MB twice takes 3 ms, against 4
for copying them to pages that are warm and 20 and more where they are not, and all calls then share the same pages.
"""

from __future__ import annotations

import functools
import sys

from scaleout._runtime.client.batch import address_of
from scaleout._runtime.store.segment import map_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.node.objects import ObjectTable, Place


class _Copy:
    """What was stored of one buffer: held once by us, and mapped here when it is first compared."""

    __slots__ = ("_view", "at_call", "moment", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.at_call = 0
        self.moment: object = None
        self._view: memoryview | None = None

    def has_content_of(self, buffer: memoryview, objects: ObjectTable) -> bool:
        if self._view is None:
            segment_id, offset, size_bytes, _ = self.place
            fd, _, _ = objects.exchange.fd_of(segment_id)
            self._view = memoryview(map_private(fd, offset, size_bytes))[:size_bytes]
        return _are_equal(buffer, self._view)


class ComparedBuffers:
    """For calls that are submitted one after the other, by one thread at a time. A copy that none of the last
    `kept_calls` calls used is let go.

    `next_call(moment)` announces a call. Calls of one moment are those whose arguments were all there before the
    first of them was pickled: what one of them stored, or compared, serves the others without another look.
    """

    def __init__(self, objects: ObjectTable, kept_calls: int) -> None:
        self._objects = objects
        self._kept_calls = kept_calls
        self._copies: dict[tuple[int, int], _Copy] = {}
        self._call = 0
        self._moment: object = None

    def next_call(self, moment: object) -> None:
        self._call += 1
        self._moment = moment
        for key, copy in list(self._copies.items()):
            if copy.at_call < self._call - self._kept_calls:
                del self._copies[key]
                self._objects.release([copy.place[:3]])

    def place_of(self, buffer: memoryview) -> Place:
        """Where the buffer's content is stored; held once more, for the caller."""
        key = (address_of(buffer.obj), buffer.nbytes)
        copy = self._copies.get(key)
        if copy is not None and copy.moment is not self._moment and not copy.has_content_of(buffer, self._objects):
            del self._copies[key]
            self._objects.release([copy.place[:3]])
            copy = None
        if copy is None:
            copy = self._copies[key] = _Copy(self._objects.store_buffer(buffer))
        copy.at_call = self._call
        copy.moment = self._moment
        self._objects.hold([copy.place[:3]])
        return copy.place

    def release(self) -> None:
        """No more calls will come: what was stored lives by those that use it."""
        copies, self._copies = self._copies, {}
        if copies:
            self._objects.release([copy.place[:3] for copy in copies.values()])


def _are_equal(one: memoryview, other: memoryview) -> bool:
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return one == other
    places = [numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0] for view in (one, other)]
    return bool(_memcmp()(*places, one.nbytes) == 0)


@functools.cache
def _memcmp() -> Any:
    """The C library's: without the interpreter lock, and without the arrays of booleans that numpy makes."""
    import ctypes

    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return memcmp
