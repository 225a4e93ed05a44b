"""Who may come in, and what becomes of the others: one line in the log, bounded memory, and the service goes on."""

from __future__ import annotations

import json
import marshal
import os
import socket
import ssl
import struct
import time
from pathlib import Path

import psutil
import pytest
from clusters import DEADLINE_S, Cluster, wait_until

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import dial, keys, tls
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import HEADER, frame
from scaleout.errors import ClusterError


def port_of(cluster: Cluster) -> tuple[str, int]:
    return dial.parse(cluster.address)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side has hung up, within a moment."""
    sock.settimeout(limits.DIAL_SECONDS + 5)
    try:
        while sock.recv(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


def driver_of(cluster: Cluster) -> tls.Identity:
    return tls.Identity(cluster.directory / "home/default", "driver")


def check_serves(cluster: Cluster) -> None:
    node, _ = dial.attach(cluster.address, driver_of(cluster))
    node.link.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: head\r\n\r\n",
        b"\x16\x03\x01\x00\xff" + bytes(300),
        os.urandom(100_000),
        frame(frames.ATTACH, b"\x80\x04N."),
        b"",
    ],
    ids=["http", "half a handshake", "noise", "a frame without TLS", "nothing"],
)
def test_what_does_not_speak_tls(cluster: Cluster, data: bytes) -> None:
    cluster.start_head()
    with socket.create_connection(port_of(cluster)) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up already
        assert is_closed(sock)
    wait_until(lambda: "refused 127.0.0.1" in cluster.log())
    check_serves(cluster)


@pytest.mark.parametrize(
    "data",
    [
        frame(frames.ATTACH, b"{}"),
        frame(frames.RELAY, b"x" * 100, number=1),
        HEADER.pack(1 << 30, frames.JOIN, 0, 0, 0),
        HEADER.pack(100, frames.JOIN, 0, 0, 0) + b"cut short",
        frame(frames.JOIN, b"\x80\x05cos\nsystem\n"),
        frame(frames.JOIN, b'{"token": 1}'),
        frame(frames.JOIN, json.dumps({"token": "x", "role": "node", "id": "1", "request": "none"}).encode()),
        os.urandom(4000),
    ],
    ids=["attach", "relay", "huge", "cut short", "pickle", "no fields", "wrong token", "noise"],
)
def test_who_has_no_certificate(cluster: Cluster, data: bytes) -> None:
    """May ask to join, and nothing else."""
    cluster.start_head()
    sock, welcome = dial.connect(cluster.address, tls.newcomer_context())
    with sock:
        assert welcome["role"] == ""
        sock.sendall(data)
        if data[:100].startswith(HEADER.pack(100, frames.JOIN, 0, 0, 0)):
            sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)
    check_serves(cluster)


def test_a_certificate_of_another_cluster(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_head()
    keys.Authority(tmp_path)
    stranger = keys.own_identity(tmp_path, "driver", tls.DRIVER, "1")
    with pytest.raises(ClusterError, match="another cluster"):
        dial.attach(cluster.address, stranger)
    check_serves(cluster)


def test_a_node_s_certificate_is_no_driver_s(cluster: Cluster) -> None:
    cluster.start_head()
    node = keys.own_identity(cluster.directory / "home/default", "node-1", tls.NODE, "1")
    with pytest.raises(ClusterError):
        dial.attach(cluster.address, node)
    wait_until(lambda: "a node sent a frame" in cluster.log())


def test_tokens(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_head()
    token = cluster.must("token").strip()
    (tmp_path / "a").mkdir()
    identity = dial.join(cluster.address, token, tmp_path / "a", "driver", tls.DRIVER, "1")
    node, _ = dial.attach(cluster.address, identity)
    node.link.close()
    assert (tmp_path / "a/driver.pem").stat().st_mode & 0o777 == 0o600
    other = "0" * 32 + token[32:]
    with pytest.raises(ClusterError, match="token"):
        dial.join(cluster.address, other, tmp_path / "a", "driver2", tls.DRIVER, "2")
    with pytest.raises(ClusterError, match="another cluster"):
        dial.join(cluster.address, token[:33] + "0" * 64, tmp_path / "a", "driver2", tls.DRIVER, "2")
    with pytest.raises(ClusterError, match="not a join token"):
        dial.join(cluster.address, "sesame", tmp_path / "a", "driver2", tls.DRIVER, "2")


def test_a_token_that_was_rotated(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_head()
    old = cluster.must("token").strip()
    new = cluster.must("token", "--rotate").strip()
    assert old != new
    with pytest.raises(ClusterError, match="not any more"):
        dial.join(cluster.address, old, tmp_path, "driver", tls.DRIVER, "1")
    dial.join(cluster.address, new, tmp_path, "driver", tls.DRIVER, "1")
    check_serves(cluster)  # who has joined stays


def test_an_attached_driver_that_talks_nonsense(cluster: Cluster) -> None:
    address = cluster.start_head()
    memory = psutil.Process(cluster.pid_of(address))
    before = memory.memory_info().rss
    for nonsense in (
        frame(99, b"?"),
        frame(frames.GREET, b"\xff\xff", number=1),
        frame(frames.FORK, number=12345),
        frame(frames.INTRODUCE, b"i\x01\0\0\0", number=1),
        frame(frames.WORD, b"1", aux=1 << 31, number=1),
        frame(frames.STATE, b"{0"),
        HEADER.pack(0xFFFFFFFF, frames.RELAY, 0, 0, 1),
        b"\xff" * 65536,
    ):
        node, _ = dial.attach(address, driver_of(cluster))
        sock = node.link.sock
        sock.settimeout(DEADLINE_S)
        try:
            sock.sendall(nonsense)
            sock.sendall(frame(99))  # after which it hangs up, if it has not yet
        except OSError:
            pass
        assert is_closed(sock)
        node.link.close()
    check_serves(cluster)
    assert memory.memory_info().rss < before + (64 << 20)


def test_a_flood_of_connections(cluster: Cluster) -> None:
    """Those that say nothing are closed after a while; the log does not grow with them; others come in meanwhile."""
    cluster.start_head()
    silent = [socket.create_connection(port_of(cluster)) for _ in range(limits.ADMISSIONS + 40)]
    try:
        closed = 0
        for sock in silent:
            closed += is_closed(sock)
        assert closed == len(silent)
        check_serves(cluster)
        assert len(cluster.log().splitlines()) < 20
    finally:
        for sock in silent:
            sock.close()


@pytest.mark.parametrize(("what", "other"), [("python", "3.99"), ("scaleout", "99.0")])
def test_another_version(cluster: Cluster, what: str, other: str) -> None:
    cluster.start_head()
    sock, _ = dial.connect(cluster.address, tls.client_context(driver_of(cluster)))
    with sock:
        sock.sendall(frame(frames.ATTACH, marshal.dumps({**dial.introduction(), what: other})))
        kind, _, _, _, body = _one_frame(sock)
        assert kind == frames.REFUSED
        assert f"it runs {'Python' if what == 'python' else what}" in body.decode()
        assert other in body.decode()


def test_a_driver_cannot_speak_for_a_node(cluster: Cluster) -> None:
    import grpc

    from scaleout._runtime.cluster import head_pb2 as pb
    from scaleout._runtime.cluster.head import channel
    from scaleout._runtime.cluster.head_pb2_grpc import HeadStub

    cluster.start_head()
    sock, welcome = dial.connect(cluster.address, tls.client_context(driver_of(cluster)))
    sock.close()
    (node,) = cluster.nodes()
    with channel(welcome["head"], driver_of(cluster)) as to_head:
        for request in (
            lambda head: head.Leave(pb.LeaveRequest(node_id=node["node_id"], epoch=1), timeout=10),
            lambda head: head.Register(pb.RegisterRequest(node=pb.Node(node_id="another")), timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                request(HeadStub(to_head))
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert len(cluster.nodes()) == 1


def test_who_sends_a_byte_now_and_then_does_not_keep_its_place(cluster: Cluster) -> None:
    cluster.start_head()
    with socket.create_connection(port_of(cluster)) as sock:
        started = time.monotonic()
        try:
            while time.monotonic() < started + DEADLINE_S:
                sock.sendall(b"\x16\x03\x01\x02\x00"[:1])
                time.sleep(0.5)
        except ConnectionError:
            pass
        assert time.monotonic() < started + DEADLINE_S


def _one_frame(sock: ssl.SSLSocket) -> tuple[int, int, int, int, bytes]:
    data = b""
    deadline = time.monotonic() + 10
    while len(data) < HEADER.size or len(data) < HEADER.size + struct.unpack_from("<I", data)[0]:
        assert time.monotonic() < deadline
        data += sock.recv(4096)
    length, kind, flag, aux, number = HEADER.unpack_from(data)
    return kind, flag, aux, number, data[HEADER.size :]
