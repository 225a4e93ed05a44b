"""TLS between members of a cluster: version 1.3, both sides with certificates of the cluster's authority.

A driver imports this and no more of keys: the packages behind `cluster.keys` are for whoever signs.
"""

from __future__ import annotations

import ssl
import time

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

NODE = "node"
DRIVER = "driver"


class Identity:
    """A key and its certificate, in one file of a cluster's home: whoever replaces it replaces both."""

    def __init__(self, home: Path, name: str) -> None:
        self.path = home / f"{name}.pem"
        self.authority = home / "ca.pem"

    @property
    def is_there(self) -> bool:
        return self.path.exists() and self.authority.exists()

    @property
    def is_old(self) -> bool:
        """Whether more than half of its time is over: the file is as old as the certificate in it."""
        return time.time() - self.path.stat().st_mtime > limits.CERTIFICATE_SECONDS / 2


def server_context(identity: Identity) -> ssl.SSLContext:
    """Those without a certificate are let in so far that they may ask to join."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    return _loaded(context, identity)


def client_context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # members are known by their certificates, wherever they are
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, identity)


def newcomer_context() -> ssl.SSLContext:
    """For whoever has nothing but a token; `check_authority` has to follow."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _loaded(context: ssl.SSLContext, identity: Identity) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.path)
    context.load_verify_locations(identity.authority)
    return context


def role_of(sock: ssl.SSLSocket | ssl.SSLObject) -> tuple[str, str]:
    """(role, id) of the peer, from its verified certificate; ("", "") if it has none."""
    found = sock.getpeercert()
    names: Any = (found or {}).get("subjectAltName", ())
    for kind, text in names:
        parts = text.split(":")
        if kind == "URI" and parts[0] == "scaleout" and len(parts) == 4:
            return parts[2], parts[3]
    return "", ""


def explained(error: ssl.SSLError) -> str:
    """What to make of a failed handshake."""
    text = getattr(error, "verify_message", "") or str(error)
    if "not yet valid" in text:
        return "its certificate is not valid yet: the clocks of the two machines differ"
    if "expired" in text:
        return "a certificate has expired: remove the old key, and join again with a token"
    if "certificate" in text.lower() or "unknown ca" in text.lower():
        return "it belongs to another cluster, or we do: the certificates do not match"
    return f"it does not speak TLS 1.3 as a node does ({text})"
