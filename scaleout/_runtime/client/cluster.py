"""The session of a driver whose workers are those of a cluster's nodes."""

from __future__ import annotations

import concurrent.futures
import json
import os
import secrets
import threading
import weakref
from multiprocessing import util

from scaleout._runtime.base import limits, this_process
from scaleout._runtime.base.settings import Settings
from scaleout._runtime.client.embedded import EmbeddedSession, InitializerFrames
from scaleout._runtime.cluster import dial, near_socket, places, tls
from scaleout._runtime.cluster.fleet import Fleet
from scaleout._runtime.cluster.relayed import RemoteNode
from scaleout._runtime.cluster.sources import Archive
from scaleout._runtime.core.roster import wanted_of
from scaleout._runtime.process.initargs import PassedFds
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.node.host import Host
    from scaleout._runtime.node.owner import Owner
    from scaleout._runtime.node.reactor import Reactor


DIALS_AT_ONCE = 32
"""A handshake takes a few milliseconds of processor time and a round trip or two: so many keep one core busy."""


class ClusterSession(EmbeddedSession):
    """As the embedded one, but that no worker is of this process. ClusterError if the cluster cannot be reached."""

    def __init__(self, settings: Settings) -> None:
        self._identity = _identity(settings.address)
        self._connected, self._info = _connect(settings.address, self._identity)
        cpus = sum(node.room.resources.get("CPU", 0) for node in self._connected) // 1000
        values = {field: getattr(settings, field) for field in Settings.__slots__}
        super().__init__(Settings(**{**values, "num_cpus": max(1, cpus)}), None)
        util.Finalize(None, _leave, (weakref.ref(self),), exitpriority=-100)  # after all that pools have to do

    def _new_keeper(self, host: Host | None, reactor: Reactor) -> Any:
        nodes, info = self._connected, self._info
        self._connected = []
        if not nodes:
            nodes, info = _connect(self.settings.address, self._identity)
        fleet = Fleet(reactor, nodes, info["nodes"], self.settings.max_processes, self._dial, self._redial, self._ask)
        fleet.steward = info["steward"]
        return fleet

    def _dial(self, address: str) -> RemoteNode:
        return dial.attach(address, self._identity)[0]

    def _redial(self, node: RemoteNode, seconds: float) -> tuple[Any, int]:
        return dial.resume(node, self._identity, seconds)

    def _ask(self, node: RemoteNode) -> Any:
        return near_socket.ask(self._identity.path.parent.name, node.node_id, node.session)

    def _packed(self, working_dir: str | None) -> Archive | None:
        return None if working_dir is None else Archive(working_dir)

    def _send_along(self, owner: Owner, packed: Archive | None) -> None:
        owner.keeper.sources.archive = packed

    def _initializer_frames(
        self, owner: Owner, initializer: Callable[..., Any], initargs: tuple[Any, ...]
    ) -> InitializerFrames:
        """Pickled as a task's arguments are: what children inherit, workers of other machines cannot."""
        try:
            encoded = self.encode((initializer, initargs))
        except RuntimeError as error:
            if "inheritance" not in str(error):
                raise
            raise ClusterError(
                f"initargs have something of this machine alone ({error}): locks, queues, pipes and shared values of "
                "multiprocessing do not reach workers of a cluster; scaleout.util.Queue and actors do"
            ) from error
        return InitializerFrames(owner.objects, owner.callables, encoded, PassedFds())

    def leave(self) -> None:
        """The interpreter exits: tell the nodes, which else would wait for a while whether we come back."""
        owner = self._owner
        if owner is None or self.pid != this_process.pid or owner.reactor.is_stopping:
            return
        owner.reactor.post(owner.reactor.stop)
        thread = owner.reactor.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(limits.LEAVE_SECONDS)

    @property
    def num_cpus(self) -> int:
        owner = self._owner
        return owner.keeper.num_cpus if owner is not None else self.settings.num_cpus

    def close_idle(self) -> None:
        for node in self._connected:
            node.link.bye()
        self._close_connected()

    def _close_connected(self) -> None:
        for node in self._connected:
            node.leave()
        self._connected = []

    def forget(self) -> None:
        self._close_connected()  # and no word of it: the parent goes on
        super().forget()


def _leave(session: Any) -> None:
    found = session()
    if found is not None:
        found.leave()


def _connect(address: str, identity: tls.Identity) -> tuple[list[RemoteNode], dict[str, Any]]:
    """(links to all nodes of the cluster that may be given work, what `cluster.daemon` tells of it)"""
    first, info = dial.attach(address, identity)
    nodes = [first]

    def reach(at: str) -> None:
        try:
            nodes.append(dial.attach(at, identity)[0])
        except Exception:  # noqa: BLE001  # it says nonsense, or is about to be found dead, or is tried again
            pass

    others = [at for node_id, at in wanted_of(info["nodes"][1]).items() if node_id != first.node_id]
    try:
        if len(others) > 1:
            with concurrent.futures.ThreadPoolExecutor(min(DIALS_AT_ONCE, len(others))) as executor:
                list(executor.map(reach, others))
        else:
            for at in others:
                reach(at)
    except BaseException:  # Ctrl-C
        for node in nodes:
            node.link.bye()
            node.leave()
        raise
    return nodes, info


def _identity(address: str) -> tls.Identity:
    """Our certificate for the cluster at this address; a new one if there is a token."""
    home = places.home(os.environ.get("SCALEOUT_CLUSTER") or _cluster_at(address))
    identity = tls.Identity(home, "driver")
    if identity.is_there:
        if identity.is_old:
            try:
                dial.renew(address, identity)
            except ClusterError:
                pass  # by the next program: it is good for weeks; or not any more, which is said when it is shown
        return identity
    token = os.environ.get("SCALEOUT_TOKEN")
    if not token:
        raise ClusterError(
            f"this machine has no key for the cluster at {address}: set SCALEOUT_TOKEN to its join token "
            "(`scaleout token` on the head shows it), or SCALEOUT_HOME to where its keys are"
        )
    return dial.join(address, token, home, "driver", tls.DRIVER, secrets.token_hex(6))


def _cluster_at(address: str) -> str:
    """The name under which the cluster with its head at this address is known here."""
    for path in sorted(places.top().glob("*/head.json")):
        try:
            if json.loads(path.read_text())["address"] == address:
                return path.parent.name
        except (OSError, ValueError, KeyError):
            continue
    return "default"
