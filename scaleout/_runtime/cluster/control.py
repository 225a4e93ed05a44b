"""What the command line does with the nodes of this machine and with the head. Everything here blocks.

ClusterError says what is wrong in one line.
"""

from __future__ import annotations

import json
import marshal
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from scaleout._runtime.cluster import places, stewardship, tls
from scaleout._runtime.cluster.running import process_start, records
from scaleout.errors import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 10.0


def start(options: dict[str, Any], token: str | None) -> dict[str, Any]:
    """Start a node in the background; what it says when it is ready. See `cluster.daemon.Options`."""
    log = places.local(options["cluster"]) / f"node-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            _command(options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=_environ(token),
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout:
        if not select.select([process.stdout], [], [], START_SECONDS)[0]:
            process.kill()
            process.wait()
            raise ClusterError(f"the node was not ready after {START_SECONDS:g} s; its log is {log}")
        line = process.stdout.readline()
    try:
        answer = dict(json.loads(line))
    except ValueError:
        raise ClusterError(f"the node ended before it was ready; its log is {log}") from None
    if "error" in answer:
        process.wait(STOP_SECONDS)
        raise ClusterError(str(answer["error"]))
    return {**answer, "log": str(log), "pid": process.pid}


def run(options: dict[str, Any], token: str | None) -> None:
    """Become a node, in the foreground."""
    command = _command(options)
    sys.stdout.flush()
    os.execvpe(command[0], command, _environ(token))


def _command(options: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "scaleout._runtime.cluster.daemon", json.dumps(options)]


def _environ(token: str | None) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("SCALEOUT_ADDRESS", "SCALEOUT_TOKEN")}
    if token:
        environ["SCALEOUT_TOKEN"] = token
    return environ


def stop(cluster: str) -> list[dict[str, Any]]:
    """End the nodes of this cluster on this machine, the head last; which they were."""
    local = places.local(cluster)
    running = sorted(records(local), key=lambda record: record["is_head"])
    for record in running:
        _signal(record, signal.SIGTERM)
        if not _wait_for_end(record, STOP_SECONDS):
            _signal(record, signal.SIGKILL)
            _wait_for_end(record, STOP_SECONDS)
    if any(record["is_head"] for record in running) or not records(local):
        stewardship.stop(local)  # a head that was killed has left it behind
    records(local)  # and what they could not remove themselves is
    return running


def _signal(record: dict[str, Any], signum: int) -> None:
    if process_start(record["pid"]) == record["started"]:
        try:
            os.kill(record["pid"], signum)
        except ProcessLookupError:
            pass


def _wait_for_end(record: dict[str, Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process_start(record["pid"]) == record["started"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def logs(cluster: str) -> list[Path]:
    """The log files of this machine's nodes, the oldest first."""
    return sorted(places.local(cluster).glob("node-*.log"))


def token(cluster: str, rotate: bool = False) -> str:
    """What newcomers join by."""
    from scaleout._runtime.cluster.keys import Authority

    home = places.home(cluster)
    if not (home / "ca.key").exists():
        raise ClusterError(f"the head of the cluster {cluster!r} is not on this machine: only there the token is known")
    authority = Authority(home)
    if rotate:
        authority.rotate()
    return authority.token


def has_token(cluster: str) -> bool:
    """Whether joining this cluster from here needs none."""
    home = places.home(cluster)
    return (home / "ca.key").exists() or (home / "token").exists()


def nodes(cluster: str) -> list[dict[str, Any]]:
    """The nodes, as the head sees them."""
    from google.protobuf.json_format import MessageToDict

    from scaleout._runtime.cluster import head_pb2 as pb

    reply = _ask(cluster, "Nodes", pb.NodesRequest())
    return [
        MessageToDict(node, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for node in reply.nodes
    ]


def drain(cluster: str, node_id: str) -> None:
    """No new work for this node."""
    from scaleout._runtime.cluster import head_pb2 as pb

    _ask(cluster, "Drain", pb.DrainRequest(node_id=node_id))


def actors(cluster: str) -> list[dict[str, Any]]:
    """The detached actors, as their steward has them."""
    import asyncio

    from scaleout._runtime.cluster import door

    async def ask(address: str) -> Any:
        reader, writer = await door.dial(address, cluster)
        try:
            door.write(writer, (1, "list"))
            (_, is_well, *_), values = await asyncio.wait_for(door.read(reader), START_SECONDS)
            if not is_well:
                raise OSError("it refuses")
            return marshal.loads(values[0][0])
        finally:
            await door.close(writer)

    _, welcome = _knock(cluster)
    try:
        found: list[dict[str, Any]] = asyncio.run(ask(welcome["steward"]))
        return found
    except (OSError, EOFError, asyncio.TimeoutError) as error:
        raise ClusterError(f"the steward of detached actors at {welcome['steward']} does not answer: {error}") from None


def _knock(cluster: str) -> tuple[tls.Identity, dict[str, Any]]:
    """(who we are, what the head says to everybody)"""
    from scaleout._runtime.cluster import dial

    home = places.home(cluster)
    identity = tls.Identity(home, "driver")
    if not identity.is_there:
        raise ClusterError(f"there is no cluster {cluster!r} here: `scaleout start --head` starts one")
    address = str(json.loads((home / "head.json").read_text())["address"])
    sock, welcome = dial.connect(address, tls.client_context(identity))
    sock.close()
    return identity, welcome


def _ask(cluster: str, method: str, request: Any) -> Any:
    import grpc

    from scaleout._runtime.cluster import head_pb2_grpc
    from scaleout._runtime.cluster.head import channel

    identity, welcome = _knock(cluster)
    with channel(welcome["head"], identity) as to_head:
        try:
            return getattr(head_pb2_grpc.HeadStub(to_head), method)(request, timeout=5)
        except grpc.RpcError as error:
            raise ClusterError(f"the head at {welcome['head']} says: {error.details()}") from None
