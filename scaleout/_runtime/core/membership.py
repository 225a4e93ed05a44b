"""Which nodes a cluster has, as its head sees them. Pure.

A node registers, gets an epoch, and renews it. Who is silent is first *suspected* (it gets no new work), then *dead*:
its epoch is over, and what it still says under that is refused. A node that comes back registers anew, under a higher
epoch.

    absent --registered--> alive --silent--> suspected --silent--> dead --registered--> alive
                           alive <--renewed-- suspected
                           alive, suspected --left--> left --registered--> alive

*Absent* is also what a head that was started anew takes all for that it has given an epoch: the process that had it
gets the same again, so nothing is given up for a head's restart.

`version` grows with every change that others should know of.
"""

from __future__ import annotations

ABSENT = "absent"
ALIVE = "alive"
SUSPECTED = "suspected"
DEAD = "dead"
LEFT = "left"

SUSPECT_SECONDS = 3.0
"""Silent for so long: no new work."""

TTL_SECONDS = 10.0
"""Silent for so long: dead. Shorter kills healthy nodes on pauses of their machine or interpreter."""


class Member:
    """One node."""

    __slots__ = ("boot_id", "epoch", "is_draining", "node_id", "renewed_at", "state")

    def __init__(self, node_id: str, epoch: int) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self.boot_id = ""
        self.state = ABSENT
        self.is_draining = False
        self.renewed_at = 0.0

    @property
    def is_here(self) -> bool:
        return self.state in (ALIVE, SUSPECTED)


class Membership:
    """See the module's docstring. `epochs` are those that were given out before this head was started: by node id, the
    epoch, the boot id of the process that has it, and whether that is draining; `version` is higher than any before."""

    def __init__(
        self,
        epochs: dict[str, tuple[int, str, bool]],
        version: int = 1,
        suspect_s: float = SUSPECT_SECONDS,
        ttl_s: float = TTL_SECONDS,
    ) -> None:
        self.members: dict[str, Member] = {}
        for node_id, (epoch, boot_id, is_draining) in epochs.items():
            member = self.members[node_id] = Member(node_id, epoch)
            member.boot_id = boot_id
            member.is_draining = is_draining
        self.version = version
        self.suspect_s = suspect_s
        self.ttl_s = ttl_s

    def registered(self, now: float, node_id: str, boot_id: str) -> int:
        """The node's epoch: a higher one than before, unless it is the same process and was not given up. Make it
        durable before you answer."""
        member = self.members.get(node_id)
        if member is None:
            member = self.members[node_id] = Member(node_id, 0)
        if member.boot_id != boot_id:
            member.epoch += 1
            member.is_draining = False
        member.boot_id = boot_id
        member.state = ALIVE
        member.renewed_at = now
        self.version += 1
        return member.epoch

    def renewed(self, now: float, node_id: str, epoch: int) -> bool:
        """False if that epoch is over: the node must register anew, and give up what it had under the old one."""
        member = self.members.get(node_id)
        if member is None or member.epoch != epoch or not member.is_here:
            return False
        member.renewed_at = now
        if member.state == SUSPECTED:
            member.state = ALIVE
            self.version += 1
        return True

    def left(self, node_id: str, epoch: int) -> bool:
        """It said so itself. True: keep that nobody has the epoch any more."""
        member = self.members.get(node_id)
        if member is None or member.epoch != epoch or not member.is_here:
            return False
        self._give_up(member, LEFT)
        return True

    def drained(self, node_id: str) -> bool:
        """It gets no new work from now on; False if there is no such node. Keep it."""
        member = self.members.get(node_id)
        if member is None or not member.is_here:
            return False
        if not member.is_draining:
            member.is_draining = True
            self.version += 1
        return True

    def tick(self, now: float) -> list[str]:
        """Look at who is silent; the ids of those that have died: keep that nobody has their epochs any more."""
        died = []
        for member in self.members.values():
            if not member.is_here:
                continue
            silent_s = now - member.renewed_at
            if silent_s >= self.ttl_s:
                self._give_up(member, DEAD)
                died.append(member.node_id)
            elif silent_s >= self.suspect_s and member.state == ALIVE:
                member.state = SUSPECTED
                self.version += 1
        return died

    def _give_up(self, member: Member, state: str) -> None:
        member.state = state
        member.boot_id = ""  # whoever comes under this id is another
        self.version += 1

    def here(self) -> list[Member]:
        """Alive or suspected."""
        return [member for member in self.members.values() if member.is_here]
