"""How drivers and nodes come to a node: the other side of `cluster.admission`. Everything here blocks, for seconds.

ClusterError says, in one line, why it cannot be.
"""

from __future__ import annotations

import json
import marshal
import socket
import ssl
import sys
import time

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import near_socket, places, tls
from scaleout._runtime.cluster.admission import receive_frame
from scaleout._runtime.cluster.node_link import NodeLink
from scaleout._runtime.cluster.relayed import RemoteNode
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

WELCOME_BYTES = 64 * 1024


class NodeRefusal(ClusterError):
    """It is there, and does not want to."""


def parse(address: str) -> tuple[str, int]:
    """HOST:PORT"""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def own_address_towards(address: str) -> str:
    """The address of this machine that the network there knows it by. Nothing is sent for it."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(*parse(address), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(target)
            return str(sock.getsockname()[0])
    except OSError as error:
        raise ClusterError(f"no node answers at {address}: {error.strerror or error}") from error


def connect(
    address: str, context: ssl.SSLContext, seconds: float = limits.DIAL_SECONDS
) -> tuple[ssl.SSLSocket, dict[str, Any]]:
    """A connection, and what the node says to everybody."""
    deadline = time.monotonic() + seconds
    try:
        sock = socket.create_connection(parse(address), seconds)
    except OSError as error:
        raise ClusterError(f"no node answers at {address}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = secure = context.wrap_socket(sock)
        kind, body = receive_frame(secure, WELCOME_BYTES, deadline)
        if kind != frames.WELCOME:
            raise ClusterError("it is not a node of this version of scaleout")
        return secure, json.loads(body)
    except ssl.SSLError as error:
        sock.close()
        raise ClusterError(f"cannot talk to {address}: {tls.explained(error)}") from error
    except (ClusterError, OSError, ValueError) as error:
        sock.close()
        raise ClusterError(f"cannot talk to {address}: {error}") from error
    except BaseException:  # Ctrl-C
        sock.close()
        raise


def _deadline() -> float:
    return time.monotonic() + limits.DIAL_SECONDS


def introduction() -> dict[str, str]:
    """What both sides of a link must have in common."""
    package = sys.modules["scaleout"]  # which we are a part of, and must not import
    return {"python": "{}.{}".format(*sys.version_info), "scaleout": package.__version__}


def attach(address: str, identity: tls.Identity) -> tuple[RemoteNode, dict[str, Any]]:
    """A driver's link to the node at this address, and what the node says of itself and the cluster."""
    sock, info = _attach(address, identity, introduction())
    names = [info[name] for name in ("session", "reading")]
    node = RemoteNode(NodeLink(sock), info["node_id"], info["resources"], address, *names)
    node.channel = near_socket.ask(identity.path.parent.name, node.node_id, node.session)
    return node, info


def resume(node: RemoteNode, identity: tls.Identity, seconds: float) -> tuple[ssl.SSLSocket, int]:
    """Another connection for the link to this node, which has lost its own, and how much has arrived there."""
    node.attempts += 1
    asked = {
        **introduction(),
        "session": node.session,
        "attempt": node.attempts,
        "arrived": node.link.received_bytes,
    }
    sock, info = _attach(node.address, identity, asked, seconds)
    try:
        return sock, int(info["arrived"])
    except BaseException:
        sock.close()
        raise


def _attach(
    address: str, identity: tls.Identity, asked: dict[str, Any], seconds: float = limits.DIAL_SECONDS
) -> tuple[ssl.SSLSocket, dict[str, Any]]:
    """A connection, and what the node answers to the first frame."""
    deadline = time.monotonic() + seconds
    sock, _ = connect(address, tls.client_context(identity), seconds)
    try:
        sock.sendall(frame(frames.ATTACH, marshal.dumps(asked)))
        kind, body = receive_frame(sock, limits.FRAME_BYTES, deadline)
        if kind != frames.ATTACH:
            raise NodeRefusal(f"the node at {address} refuses: {body.decode(errors='replace')}")
        sock.setblocking(False)
        return sock, marshal.loads(body)
    except ClusterError:
        sock.close()
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        sock.close()
        reason = tls.explained(error) if isinstance(error, ssl.SSLError) else str(error)
        raise ClusterError(f"cannot talk to {address}: {reason}") from error
    except BaseException:  # Ctrl-C
        sock.close()
        raise


def join(address: str, token: str, home: Path, name: str, role: str, member_id: str) -> tls.Identity:
    """A certificate of the cluster at this address, for who has its token; kept in `home` under `name`."""
    from scaleout._runtime.cluster import keys

    if not keys.is_token(token):
        raise ClusterError("that is not a join token: `scaleout token` on the head shows it")
    sock, welcome = connect(address, tls.newcomer_context())
    with sock:
        peer = sock.getpeercert(binary_form=True)
        assert peer is not None
        authority = str(welcome.get("authority", "")).encode()
        keys.check_authority(authority, peer, token)
        identity = tls.Identity(home, name)
        places.write(identity.authority, authority)
        _have_signed(sock, address, identity, {"token": token.strip(), "role": role, "id": member_id})
    return identity


def renew(address: str, identity: tls.Identity) -> None:
    """Another certificate for a member whose own is still good, for what it is already."""
    sock, welcome = connect(address, tls.client_context(identity))
    with sock:
        _have_signed(sock, address, identity, {"token": "", "role": welcome["role"], "id": welcome["id"]})


def _have_signed(sock: ssl.SSLSocket, address: str, identity: tls.Identity, asked: dict[str, str]) -> None:
    """A new key with its certificate, into the identity's file."""
    from scaleout._runtime.cluster import keys

    key, request = keys.new_request(identity.path.stem)
    sock.sendall(frame(frames.JOIN, json.dumps({**asked, "request": request.decode()}).encode()))
    _, body = receive_frame(sock, WELCOME_BYTES, _deadline())
    answer = json.loads(body)
    if "certificate" not in answer:
        raise ClusterError(f"the head at {address} refuses: {answer.get('error', 'it does not say why')}")
    places.write(identity.path, key + answer["certificate"].encode())
