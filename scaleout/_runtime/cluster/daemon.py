"""The node as a process of its own: `python -m scaleout._runtime.cluster.daemon OPTIONS`, as `scaleout start` runs it.

It listens for drivers and has a tenant for each; if it is the head, it has that service too. Once it is ready, or has
failed, it says so in one line of JSON on stdout: {"address", "node_id", "head"} or {"error"}.
"""

from __future__ import annotations

import fcntl
import gc
import json
import marshal
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
from functools import partial

from scaleout._runtime.base import limits, memory
from scaleout._runtime.base.settings import Settings
from scaleout._runtime.cluster import bulk, dial, keys, near_socket, places, tls
from scaleout._runtime.cluster.admission import Admission
from scaleout._runtime.cluster.agent import Agent
from scaleout._runtime.cluster.head import Head, HeadState
from scaleout._runtime.cluster.head_pb2 import Node, NodesReply
from scaleout._runtime.cluster.node_link import NodeLink
from scaleout._runtime.cluster.running import process_start, records, report
from scaleout._runtime.cluster.stewardship import Stewardship
from scaleout._runtime.cluster.tenant import Gpus, Tenant
from scaleout._runtime.node.capacity import resources_here
from scaleout._runtime.node.reactor import Reactor
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ClusterError, ScaleoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


LOOPBACK = "127.0.0.1"
WILDCARDS = ("0.0.0.0", "::", "*")


class Options:
    """What `scaleout start` was asked for. An `address` is that of the head, for a node that is not the head. Without a
    `host` a head listens on loopback, and other nodes on the address by which this machine reaches the head."""

    def __init__(
        self,
        cluster: str = "default",
        address: str = "",
        host: str = "",
        port: int = 0,
        resources: dict[str, float] | None = None,
    ) -> None:
        self.cluster = places.check_name(cluster)
        self.address = address
        self.host = host
        self.port = port
        self.resources = resources or {}

    @property
    def is_head(self) -> bool:
        return not self.address


class Daemon:
    """One node."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._home = places.home(options.cluster)
        self._local = places.local(options.cluster)
        self.node_id = secrets.token_hex(6)
        self._sources_dir = str(places.sources(options.cluster))
        self._boot_id = secrets.token_hex(8)
        self._settings = Settings.from_environ({k: v for k, v in os.environ.items() if k != "SCALEOUT_ADDRESS"})
        self._is_over = False
        self._wake = threading.Event()  # of the main thread
        self._reactor = Reactor("scaleout-node", lambda item: item(), lambda: None, self._end_soon)
        self._tenants: list[Tenant] = []
        self._opening: dict[str, threading.Event] = {}  # sessions of drivers that are about to be tenants
        self._nodes: tuple[int, list[Any]] = (0, [])  # as drivers are told, and the list's version
        self._watches_memory = False
        self._is_tidy_armed = False
        self._told_short: set[Tenant] = set()  # since memory has run short
        self._head: Head | None = None
        self._agent: Agent | None = None
        self._stewardship: Stewardship | None = None
        self._steward = ""  # the address of the steward of detached actors
        self._record = self._local / f"node-{self.node_id}.json"

    def run(self) -> None:
        """Until SIGTERM or SIGINT; ClusterError if it cannot be started. SIGHUP: look at the keys now."""
        options = self._options
        os.environ["SCALEOUT_CLUSTER"] = options.cluster  # for workers whose program asks more of the cluster
        if options.is_head:
            self._lock_head()
        joined = None if options.is_head else self._identity()
        host = options.host or (LOOPBACK if options.is_head else dial.own_address_towards(options.address))
        if host in WILDCARDS:
            raise ClusterError(f"{host} is no address that others can dial: --host wants one of this machine's own")
        amounts, gpu_names = resources_here(self._settings, options.resources)
        self._gpus = Gpus(gpu_names)
        port = options.port or (self._last_ports()[0] if options.is_head else 0)  # a head comes back where it was
        try:
            listener = socket.create_server((host, port), reuse_port=False)
        except OSError as error:
            raise ClusterError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        address = f"{host}:{listener.getsockname()[1]}"
        authority, identity = joined or self._identity()
        head_address = self._start_head(host, address, identity) if options.is_head else self._find_head(identity)
        facts = {"head": head_address, "steward": self._steward}
        admission = Admission(listener, identity, authority, facts, self._attach, self._serve_bulk, report)
        self._puller = bulk.Puller(identity)
        self._near = near_socket.listen(self._local, self.node_id)
        self._node = Node(
            node_id=self.node_id,
            boot_id=self._boot_id,
            host=host,
            port=listener.getsockname()[1],
            is_head=options.is_head,
            resources=amounts,
            pid=os.getpid(),
        )
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._end_soon())
        signal.signal(signal.SIGHUP, lambda *_: self._wake.set())
        self._reactor.start()
        try:
            self._agent = Agent(
                head_address, identity, self._node, self._wants_nodes, self._told_of_nodes, self._fenced, report
            )
            self._agent.start()
            if self._stewardship is not None:
                self._stewardship.start(self._reactor, address)
            threading.Thread(target=admission.run, name="scaleout-admission", daemon=True).start()
            if self._near is not None:
                threading.Thread(
                    target=near_socket.serve, args=(self._near, self._lodge), name="scaleout-near", daemon=True
                ).start()
            self._write_record(address, head_address)
            _answer({"address": address, "node_id": self.node_id, "head": options.address or address})
            while not self._is_over:
                self._wake.clear()
                self._renew_keys(identity, admission)
                if not self._is_over:
                    self._wake.wait(limits.KEYS_LOOK_SECONDS)
        finally:
            self._end(listener)

    def _end_soon(self) -> None:
        """Any thread."""
        self._is_over = True
        self._wake.set()

    # -- coming up -------------------------------------------------------------------------------

    def _identity(self) -> tuple[keys.Authority | None, tls.Identity]:
        name = f"node-{self.node_id}"
        token = os.environ.pop("SCALEOUT_TOKEN", "")
        if self._options.is_head:
            authority = keys.Authority(self._home)
            keys.own_identity(self._home, "driver", tls.DRIVER, secrets.token_hex(6))
            return authority, keys.own_identity(self._home, name, tls.NODE, self.node_id)
        if (self._home / "ca.key").exists():
            return None, keys.own_identity(self._home, name, tls.NODE, self.node_id)
        if not token and (self._home / "token").exists():
            token = (self._home / "token").read_text()
        if not token:
            raise ClusterError(
                "joining needs the cluster's token: set SCALEOUT_TOKEN, or give --token-file; "
                "`scaleout token` on the head shows it"
            )
        address = self._options.address
        if not tls.Identity(self._home, "driver").is_there:
            dial.join(address, token, self._home, "driver", tls.DRIVER, secrets.token_hex(6))
        return None, dial.join(address, token, self._home, name, tls.NODE, self.node_id)

    def _renew_keys(self, own: tls.Identity, admission: Admission) -> None:
        """In good time: connections that are open stay, all others begin with the new ones."""
        for identity, role in ((own, tls.NODE), (tls.Identity(self._home, "driver"), tls.DRIVER)):
            if not identity.is_there or not identity.is_old:
                continue
            try:
                if (self._home / "ca.key").exists():
                    keys.own_identity(
                        self._home, identity.path.stem, role, self.node_id if role == tls.NODE else secrets.token_hex(6)
                    )
                else:
                    dial.renew(self._options.address, identity)
            except (ClusterError, OSError) as error:
                report(f"the certificate {identity.path.name} is not renewed yet: {error}")
                continue
            report(f"the certificate {identity.path.name} is renewed")
            if identity is own:
                admission.take_new_certificate(own)
                assert self._agent is not None
                self._agent.take_new_certificate()

    def _lock_head(self) -> None:
        """One head of a cluster's name on this machine, from here to the end of this process."""
        self._lock = open(self._local / "head.lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            running = [record for record in records(self._local) if record["is_head"]]
            where = f", at {running[0]['address']} (pid {running[0]['pid']})" if running else ""
            raise ClusterError(
                f"the cluster {self._options.cluster!r} has a head on this machine already{where}; "
                "--name starts another cluster"
            ) from None

    def _start_head(self, host: str, address: str, identity: tls.Identity) -> str:
        """Where the head's service listens from now on."""
        state = HeadState(self._local / "head.sqlite")
        self._head = Head(state, identity, host, self._last_ports()[1], report)
        self._head.start()
        self._stewardship = Stewardship(self._local, self._options.cluster, host, self._last_ports()[2], report)
        self._steward = f"{host}:{self._stewardship.port}"
        ports = [dial.parse(address)[1], self._head.port, self._stewardship.port]
        places.write(self._local / "head-ports.json", json.dumps(ports).encode())
        self._note_address(address)
        return f"{host}:{self._head.port}"

    def _find_head(self, identity: tls.Identity) -> str:
        """Where the head's service listens."""
        address = self._options.address
        sock, welcome = dial.connect(address, tls.client_context(identity))
        sock.close()
        if not welcome.get("head"):
            raise ClusterError(f"the node at {address} does not know its head")
        self._note_address(address)
        self._steward = str(welcome.get("steward", ""))
        return str(welcome["head"])

    def _note_address(self, address: str) -> None:
        """For the command line, and for programs: which cluster it is that they name by this address."""
        places.write(self._home / "head.json", json.dumps({"address": address}).encode())

    def _last_ports(self) -> tuple[int, int, int]:
        """The head's, its service's and the steward's, when it was here last; zeros if it never was."""
        try:
            port, of_service, of_steward = json.loads((self._local / "head-ports.json").read_text())
            return int(port), int(of_service), int(of_steward)
        except (OSError, ValueError):
            return 0, 0, 0

    def _write_record(self, address: str, head_address: str) -> None:
        record = {
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "node_id": self.node_id,
            "address": address,
            "is_head": self._options.is_head,
            "head": self._options.address or address,
            "service": head_address,
        }
        places.write(self._record, json.dumps(record).encode())

    # -- drivers ---------------------------------------------------------------------------------

    def _attach(self, sock: ssl.SSLSocket, body: bytes) -> None:
        """In the thread of the handshake."""
        asked = marshal.loads(body)
        here = dial.introduction()
        for what, name in (("python", "Python"), ("scaleout", "scaleout")):
            if asked[what] != here[what]:
                reason = f"it runs {name} {here[what]}, and the driver {asked[what]}: they must be the same"
                sock.sendall(frame(frames.REFUSED, reason.encode()))
                raise ClusterError(reason)
        if "session" in asked:
            come_back = str(asked["session"]), int(asked["attempt"]), int(asked["arrived"])
            self._reactor.post(partial(self._resume, sock, *come_back))
            return
        session, reading = secrets.token_hex(16), secrets.token_hex(16)
        assert self._agent is not None
        reply = self._agent.nodes()
        nodes = self._nodes if reply is None else _described(reply)
        info = {
            "node_id": self.node_id,
            "resources": dict(self._node.resources),
            "nodes": nodes,
            "steward": self._steward,
            "session": session,
            "reading": reading,
        }
        self._opening[session] = threading.Event()
        try:
            sock.sendall(frame(frames.ATTACH, marshal.dumps(info)))
            sock.setblocking(False)
            link = NodeLink(sock)
        except BaseException:
            del self._opening[session]
            raise
        self._reactor.post(partial(self._open, link, session, reading))

    def _resume(self, sock: ssl.SSLSocket, session: str, attempt: int, arrived_bytes: int) -> None:
        """A driver has lost its connection."""
        tenant = next((tenant for tenant in self._tenants if tenant.session == session), None)
        try:
            if tenant is None or not tenant.may_resume(attempt, arrived_bytes):
                sock.sendall(frame(frames.REFUSED, b"what it had of this driver has ended"))
                sock.close()
                return
            sock.sendall(frame(frames.ATTACH, marshal.dumps({"arrived": tenant.break_off()})))
            sock.setblocking(False)
        except OSError:  # that one is lost, too
            sock.close()
            return
        tenant.resume(sock, arrived_bytes)

    def _open(self, link: NodeLink, session: str, reading: str) -> None:
        tenant = Tenant(
            self._reactor,
            link,
            session,
            reading,
            self.node_id,
            self._gpus,
            self._settings,
            self._sources_dir,
            self._puller,
            self._tenant_gone,
            lambda tenant: tenant.tell_nodes(self._nodes),
            report,
        )
        self._tenants.append(tenant)
        tenant.open()
        self._opening.pop(session).set()
        if not self._watches_memory:
            self._watches_memory = True
            self._watch_memory()

    def _lodge(self, sock: socket.socket, session: str) -> None:
        """Any thread: by the node's Unix socket, a driver that has attached just now, or lost what it had."""
        opening = self._opening.get(session)
        if opening is not None:
            opening.wait(limits.DIAL_SECONDS)
        self._reactor.post(partial(self._lodge_now, sock, session))

    def _lodge_now(self, sock: socket.socket, session: str) -> None:
        tenant = next((tenant for tenant in self._tenants if tenant.session == session), None)
        if tenant is None:
            sock.close()
        else:
            tenant.lodge(sock)

    def _tenant_gone(self, tenant: Tenant) -> None:
        self._tenants.remove(tenant)
        if not self._is_tidy_armed:
            self._is_tidy_armed = True
            self._reactor.call_later(limits.TIDY_SECONDS, self._tidy)

    def _tidy(self) -> None:
        """A tenant is all cycles, and what goes on here makes no garbage by which the collector would come to it."""
        self._is_tidy_armed = False
        gc.collect()

    def _watch_memory(self) -> None:
        """As long as there are drivers: when memory runs short, the one whose workers have most of it is told, then the
        next, before the system kills what it likes."""
        self._watches_memory = bool(self._tenants)
        self._told_short.intersection_update(self._tenants)
        if not self._tenants:
            return
        pause_s = limits.MEMORY_WATCH_SECONDS
        if not memory.is_short(limits.MEMORY_SHORT_SHARE):
            self._told_short.clear()
        elif untold := [tenant for tenant in self._tenants if tenant not in self._told_short]:
            usage, tenant = max(
                ((tenant.memory_usage(), tenant) for tenant in untold), key=lambda found: sum(found[0].values())
            )
            self._told_short.add(tenant)
            if usage:
                tenant.tell_short(usage)
                pause_s = limits.MEMORY_KILL_PAUSE_SECONDS
        else:  # all have been, and it did not help: once more
            self._told_short.clear()
        self._reactor.call_later(pause_s, self._watch_memory)

    def _serve_bulk(self, sock: ssl.SSLSocket, body: bytes) -> None:
        """In the thread of the handshake, which is not to wait for the end of it."""
        find = partial(bulk.find_in, self._tenants, self._reactor.post)
        threading.Thread(target=bulk.serve, args=(sock, body, find), name="scaleout-bulk", daemon=True).start()

    def _wants_nodes(self) -> bool:
        """On the agent's thread."""
        return any(tenant.is_watching for tenant in list(self._tenants))

    def _told_of_nodes(self, reply: NodesReply) -> None:
        self._reactor.post(partial(self._tell_drivers, _described(reply)))

    def _tell_drivers(self, nodes: tuple[int, list[Any]]) -> None:
        self._nodes = nodes
        for tenant in self._tenants:
            if tenant.is_watching:
                tenant.tell_nodes(nodes)

    def _fenced(self) -> None:
        self._reactor.post(self._close_tenants)

    def _close_tenants(self) -> None:
        for tenant in list(self._tenants):
            tenant.close()

    # -- the end ---------------------------------------------------------------------------------

    def _end(self, listener: socket.socket) -> None:
        listener.close()
        if self._stewardship is not None:  # as long as it has nodes, its actors end well
            self._stewardship.close()
        self._reactor.post(self._close_tenants)
        self._reactor.post(self._reactor.stop)
        self._puller.close()
        if self._agent is not None:
            self._agent.close()
        if self._head is not None:
            self._head.close()
        self._reactor.thread.join()
        self._record.unlink(missing_ok=True)
        if self._near is not None:
            self._near.close()
        (self._local / near_socket.name_of(self.node_id)).unlink(missing_ok=True)
        identity = tls.Identity(self._home, f"node-{self.node_id}")
        identity.path.unlink(missing_ok=True)


def _described(reply: NodesReply) -> tuple[int, list[Any]]:
    """As drivers are told: the list's version, and the nodes."""
    return reply.version, [
        (node.node_id, f"{node.host}:{node.port}", dict(node.resources), node.state, node.is_draining)
        for node in reply.nodes
    ]


def _answer(facts: dict[str, Any]) -> None:
    """To whoever has started us; that may be gone."""
    try:
        print(json.dumps(facts), flush=True)
    except OSError:
        pass


def main(arguments: list[str]) -> int:
    try:
        Daemon(Options(**json.loads(arguments[0]))).run()
    except ScaleoutError as error:
        _answer({"error": str(error)})
        return 1
    except Exception as error:
        _answer({"error": f"{type(error).__name__}: {error}"})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
