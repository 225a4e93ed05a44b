"""Ranges of segments on their way from machine to machine, as the driver arranges it: see `core.spread`.

    node -> driver    FETCH; its pieces come over the link, then FETCHED
    driver -> node    its pieces, then PULL without an address, to which FETCHED is the answer
    node -> node      PULL, to the one that wants it (see `cluster.bulk`), then FETCHED

While a range is on its way it is held: nobody may write there anew. Everything here runs on the reactor thread.
"""

from __future__ import annotations

import marshal

from scaleout._runtime.cluster.outbox import TRANSFERS, Piecewise, SharedFile
from scaleout._runtime.core.spread import Spread
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.cluster.relayed import RemoteNode
    from scaleout._runtime.store.segment import Extent

    Place = RemoteNode | None  # None: this process


class Transfers:
    """See the module's docstring.

    `tell(node, data, place in its outbox)` queues something for a node; `file_of(segment id)` is the segment as it is
    here, and its size; `hold` and `drop` say that ranges are in use.
    """

    def __init__(self, tell: Callable[[RemoteNode, Any, int], None], next_number: Callable[[], int]) -> None:
        self._tell = tell
        self._next_number = next_number
        self.file_of: Callable[[int], tuple[SharedFile, int]] = lambda segment_id: (SharedFile(-1), 0)
        self.hold: Callable[[list[Extent]], None] = lambda extents: None
        self.drop: Callable[[list[Extent]], None] = lambda extents: None
        self._spreads: dict[Extent, Spread] = {}  # until nobody needs the range any more
        self._wants: dict[tuple[Extent, Place], list[Callable[[bool], object]]] = {}
        self._is_closed = False
        self._under_way: dict[int, tuple[Extent, Place, Place]] = {}  # by number: from where, where to

    @property
    def is_idle(self) -> bool:
        return not (self._wants or self._under_way)

    def want(self, extent: Extent, place: Place, holders: Iterable[Place], then: Callable[[bool], object]) -> None:
        """A range is to come there; `then(True)` is called when it has, `then(False)` if nobody has it any more, or the
        place is gone. `holders`: who has it, as far as is known."""
        if self._is_closed:
            then(False)
            return
        spread = self._spreads.get(extent)
        if spread is None:
            spread = self._spreads[extent] = Spread(holders)
        for holder in holders:
            spread.sends.setdefault(holder, 0)
        if place in spread.sends:
            then(True)
            return
        self._wants.setdefault((extent, place), []).append(then)
        spread.wanted(place)
        self._go_on(extent, spread)

    def _go_on(self, extent: Extent, spread: Spread) -> None:
        for source, place in spread.begin():
            number = self._next_number()
            self._under_way[number] = extent, source, place
            self.hold([extent])
            try:
                self._begin(number, extent, source, place)
            except OSError:  # no descriptors are left
                self.ended(number, False)
        for place in spread.hopeless():
            self._settle(extent, place, False)

    def _begin(self, number: int, extent: Extent, source: Place, place: Place) -> None:
        if place is None:
            assert source is not None
            self._tell(source, frame(frames.FETCH, marshal.dumps(extent), number=number), 0)
            return
        file, size_bytes = self.file_of(extent[0])
        address = reading = ""
        if source is None:
            known = frame(frames.INTRODUCE, marshal.dumps((extent[0], size_bytes, False)))  # to no worker in particular
            self._tell(place, known, TRANSFERS | number)
            self._tell(place, Piecewise(extent, file), TRANSFERS | number)
        else:
            address, reading = source.address, source.reading
        body = marshal.dumps((size_bytes, extent, address, reading))
        self._tell(place, frame(frames.PULL, body, number=number), TRANSFERS | number)

    def ended(self, number: int, is_there: bool) -> None:
        """FETCHED has come, or never will."""
        found = self._under_way.pop(number, None)
        if found is None:
            return
        extent, _, place = found
        spread = self._spreads.get(extent)
        if spread is not None:
            if is_there:
                spread.arrived(place)
                self._settle(extent, place, True)
            else:
                spread.failed(place)
            self._go_on(extent, spread)
        self.drop([extent])

    def _settle(self, extent: Extent, place: Place, is_there: bool) -> None:
        for then in self._wants.pop((extent, place), ()):
            then(is_there)

    def over(self, extents: Iterable[Extent]) -> None:
        """Nobody needs these any more."""
        for extent in extents:
            spread = self._spreads.pop(extent, None)
            for place in spread.waiting if spread is not None else ():
                self._settle(extent, place, False)

    def place_lost(self, place: RemoteNode) -> None:
        """The node is gone. What others pull from it fails by itself: they say so."""
        for extent, spread in list(self._spreads.items()):
            spread.lost(place)
            self._settle(extent, place, False)
        for number, (_, source, to) in list(self._under_way.items()):
            if to is place or (source is place and to is None):
                self.ended(number, False)
        for extent, spread in list(self._spreads.items()):
            self._go_on(extent, spread)

    def close(self) -> None:
        """Nothing comes any more: whoever waits is told."""
        self._is_closed = True
        self._under_way.clear()
        for extent, place in list(self._wants):
            self._settle(extent, place, False)
