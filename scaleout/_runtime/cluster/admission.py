"""Who comes in: the handshake of every connection to a node, in a thread of its own and within a few seconds.

    newcomer -> node    TLS 1.3; a certificate, if it has one
    node -> newcomer    WELCOME {"role": what the certificate says, or "", "authority": PEM,
                                 "head": "HOST:PORT", "steward": "HOST:PORT"}
    no certificate:     JOIN {"token", "role", "id", "request": PEM}; back: JOIN {"certificate": PEM} or {"error"}
    a driver's:         ATTACH, see `cluster.dial`
    a node's:           PULL, see `cluster.bulk`

Before a certificate is verified nothing is read but one small JSON object.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import threading
import time

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import tls
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.cluster.keys import Authority


class Admission:
    """Accepts connections of a listening socket, and hands on those of drivers, and of other nodes that want bulk data:
    `attach(sock, frame's body)` and `serve(sock, frame's body)`, in the thread of the handshake.

    `authority` is the head's, which alone can sign. `report(line)` writes to the log.
    """

    def __init__(
        self,
        listener: socket.socket,
        identity: tls.Identity,
        authority: Authority | None,
        facts: dict[str, str],
        attach: Callable[[ssl.SSLSocket, bytes], None],
        serve: Callable[[ssl.SSLSocket, bytes], None],
        report: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._context = tls.server_context(identity)
        self._authority_pem = identity.authority.read_text()
        self._authority = authority
        self._facts = facts
        self._attach = attach
        self._serve_bulk = serve
        self._report = report
        self._places = threading.BoundedSemaphore(limits.ADMISSIONS)
        self._reported_at = 0.0
        self._unreported = 0

    def take_new_certificate(self, identity: tls.Identity) -> None:
        """For the connections that come from now on."""
        self._context.load_cert_chain(identity.path)

    def run(self) -> None:
        """Until the listening socket is closed."""
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if self._listener.fileno() < 0:
                    return
                self._report(f"cannot accept a connection: {error.strerror}")
                time.sleep(0.1)  # no descriptors: some may be closed by then
                continue
            if not self._places.acquire(blocking=False):
                sock.close()
                self._refused(address, f"{limits.ADMISSIONS} others have not shown who they are yet")
                continue
            try:
                threading.Thread(target=self._admit, args=(sock, address), daemon=True).start()
            except RuntimeError as error:  # no more threads
                sock.close()
                self._places.release()
                self._refused(address, str(error))

    def _admit(self, sock: socket.socket, address: Any) -> None:
        deadline = time.monotonic() + limits.DIAL_SECONDS
        try:
            sock.settimeout(limits.DIAL_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(sock, deadline)
        except (ClusterError, OSError, ValueError) as error:
            sock.close()
            reason = tls.explained(error) if isinstance(error, ssl.SSLError) else str(error)
            self._refused(address, reason or type(error).__name__)
        finally:
            self._places.release()

    def _serve(self, sock: socket.socket, deadline: float) -> None:
        secure = self._handshake(sock, deadline)
        try:
            role, member_id = tls.role_of(secure)
            welcome = {"role": role, "id": member_id, "authority": self._authority_pem, **self._facts}
            secure.sendall(frame(frames.WELCOME, json.dumps(welcome).encode()))
            try:
                kind, body = receive_frame(secure, limits.NEWCOMER_BYTES, deadline)
            except ClusterError:
                if role:  # a member that wanted to know no more than where the head is
                    secure.close()
                    return
                raise
            if kind == frames.ATTACH and role == tls.DRIVER:
                self._attach(secure, body)
            elif kind == frames.PULL and role == tls.NODE:
                self._serve_bulk(secure, body)
            elif kind == frames.JOIN:
                secure.sendall(frame(frames.JOIN, json.dumps(self._answer_to(body, role, member_id)).encode()))
                secure.close()
            else:
                raise ClusterError(f"a {role or 'stranger'} sent a frame of kind {kind}")
        except BaseException:
            secure.close()
            raise

    def _handshake(self, sock: socket.socket, deadline: float) -> ssl.SSLSocket:
        """In steps, as a timeout of the socket would begin anew with every byte."""
        secure = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            secure.setblocking(False)
            while True:
                try:
                    secure.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                poll = select.poll()
                poll.register(secure, wanted)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise ClusterError(f"it has not shown who it is in {limits.DIAL_SECONDS:g} s")
            secure.settimeout(limits.DIAL_SECONDS)
            return secure
        except BaseException:
            secure.close()
            raise

    def _answer_to(self, body: bytes, role_here: str, id_here: str) -> dict[str, str]:
        """To who wants to join, or who is a member and needs a new certificate for what it is."""
        if self._authority is None:
            return {"error": f"only the head can sign; it is at {self._facts['head']}"}
        try:
            asked = json.loads(body)
            token, role, member_id, request = (str(asked[key]) for key in ("token", "role", "id", "request"))
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError("a request to join that makes no sense") from error
        is_renewal = bool(role_here) and (role, member_id) == (role_here, id_here)
        if not is_renewal and not self._authority.accepts(token):
            return {"error": "the token is not the cluster's, or not any more: `scaleout token` on the head shows it"}
        if role not in (tls.NODE, tls.DRIVER) or not member_id.isalnum() or len(member_id) > 64:
            return {"error": f"{role!r} with the id {member_id!r} cannot join"}
        try:
            return {"certificate": self._authority.sign(request.encode(), role, member_id).decode()}
        except ClusterError as error:
            return {"error": str(error)}

    def _refused(self, address: Any, reason: str) -> None:
        """One line a second at most: whoever floods the port must not fill the disk."""
        now = time.monotonic()
        if now - self._reported_at < 1.0:
            self._unreported += 1
            return
        more = f" (and {self._unreported} others)" if self._unreported else ""
        self._unreported = 0
        self._reported_at = now
        self._report(f"refused {address[0]}: {reason}{more}")


def receive_frame(sock: socket.socket, limit_bytes: int, deadline: float) -> tuple[int, bytes]:
    """(kind, body) of one frame. ClusterError if it is longer, or the stream ends before it does, or the time."""
    header = _receive_exactly(sock, HEADER_BYTES, deadline)
    length, kind, _, _, _ = HEADER.unpack(header)
    if length > limit_bytes:
        raise ClusterError(f"a frame of {length} bytes, where {limit_bytes} are the most")
    return kind, _receive_exactly(sock, length, deadline)


def _receive_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClusterError("what was to come has not come in time")
        sock.settimeout(left)
        more = sock.recv(size - len(data))
        if not more:
            raise ClusterError("the connection was closed by the other side")
        data += more
    return data
