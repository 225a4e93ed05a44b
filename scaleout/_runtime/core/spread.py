"""How an object gets from the machines that have it to those that want it. Pure.

Each machine that has it sends it to one other at a time, and whoever has received it sends it, too: so many that want
it at once have it after log2 of their number rounds, and nobody sends it more than MOST_SENDS times, which are enough
for any number. This process (`None`) sends only what no other machine has a hand free for, as its own line may be slow.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Place = Any  # what names a machine; hashable

MOST_SENDS = 3


class Spread:
    """One object. `sends`: of each machine that has it, how often it has sent it, or begun to."""

    def __init__(self, holders: Iterable[Place]) -> None:
        self.sends: dict[Place, int] = dict.fromkeys(holders, 0)
        self.under_way: dict[Place, Place] = {}  # from where, by where to
        self.waiting: deque[Place] = deque()
        self._refused: set[tuple[Place, Place]] = set()

    def wanted(self, place: Place) -> None:
        """It is to come there. Nothing if it is there, or on its way."""
        if place not in self.sends and place not in self.under_way and place not in self.waiting:
            self.waiting.append(place)

    def begin(self) -> list[tuple[Place, Place]]:
        """(from where, where to) of all that can begin now; they have begun."""
        begun = []
        for place in list(self.waiting):
            source = self._source_for(place)
            if source:
                self.waiting.remove(place)
                self.under_way[place] = source[0]
                self.sends[source[0]] += 1
                begun.append((source[0], place))
        return begun

    def _source_for(self, place: Place) -> list[Place]:
        """The one that sends it there next, or nobody."""
        able = self._able(place)
        rested = [source for source in able if self.sends[source] < MOST_SENDS]
        busy = set(self.under_way.values())
        free = [source for source in rested or able if source not in busy]
        return sorted(free, key=lambda source: (source is None, self.sends[source]))[:1]

    def _able(self, place: Place) -> list[Place]:
        return [source for source in self.sends if (source, place) not in self._refused]

    def arrived(self, place: Place) -> None:
        """It is there."""
        if self.under_way.pop(place, self) is not self:
            self.sends[place] = 0

    def failed(self, place: Place) -> None:
        """It did not get there: it is tried again from another one."""
        if place in self.under_way:
            self._refused.add((self.under_way.pop(place), place))
            self.waiting.append(place)

    def lost(self, place: Place) -> None:
        """That machine is gone. What it was sending fails by itself."""
        self.sends.pop(place, None)
        self.under_way.pop(place, None)
        if place in self.waiting:
            self.waiting.remove(place)

    def hopeless(self) -> list[Place]:
        """Those that want it, and can have it from nobody; they do not wait for it any more."""
        found = [place for place in self.waiting if not self._able(place)]
        for place in found:
            self.waiting.remove(place)
        return found
