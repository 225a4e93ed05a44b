"""How the resources of nodes are shared among tasks of different shapes. Pure.

A *shape* is what one task needs, in milli-units: `(("CPU", 1000),)`. Tasks of one shape share a group of workers; how
many of them may run at once is decided anew whenever something changed: what runs keeps what it has, and what is left
goes to those that have something ready, in turn, so that no shape starves another. (One that needs more at once than
small ones leave waits until these pause: nothing is kept free for it, as what is held may be held for ever.)
"""

from __future__ import annotations

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Worker = Any  # what names it; hashable
    Shape = tuple[tuple[str, int], ...]

MILLI = 1000


class Resources:
    """What one node has, or several. Amounts in milli-units."""

    def __init__(self, *nodes: dict[str, int]) -> None:
        self._grants = 0
        self._last_grant: list[int] = []  # of each demand, by position: when it was granted something
        self.changed(*nodes)

    def changed(self, *nodes: dict[str, int]) -> None:
        """These are the nodes now."""
        self._nodes = [dict(node) for node in nodes]
        self.total: dict[str, int] = {}
        for node in nodes:
            for name, amount in node.items():
                self.total[name] = self.total.get(name, 0) + amount

    @property
    def is_divided(self) -> bool:
        """Whether they are of several nodes, none of which has them all."""
        return len(self._nodes) > 1

    def can_ever_fit(self, shape: Shape) -> bool:
        """Whether there is a node that has so much, when nobody else uses it."""
        return any(all(amount <= node.get(name, 0) for name, amount in shape) for node in self._nodes)

    def shares(self, demands: Iterable[tuple[Shape, int, int]], withheld: Shape = ()) -> list[int]:
        """For each (shape, how many hold it now, how many more are wanted): how many may hold it. Nobody is made to
        give up what it holds, also if together they hold too much, as tasks do that come back from waiting.

        `withheld` is nobody's any more, and not free yet.
        """
        demands = list(demands)
        left = dict(self.total)
        for name, amount in withheld:
            left[name] = left.get(name, 0) - amount
        for shape, held, _ in demands:
            for name, amount in shape:
                left[name] = left.get(name, 0) - held * amount
        granted = [held for _, held, _ in demands]
        wanted = [more for _, _, more in demands]
        last = self._last_grant
        last.extend([0] * (len(demands) - len(last)))
        del last[len(demands) :]
        # Whoever has waited for longest comes first. Beginning with another one at each call was rejected: calls come
        # in patterns, and something is free only at some of them, so one shape could always be the second.
        order = sorted(range(len(demands)), key=last.__getitem__)
        is_moving = True
        while is_moving:  # one each, in turn, until nobody gets another
            is_moving = False
            for position in order:
                shape = demands[position][0]
                if wanted[position] <= 0 or any(left.get(name, 0) < amount for name, amount in shape):
                    continue
                if not shape and granted[position] >= limits.FREE_TASKS:
                    continue
                wanted[position] -= 1
                granted[position] += 1
                is_moving = True
                self._grants += 1
                last[position] = self._grants
                for name, amount in shape:
                    left[name] -= amount
        return granted


class Devices:
    """Which GPUs each worker has. Whole ones for itself; fractions share the one that has the least room left."""

    def __init__(self, count: int) -> None:
        self._free = [MILLI] * count
        self._taken: dict[Worker, list[tuple[int, int]]] = {}

    @property
    def free(self) -> int:
        """Of all devices together."""
        return sum(self._free)

    def has(self, amount: int) -> bool:
        """Whether so much is free: whole devices, and what is left over of another one."""
        whole, part = divmod(amount, MILLI)
        free = sorted(self._free, reverse=True)
        return whole <= free.count(MILLI) and (not part or (len(free) > whole and free[whole] >= part))

    def take(self, worker_id: Worker, amount: int) -> list[int]:
        """The devices for a worker that was granted so much. One whose predecessor has not left yet gets the freest."""
        taken: list[tuple[int, int]] = []
        while amount > 0 and len(taken) < len(self._free):
            part = min(amount, MILLI)
            others = [number for number in range(len(self._free)) if all(number != found for found, _ in taken)]
            fitting = [number for number in others if self._free[number] >= part]
            if fitting:
                number = min(fitting, key=lambda number: (self._free[number], number))
            else:
                number = max(others, key=lambda number: (self._free[number], -number))
            self._free[number] -= part
            taken.append((number, part))
            amount -= part
        self._taken[worker_id] = taken
        return sorted(number for number, _ in taken)

    @property
    def holders(self) -> list[Worker]:
        """The workers that have some."""
        return list(self._taken)

    def amount_of(self, worker_id: Worker) -> int:
        return sum(part for _, part in self._taken[worker_id])

    def give_back(self, worker_id: Worker) -> None:
        for number, part in self._taken.pop(worker_id, ()):
            self._free[number] += part


def shape_of(amounts: dict[str, float]) -> Shape:
    """The shape of a task that needs these amounts, in units; what it needs none of is left out. However little it
    needs of something, it needs that: or nothing would bound how many may run."""
    return tuple(sorted((name, max(1, round(amount * MILLI))) for name, amount in amounts.items() if amount > 0))
