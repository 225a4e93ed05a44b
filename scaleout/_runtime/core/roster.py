"""Which nodes a driver has links to, and which it should have. Pure.

The list of nodes comes from one of them, and from another when that is gone, which may have learned less: it has a
version, and an older list is not looked at. Who is on the list, may be given work and has no link is to be dialled;
and again after a while, when that did not work, or the link broke.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Listed = tuple[str, str, dict[str, int], str, bool]
    """(node id, HOST:PORT, resources, state as `core.membership` has it, whether it is draining)"""


def wanted_of(nodes: Iterable[Listed]) -> dict[str, str]:
    """The addresses of those that may be given work, by node id."""
    return {
        node_id: address for node_id, address, _, state, is_draining in nodes if state == "alive" and not is_draining
    }


class News:
    """What a new list says of the nodes that there are links to."""

    __slots__ = ("gone", "resting", "working")

    def __init__(self, gone: list[str], resting: dict[str, bool], working: list[str]) -> None:
        self.gone = gone
        """Dead to the head, or they have left: the ends of their links may come late, or never."""
        self.resting = resting
        """They get nothing new; True: they are draining, so what they have is to go elsewhere, too."""
        self.working = working


class Roster:
    """See the module's docstring."""

    def __init__(self, version: int, nodes: Iterable[Listed]) -> None:
        self._version = version
        self._wanted = wanted_of(nodes)
        self._linked: set[str] = set()
        self._dialled: set[str] = set()

    def told(self, version: int, nodes: list[Listed]) -> News | None:
        """A list of nodes has come; None if it is no news."""
        if version <= self._version:
            return None
        self._version = version
        self._wanted = wanted_of(nodes)
        listed = {node_id: is_draining for node_id, _, _, _, is_draining in nodes}
        linked = sorted(self._linked)
        return News(
            [node_id for node_id in linked if node_id not in listed],
            {node_id: listed[node_id] for node_id in linked if node_id in listed and node_id not in self._wanted},
            [node_id for node_id in linked if node_id in self._wanted],
        )

    def to_dial(self) -> dict[str, str]:
        """The addresses of those that are to be dialled now, by node id; they are being dialled from now on."""
        missing = {
            node_id: address
            for node_id, address in self._wanted.items()
            if node_id not in self._linked and node_id not in self._dialled
        }
        self._dialled.update(missing)
        return missing

    def unreachable(self, node_id: str) -> None:
        """It was dialled, without success."""
        self._dialled.discard(node_id)

    def linked(self, node_id: str) -> bool:
        """There is a link to it; False if there was one already."""
        self._dialled.discard(node_id)
        if node_id in self._linked:
            return False
        self._linked.add(node_id)
        return True

    def lost(self, node_id: str) -> None:
        """Its link has ended."""
        self._linked.discard(node_id)
