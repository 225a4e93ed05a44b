"""Who belongs to a cluster: its authority, the certificates that it signs, and the token by which newcomers get one.

The first head of a cluster makes the authority (a P-256 key and a certificate) and the token: 128 random bits, and the
SHA-256 of that certificate. A newcomer who has the token knows by the hash that it talks to the cluster, and proves by
the bits that it may join; then the head signs its key. From there on every connection is TLS 1.3 with both sides'
certificates verified, and what a peer is, stands in its certificate: `scaleout:<cluster id>:<role>:<id>`.

(Python's ssl has no channel binding for TLS 1.3: a secret proved over a TLS connection without certificates would be
open to a man in the middle.)
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import places
from scaleout._runtime.cluster.tls import Identity
from scaleout.errors import ClusterError

CERTIFICATE_LIFE = datetime.timedelta(seconds=limits.CERTIFICATE_SECONDS)
AUTHORITY_LIFE = datetime.timedelta(days=3650)
SKEW = datetime.timedelta(minutes=5)
"""Certificates are valid from a little before they are made: clocks differ."""


class Authority:
    """What the head has: the key that signs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        if not (home / "ca.key").exists():
            self._make()
        key = serialization.load_pem_private_key((home / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self.pem = (home / "ca.pem").read_bytes()
        self.certificate = x509.load_pem_x509_certificate(self.pem)
        self.cluster_id = _common_name(self.certificate)

    @property
    def token(self) -> str:
        """As the file says now: it may have been rotated."""
        return (self._home / "token").read_text().strip()

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, secrets.token_hex(8))])
        certificate = (
            _builder(name, name, key.public_key(), AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        places.write(self._home / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
        self.pem = (self._home / "ca.pem").read_bytes()
        self.rotate()
        places.write(self._home / "ca.key", _private_pem(key))  # last: with it the authority is there

    def rotate(self) -> None:
        """A new token; who has joined stays."""
        token = f"{secrets.token_hex(16)}-{_hash_of(self.pem)}"
        places.write(self._home / "token", token.encode() + b"\n")

    def accepts(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def sign(self, request_pem: bytes, role: str, member_id: str) -> bytes:
        """The certificate for a request, as PEM. ClusterError if that is none."""
        try:
            request = x509.load_pem_x509_csr(request_pem)
            is_valid = request.is_signature_valid
        except ValueError as error:
            raise ClusterError("what was sent is not a certificate request") from error
        if not is_valid:
            raise ClusterError("the certificate request is not signed by its own key")
        return self._certify(request.public_key(), role, member_id)

    def _certify(self, public_key: object, role: str, member_id: str) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, member_id)])
        uri = x509.UniformResourceIdentifier(f"scaleout:{self.cluster_id}:{role}:{member_id}")
        names = [uri, x509.DNSName("scaleout")]  # gRPC wants to verify a host's name: it is this one, everywhere
        certificate = (
            _builder(subject, self.certificate.subject, public_key, CERTIFICATE_LIFE)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def new_request(name: str) -> tuple[bytes, bytes]:
    """(a new key, the request for its certificate)"""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return _private_pem(key), request.public_bytes(serialization.Encoding.PEM)


def own_identity(home: Path, name: str, role: str, member_id: str) -> Identity:
    """For whoever has the authority at hand: the identity of that name, made or renewed if it has to be."""
    identity = Identity(home, name)
    if not identity.is_there or identity.is_old:
        key, request = new_request(name)
        places.write(identity.path, key + Authority(home).sign(request, role, member_id))
    return identity


# -- the token -----------------------------------------------------------------------------------


def check_authority(pem: bytes, peer_der: bytes, token: str) -> None:
    """ClusterError unless this is the authority that the token names, and it has signed the certificate of the peer."""
    _, _, wanted = token.strip().partition("-")
    if not hmac.compare_digest(_hash_of(pem), wanted):
        raise ClusterError("the head is not the one that the token is for: it belongs to another cluster")
    try:
        authority = x509.load_pem_x509_certificate(pem)
        x509.load_der_x509_certificate(peer_der).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ClusterError("the head's certificate is not signed by its cluster: somebody is in between") from error


def is_token(text: str) -> bool:
    secret, _, digest = text.strip().partition("-")
    return len(secret) == 32 and len(digest) == 64 and all(c in "0123456789abcdef" for c in secret + digest)


# -- helpers -------------------------------------------------------------------------------------


def _hash_of(pem: bytes) -> str:
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: object, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)  # type: ignore[arg-type]  # of a request; what is no key is refused there
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
