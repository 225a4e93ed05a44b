"""On which node a worker goes. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaleout._runtime.core.resources import Shape


class Room:
    """What a node has, and what of it this driver's workers hold. Amounts in milli-units."""

    __slots__ = ("_held", "is_wanted", "resources", "workers")

    def __init__(self, resources: dict[str, int]) -> None:
        self.resources = resources
        self._held: dict[str, int] = {}
        self.workers = 0
        self.is_wanted = True
        """No: it is draining, or has been silent for a while, and gets nothing new where there is another."""

    def can_ever_fit(self, shape: Shape) -> bool:
        return not shape or all(amount <= self.resources.get(name, 0) for name, amount in shape)

    def fits(self, shape: Shape) -> bool:
        return not shape or all(
            amount <= self.resources.get(name, 0) - self._held.get(name, 0) for name, amount in shape
        )

    @property
    def load(self) -> float:
        """Workers for each CPU; one without CPUs is for what asks for something else of it."""
        cpus = self.resources.get("CPU", 0)
        return 1000 * self.workers / cpus if cpus else float("inf")

    def take(self, shape: Shape) -> None:
        """A worker for tasks of this shape, or one of a pool (which asks for nothing)."""
        self.workers += 1
        for name, amount in shape:
            self._held[name] = self._held.get(name, 0) + amount

    def give_back(self, shape: Shape) -> None:
        """It is gone."""
        self.workers -= 1
        for name, amount in shape:
            self._held[name] -= amount


def choose(rooms: Iterable[Room], shape: Shape) -> Room | None:
    """Where so much is free; of several, the one with the fewest workers for its CPUs. If it is free nowhere, where it
    will be (what is held is given back); None if nowhere."""
    best, of_best = None, (True, True, float("inf"))
    for room in rooms:
        if room.can_ever_fit(shape):
            found = not room.is_wanted, not room.fits(shape), room.load
            if best is None or found < of_best:
                best, of_best = room, found
                if found == (False, False, 0.0):
                    break  # there is no better one
    return best
