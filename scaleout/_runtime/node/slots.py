"""The worker groups for tasks: one per shape, made when the first task of that shape comes, and the sharing of the
node's resources among them and the actors. What each may have is `core.resources`' to say."""

from __future__ import annotations

import threading

from scaleout._runtime.core.dispatch import RETIRING, Group
from scaleout._runtime.core.places import PlacedGroup
from scaleout._runtime.core.resources import MILLI, Devices, Resources
from scaleout._runtime.node.capacity import GPU
from scaleout._runtime.node.group import WorkerGroup
from scaleout._runtime.pickling.namespace import main_info
from scaleout._runtime.process import identity
from scaleout.errors import InfeasibleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.core.resources import Shape
    from scaleout._runtime.node.peer import Peer

    Owner = Any  # node.owner's, which is put together from this and others


def described(shape: Iterable[tuple[str, int]]) -> str:
    """
    >>> described((("CPU", 500), ("GPU", 2000)))
    '0.5 CPU, 2 GPU'
    """
    parts = []
    for name, amount in shape:
        parts.append(f"{amount // MILLI} bytes of memory" if name == "memory" else f"{amount / MILLI:g} {name}")
    return ", ".join(parts) or "nothing"


def _has_gpus(shape: Shape) -> bool:
    return any(name == GPU for name, _ in shape)


def _is_leaving(peer: Peer) -> bool:
    return bool(peer.lane.state == RETIRING and not peer.lane.inflight)


class Slots:
    """See the module's docstring."""

    def __init__(self, settings: Settings, owner: Owner, nodes: list[dict[str, int]], gpu_names: list[str]) -> None:
        self.gpu_names = gpu_names
        self.namespace = ""
        self.env_vars: dict[str, str] | None = None
        self.working_dir: str | None = None
        self._settings = settings
        self._owner = owner
        self.resources = Resources(*nodes)
        self._lock = threading.Lock()
        self._groups: dict[Shape, WorkerGroup] = {}
        self.actors: list[Any] = []  # groups of actors that hold resources, or wait for some
        self._is_shared = False  # among several shapes and actors
        self.is_held = False  # by a client: the owner stays, whatever there is to do
        self.is_closed = False
        self.devices = Devices(self.resources.total.get(GPU, 0) // MILLI)

    def group_of(self, shape: Shape) -> WorkerGroup:
        """Any thread: where tasks of this shape run."""
        group = self._groups.get(shape)
        if group is None:
            self.check(shape)
            with self._lock:
                group = self._groups.get(shape)
                if group is None:
                    group = self._groups[shape] = self._new_group(shape)
        return group

    def check(self, shape: Shape) -> None:
        """Any thread: InfeasibleError for more than there is."""
        if not self.resources.can_ever_fit(shape):
            total = described(self.resources.total.items())
            if self.resources.is_divided:
                raise InfeasibleError(f"{described(shape)} asked for, and no single node has that; all have {total}")
            raise InfeasibleError(f"{described(shape)} asked for, and there is no more than {total}")

    def _new_group(self, shape: Shape) -> WorkerGroup:
        settings = self._settings
        is_first = not self._groups
        kind = PlacedGroup if self._owner.keeper.has_places else Group
        core = kind(
            self._all_of(shape) if is_first else 0,
            tasks_per_worker=1 if _has_gpus(shape) else None,  # CUDA keeps the devices that a process has begun with
            max_retries=settings.max_retries,
            cpus=settings.num_cpus,
            prefetch_tasks=settings.prefetch,
        )
        core.is_elastic = True
        core.holds_devices = _has_gpus(shape)
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
            "environment": self.env_vars,
            "working_dir": self.working_dir,
            "reducers": None,
            "collects": True,
        }

    def environment_of(self, peer: Peer, group: WorkerGroup) -> dict[str, str]:
        """On the reactor thread: what a worker has in its environment on top, before anything of the user's runs."""
        amount = dict(group.shape).get(GPU, 0)
        if not amount or peer.seat.is_relayed:  # then its node says which
            return {}
        taken = self.devices.take(peer.worker_id, amount)
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpu_names[number] for number in taken)}

    def worker_gone(self, peer: Peer) -> None:
        self.devices.give_back(peer.worker_id)

    def settle(self) -> None:
        """On the reactor thread, in each of its turns: say anew how many tasks of each shape may run."""
        if len(self._groups) + len(self.actors) > 1:
            self._is_shared = True
            self._share([*self._groups.values(), *self.actors])
        elif self._is_shared:  # not any more: who is left has it all, whatever it can use of it now
            self._is_shared = False
            self._give_all([*self._groups.values(), *self.actors])

    def _give_all(self, groups: list[WorkerGroup]) -> None:
        for group in groups:
            held, _ = group.core.demand
            self._grant(group, self._all_of(group.shape, held))

    def _all_of(self, shape: Shape, held: int = 0) -> int:
        """How many tasks of this shape may run where there is no other; no more than there are CPUs, however little of
        them each needs, as each has a worker."""
        cpus = max(1, self.resources.total.get("CPU", 0) // MILLI)
        return self.resources.shares([(shape, held, max(0, cpus - held))])[0]

    def _share(self, groups: list[WorkerGroup]) -> None:
        demands = []
        for group in groups:
            demands.append((group.shape, *group.core.demand))
        withheld = ((GPU, self._amount_of_leaving(groups)),) if self.devices.holders else ()
        for group, granted in zip(groups, self.resources.shares(demands, withheld), strict=True):
            self._grant(group, granted)

    def _grant(self, group: WorkerGroup, granted: int) -> None:
        core = group.core
        if core.size != granted:
            is_more = granted > core.size
            core.size = granted
            if is_more:
                core.refill()
            else:
                core.slots_lost()

    def _amount_of_leaving(self, groups: list[WorkerGroup]) -> int:
        """The GPUs of workers that have nothing to do any more: a device has no new user before the old one is gone."""
        amount = 0
        for worker_id in self.devices.holders:
            peer = self._owner.keeper.peers.get(worker_id)
            if peer is not None and (_is_leaving(peer) or peer.group not in groups):
                amount += self.devices.amount_of(worker_id)
        return amount

    def nodes_changed(self, nodes: list[dict[str, int]]) -> None:
        """On the reactor thread: these are there now."""
        self.resources.changed(*nodes)
        if not self._is_shared:
            self._give_all(list(self._groups.values()))

    def in_use(self) -> dict[str, int]:
        """How much of each resource tasks and actors hold."""
        used = dict.fromkeys(self.resources.total, 0)
        for group in [*list(self._groups.values()), *self.actors]:
            for name, amount in group.shape:
                used[name] += amount * group.core.demand[0]
        return used

    def close(self) -> list[WorkerGroup]:
        """Any thread: nothing more will come; the groups, to be terminated."""
        self.is_closed = True
        return list(self._groups.values())
