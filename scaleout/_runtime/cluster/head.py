"""The head's service: who is a node of the cluster. gRPC for nodes and the command line; never on a task's way.

What must survive a restart is in an SQLite file: the nodes' epochs, so that none is given out twice.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from scaleout._runtime.cluster import head_pb2 as pb
from scaleout._runtime.cluster import head_pb2_grpc as service
from scaleout._runtime.cluster import tls
from scaleout._runtime.core.membership import Member, Membership
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SCHEMA = 1
TICK_SECONDS = 0.25


class HeadState:
    """The file. Written by one thread at a time: the head's lock is held."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA):
            raise ClusterError(
                f"{path} was written by another version of scaleout (schema {version}, this one knows {SCHEMA}): "
                "start the head with that version, or move the file away"
            )
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS epochs "
            "(node_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL, boot_id TEXT NOT NULL, is_draining INTEGER NOT NULL)"
        )
        self._database.execute(f"PRAGMA user_version = {SCHEMA}")

    def epochs(self) -> dict[str, tuple[int, str, bool]]:
        """As `core.membership` takes them."""
        rows = self._database.execute("SELECT node_id, epoch, boot_id, is_draining FROM epochs")
        return {node_id: (epoch, boot_id, bool(is_draining)) for node_id, epoch, boot_id, is_draining in rows}

    def keep(self, member: Member) -> None:
        """On disk when this returns. sqlite3.Error if it cannot be."""
        row = (member.node_id, member.epoch, member.boot_id, int(member.is_draining))
        self._database.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?, ?)", row)

    def close(self) -> None:
        self._database.close()


class Head(service.HeadServicer):
    """The service and its thread that looks who is silent. `report(line)` writes to the log."""

    def __init__(self, state: HeadState, identity: tls.Identity, host: str, port: int, report: Callable[[str], None]):
        self._state = state
        self._report = report
        self._lock = threading.Lock()
        self._membership = Membership(state.epochs(), version=int(time.time()) << 20)
        self._nodes: dict[str, pb.Node] = {}
        self._is_over = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8, thread_name_prefix="scaleout-head"),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)],
        )
        service.add_HeadServicer_to_server(self, self._server)
        certificate = Certificate(identity)
        credentials = grpc.dynamic_ssl_server_credentials(
            certificate.configuration(), certificate.if_new, require_client_authentication=True
        )
        self.port = self._server.add_secure_port(f"{host}:{port}", credentials)
        self._ticker = threading.Thread(target=self._tick, name="scaleout-head-tick", daemon=True)

    def start(self) -> None:
        self._server.start()
        self._ticker.start()

    def close(self) -> None:
        self._is_over.set()
        self._server.stop(0.5).wait()
        self._state.close()

    def _tick(self) -> None:
        while not self._is_over.wait(TICK_SECONDS):
            with self._lock:
                died = self._membership.tick(time.monotonic())
                for node_id in died:
                    self._keep(node_id)
            for node_id in died:
                self._report(f"node {node_id} is dead: it has said nothing for {self._membership.ttl_s:g} s")

    # -- the service -----------------------------------------------------------------------------

    def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterReply:
        node = request.node
        self._check_is(node.node_id, context)
        with self._lock:
            epoch = self._membership.registered(time.monotonic(), node.node_id, node.boot_id)
            if not self._keep(node.node_id):
                self._membership.left(node.node_id, epoch)
                context.abort(grpc.StatusCode.UNAVAILABLE, "the head's database cannot be written: see its log")
            self._nodes[node.node_id] = node
            version = self._membership.version
            ttl_s = self._membership.ttl_s
        self._report(f"node {node.node_id} is here: {node.host}:{node.port}")
        return pb.RegisterReply(epoch=epoch, ttl_s=ttl_s, version=version)

    def _check_is(self, node_id: str, context: Any) -> None:
        """A node speaks for itself alone, and nobody else for it."""
        names = context.auth_context().get("x509_subject_alternative_name", ())
        if not any(name.decode().split(":")[2:] == [tls.NODE, node_id] for name in names):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the certificate is not that of node {node_id!r}")

    def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        self._check_is(request.node_id, context)
        with self._lock:
            is_known = self._membership.renewed(time.monotonic(), request.node_id, request.epoch)
            if is_known:
                is_draining = self._membership.members[request.node_id].is_draining
                return pb.RenewReply(version=self._membership.version, is_draining=is_draining)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the epoch is over")
        raise AssertionError  # abort raises

    def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:
        self._check_is(request.node_id, context)
        with self._lock:
            if self._membership.left(request.node_id, request.epoch):
                self._keep(request.node_id)
        self._report(f"node {request.node_id} has left")
        return pb.LeaveReply()

    def Nodes(self, request: pb.NodesRequest, context: Any) -> pb.NodesReply:
        with self._lock:
            nodes = [self._described(member) for member in self._membership.here()]
            return pb.NodesReply(version=self._membership.version, nodes=nodes)

    def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:
        with self._lock:
            found = self._membership.drained(request.node_id)
            if found:
                self._keep(request.node_id)
        if not found:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no node {request.node_id!r}")
        return pb.DrainReply()

    def _keep(self, node_id: str) -> bool:
        """On disk: the node's epoch, who has it, and whether that is draining. The lock is held."""
        member = self._membership.members[node_id]
        try:
            self._state.keep(member)
        except sqlite3.Error as error:
            self._report(f"the head's database cannot be written: {error}")
            return False
        return True

    def _described(self, member: Member) -> pb.Node:
        node = pb.Node()
        node.CopyFrom(self._nodes[member.node_id])
        node.epoch = member.epoch
        node.state = member.state
        node.is_draining = member.is_draining
        return node


class Certificate:
    """The head's own, as gRPC asks for it with each connection: its file is replaced when half of its time is over."""

    def __init__(self, identity: tls.Identity) -> None:
        self._identity = identity
        self._written_at = 0.0

    def configuration(self) -> Any:
        self._written_at = self._identity.path.stat().st_mtime
        pem = self._identity.path.read_bytes()
        return grpc.ssl_server_certificate_configuration([(pem, pem)], self._identity.authority.read_bytes())

    def if_new(self) -> Any:
        """None if it is what it was."""
        try:
            return None if self._identity.path.stat().st_mtime == self._written_at else self.configuration()
        except OSError:  # it is just leaving
            return None


def channel(address: str, identity: tls.Identity) -> grpc.Channel:
    """To a head's service, for a member of its cluster."""
    credentials = grpc.ssl_channel_credentials(
        identity.authority.read_bytes(), identity.path.read_bytes(), identity.path.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", "scaleout"), ("grpc.enable_http_proxy", 0)]
    return grpc.secure_channel(address, credentials, options)
