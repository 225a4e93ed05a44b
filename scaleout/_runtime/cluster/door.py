"""How a program of the cluster lets others in, and gets in there: asyncio streams, both sides members of the cluster.

As at a node's own door (`admission`), nothing is read before the other side has shown a certificate of the cluster's.
Messages are plain facts, and the parts of values, which nobody looks into on the way:

    uint32  the size of what follows
    marshal of (facts, the sizes of each value's parts), then the parts
"""

from __future__ import annotations

import asyncio
import marshal
import os
import ssl
import struct

from scaleout._runtime.base import limits
from scaleout._runtime.cluster import dial as dialling
from scaleout._runtime.cluster import places, tls
from scaleout._runtime.cluster.node_link import watch_for_silence
from scaleout._runtime.cluster.running import records, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from typing import Any

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEADER = struct.Struct("!I")
FACTS_BYTES = 1 << 20
"""The most that the facts of a message can be: names and numbers."""

READ_BYTES = 1 << 20
"""Parts are read in pieces of this size, so that no promise of a size takes memory."""

__all__ = ["close", "dial", "has_head", "read", "report", "serve", "write"]

STREAM_BYTES = 1 << 20
"""What is read ahead of whoever takes it."""


def has_head(local: Path) -> bool:
    """Whether the head of the cluster whose directory this is runs."""
    return any(record["is_head"] for record in records(local))


def _identity(cluster: str = "") -> tls.Identity:
    """That of this machine's drivers: every node has one."""
    return tls.Identity(places.home(cluster or os.environ.get("SCALEOUT_CLUSTER") or "default"), "driver")


async def dial(address: str, cluster: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to what `serve`s at the address, by default in the cluster of SCALEOUT_CLUSTER. OSError: there is
    none."""
    host, port = dialling.parse(address)
    context = tls.client_context(_identity(cluster))
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port, ssl=context, limit=STREAM_BYTES), limits.STEWARD_DIAL_SECONDS
        )
    except asyncio.TimeoutError:
        raise OSError(f"it did not answer for {limits.STEWARD_DIAL_SECONDS:g} s") from None
    watch_for_silence(writer.get_extra_info("socket"))
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    """Before the loop ends: CPython 3.10 complains of what is still open then."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), limits.LEAVE_SECONDS)
    except (OSError, asyncio.TimeoutError):  # it is gone in any case
        pass


async def serve(listener: socket.socket, handle: Handler) -> asyncio.Server:
    """Let members of the cluster in, each to a call of `handle(reader, writer)`."""
    context = tls.server_context(_identity())
    context.verify_mode = ssl.CERT_REQUIRED

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch_for_silence(writer.get_extra_info("socket"))
        try:
            secure: ssl.SSLObject = writer.get_extra_info("ssl_object")
            if tls.role_of(secure)[0] in (tls.DRIVER, tls.NODE):
                await handle(reader, writer)
        finally:
            writer.close()

    return await asyncio.start_server(
        admit,
        sock=listener,
        ssl=context,
        limit=STREAM_BYTES,
        ssl_handshake_timeout=limits.DIAL_SECONDS,
    )


def write(writer: asyncio.StreamWriter, facts: tuple[Any, ...], values: Sequence[Sequence[Any]] = ()) -> None:
    """Send a message. ValueError for facts that are no plain data, or too many."""
    head = marshal.dumps((facts, [[len(part) for part in parts] for parts in values]))
    if len(head) > FACTS_BYTES:
        raise ValueError(f"{len(head)} bytes of names and options, where {FACTS_BYTES} are the most")
    writer.write(HEADER.pack(len(head)) + head)
    for parts in values:
        for part in parts:
            writer.write(part)


async def read(reader: asyncio.StreamReader) -> tuple[tuple[Any, ...], list[list[Any]]]:
    """(facts, values) of a message. IncompleteReadError at the end of the stream, ValueError for what is none."""
    (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if size > FACTS_BYTES:
        raise ValueError(f"a message with {size} bytes of facts, where {FACTS_BYTES} are the most")
    facts, sizes = marshal.loads(await reader.readexactly(size))
    values = []
    for parts in sizes:
        values.append([await _part(reader, size) for size in parts])
    return facts, values


async def _part(reader: asyncio.StreamReader, size: int) -> bytearray:
    part = bytearray()
    while len(part) < size:
        part += await reader.readexactly(min(size - len(part), READ_BYTES))
    return part
