"""The questions that workers ask their owner and that are answered at once: see REQUEST in `node.clerk`.

Methods take the worker that asks, and plain data; they return plain data. On the reactor thread.
"""

from __future__ import annotations

from functools import partial

from scaleout._runtime.node import ledger
from scaleout._runtime.node.actors import ActorRecord
from scaleout._runtime.wire import frames
from scaleout.errors import InfeasibleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.node.peer import Peer

    Owner = Any  # node.owner's, which is put together from this and others


class Answers:
    """See the module's docstring."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def there(self, peer: Peer, object_ids: list[int]) -> list[int]:
        """Those of the objects that are there."""
        entries = [self._owner.clerk.entry_of(peer, object_id) for object_id in object_ids]
        return [entry.id for entry in entries if entry.status != ledger.PENDING]

    def next_item(self, peer: Peer, stream_id: int, position: int) -> int | None:
        """The object at a position of a stream; None beyond the end."""
        hold: Any = peer.holdings.find(stream_id)
        if hold is None:  # the worker's own release, from another thread, was faster
            return None
        entry = hold.stream.take(position)
        if entry is None:
            return None
        (object_id,) = peer.holdings.hand_over((entry,))
        return object_id

    def is_end(self, peer: Peer, object_id: int) -> bool:
        """Whether what was waited for turned out to be the end of a stream."""
        return self._owner.clerk.entry_of(peer, object_id).status == frames.STREAM_ENDED

    def cancel(self, peer: Peer, object_id: int, force: bool, is_recursive: bool) -> None:
        if self._owner.clerk.lines.cancel(object_id, force):
            return
        task = self._owner.clerk.entry_of(peer, object_id).source
        if task is not None:  # not in the midst of what the core does for this very frame
            self._owner.reactor.post(partial(self._owner.clerk.cancel, task, force, is_recursive))

    def resources(self, peer: Peer) -> tuple[dict[str, int], dict[str, int]]:
        slots = self._owner.slots
        return ({}, {}) if slots is None else (dict(slots.resources.total), slots.in_use())

    def infeasible(self, peer: Peer, shape: Any) -> str:
        """Why nothing of this shape can ever run here; empty if it can."""
        try:
            self._owner.need_slots().check(shape)
        except InfeasibleError as error:
            return str(error)
        return ""

    def namespace(self, peer: Peer) -> str:
        """Where names are looked up that come without one."""
        return self._owner.need_slots().namespace

    def steward(self, peer: Peer) -> str:
        """Where detached actors are to be had; empty without a cluster."""
        address: str = self._owner.keeper.steward
        return address

    def is_actor(self, peer: Peer, actor_id: int) -> bool:
        return isinstance(peer.holdings.find(actor_id), ActorRecord)

    def kill_actor(self, peer: Peer, actor_id: int, may_restart: bool) -> None:
        actor = peer.holdings.find(actor_id)
        if isinstance(actor, ActorRecord) and actor.group is not None:
            self._owner.actors.kill(actor, may_restart)

    def find_actor(self, peer: Peer, namespace: str, name: str) -> Any:
        actor = self._owner.actors.find(namespace, name)
        if actor is None:
            return None
        peer.holdings.hand_over((actor,))
        return actor.id, actor.options

    def open_line(self, peer: Peer, actor_id: int, host_id: int) -> bool:
        """See `lines.Lines.open`."""
        return self._owner.clerk.lines.open(peer, actor_id, host_id)

    def actor_names(self, peer: Peer) -> list[tuple[str, str]]:
        return self._owner.actors.names()

    def module(self, peer: Peer, name: str) -> Any:
        """See `process.sources`, as the next."""
        try:
            return self._owner.keeper.sources.module(name)
        except Exception:  # noqa: BLE001  # of anything in `sys.modules` or in the path: then the worker looks for itself
            return None

    def source(self, peer: Peer, digest: bytes, offset: int) -> bytes | str:
        part: bytes | str = self._owner.keeper.sources.source(digest, offset)
        return part

    def packed(self, peer: Peer, offset: int) -> bytes:
        part: bytes = self._owner.keeper.sources.packed(offset)
        return part

    def leave_actor(self, peer: Peer) -> None:
        """The actor that this worker hosts wants to end."""
        fate = peer.group.actor
        if fate is not None and not fate.death:
            fate.death = "is dead: it left by exit_actor"
            self._owner.reactor.post(partial(peer.group.core.killed, False))
