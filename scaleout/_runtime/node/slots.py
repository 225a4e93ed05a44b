"""The worker groups for tasks: one per shape, made when the first task of that shape comes, and the sharing of the
node's resources among them and the actors. What each may have is `core.resources`' to say."""

from __future__ import annotations

import threading
from functools import partial

from scaleout._runtime.core.dispatch import Group
from scaleout._runtime.core.resources import Resources
from scaleout._runtime.node.group import WorkerGroup
from scaleout._runtime.pickling.namespace import main_info
from scaleout._runtime.process import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.owner import Owner


class Slots:
    """See the module's docstring."""

    def __init__(self, settings: Settings, owner: Owner, total: dict[str, int]) -> None:
        self._settings = settings
        self._owner = owner
        self.resources = Resources(total)
        self._lock = threading.Lock()
        self._groups: dict[Shape, WorkerGroup] = {}
        self.actors: list[Any] = []  # groups of actors that hold resources, or wait for some
        self.is_closed = False

    def group_of(self, shape: Shape) -> WorkerGroup:
        """Any thread: where tasks of this shape run."""
        group = self._groups.get(shape)
        if group is None:
            with self._lock:
                group = self._groups.get(shape)
                if group is None:
                    group = self._groups[shape] = self._new_group(shape)
        return group

    def group_for(self, options: dict[str, Any]) -> WorkerGroup:
        """On the reactor thread: where a worker's task runs."""
        return self.group_of(options["shape"])

    def _new_group(self, shape: Shape) -> WorkerGroup:
        settings = self._settings
        is_first = not self._groups
        core = Group(
            self.resources.shares([(shape, 0, settings.num_cpus)])[0] if is_first else 0,
            tasks_per_worker=None,
            max_retries=settings.max_retries,
            cpus=settings.num_cpus,
            prefetch_tasks=settings.prefetch,
        )
        core.is_elastic = True
        group = WorkerGroup(core, self.hello(), self._owner.objects)
        group.shape = shape
        self._owner.announce_group(group)
        return group

    def hello(self) -> dict[str, Any]:
        """What a worker for tasks or an actor is told."""
        return {
            **identity.owner_info(),
            "main": main_info(),
            "spill_dir": self._settings.spill_dir,
            "takes_nameless": True,
            "environment": None,
            "reducers": None,
            "collects": True,
        }

    @property
    def is_shared(self) -> bool:
        return len(self._groups) + len(self.actors) > 1

    def share(self) -> None:
        """On the reactor thread: say anew how many tasks of each shape may run."""
        groups = [*self._groups.values(), *self.actors]
        demands = []
        for group in groups:
            demands.append((group.shape, *group.core.demand))
        for group, granted in zip(groups, self.resources.shares(demands), strict=True):
            core = group.core
            if core.size != granted:
                is_more = granted > core.size
                core.size = granted
                if is_more:
                    core.refill()

    def in_use(self) -> dict[str, int]:
        """How much of each resource tasks and actors hold."""
        used = dict.fromkeys(self.resources.total, 0)
        for group in [*list(self._groups.values()), *self.actors]:
            for name, amount in group.shape:
                used[name] += amount * group.core.demand[0]
        return used

    def close(self) -> None:
        """Any thread: nothing more will come, and nobody wants what is under way."""
        self.is_closed = True
        for group in list(self._groups.values()):
            self._owner.reactor.post(partial(self._owner.terminate_group, group))
