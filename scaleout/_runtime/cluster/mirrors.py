"""Memory of one machine that others have copies of, under the same names: what is where, as the driver knows it.

Segments of workers that are elsewhere have a *mirror* here, of the same id and size; ours, and those of workers on
other nodes, have mirrors at the nodes that needed ranges of them. Everything here runs on the reactor thread.
"""

from __future__ import annotations

import marshal
import os
import time
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.outbox import OFFSET, Arrival, Piecewise, SharedFile
from scaleout._runtime.cluster.relayed import pages_of
from scaleout._runtime.cluster.transfers import Transfers
from scaleout._runtime.core.warm import WarmRanges, gaps_between
from scaleout._runtime.store import segment
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from scaleout._runtime.cluster.relayed import RemoteNode
    from scaleout._runtime.node.objects import ObjectTable
    from scaleout._runtime.node.reactor import Reactor
    from scaleout._runtime.store.segment import Extent


class Mirrors:
    """See the module's docstring. `nodes` is the list of those that are there, kept by `cluster.fleet`."""

    def __init__(self, reactor: Reactor, nodes: list[RemoteNode], next_number: Callable[[], int]) -> None:
        self._reactor = reactor
        self._nodes = nodes
        self._warm = WarmRanges()  # of our own mirrors
        self._is_trim_armed = False
        self._used_at = 0.0
        self._mirrors: dict[int, SharedFile] = {}  # of what workers have written, by segment
        self._files: dict[int, SharedFile] = {}  # of what we have sent
        self._absent: set[Extent] = set()  # ranges of mirrors that nothing has come of
        self.transfers = Transfers(self._tell_at, next_number)

    def mirror(self, segment_id: int, size_bytes: int) -> int:
        """The fd of a segment for what lies elsewhere under this id; the caller's to close."""
        file = SharedFile(segment.create_memory_segment(size_bytes).fd)
        fd = os.dup(file.fd)
        self._mirrors[segment_id] = self._files[segment_id] = file
        return fd

    def file_of(self, segment_id: int, fd: int) -> SharedFile:
        """To read a segment by while its ranges are being sent."""
        file = self._files.get(segment_id)
        if file is None:
            file = self._files[segment_id] = SharedFile(os.dup(fd))
        return file

    def mirrored_bytes(self) -> int:
        """What is here of segments that lie elsewhere."""
        return sum(os.fstat(file.fd).st_blocks * 512 for file in self._mirrors.values())

    def stay(self, extents: list[Extent]) -> None:
        """These have been written, and are not here."""
        self._absent.update(extents)

    def know(self, objects: ObjectTable) -> None:
        """What is transferred is kept there."""
        transfers = self.transfers
        transfers.hold = objects.hold_now
        transfers.drop = objects.drop

        def file_of(segment_id: int) -> tuple[SharedFile, int]:
            fd, size_bytes, _ = objects.segment_of(segment_id)
            return self.file_of(segment_id, fd), size_bytes

        transfers.file_of = file_of

    def transfer(
        self,
        place: RemoteNode | None,
        extents: list[Extent],
        holders: Iterable[RemoteNode],
        then: Callable[[bool], object],
    ) -> None:
        """Have the bytes of these sent to a node, or here (None), from those that have them; `then(True)` when they are
        there, `then(False)` if they are not to be had or the node is gone."""
        outcomes: list[bool] = []

        def ended(is_there: bool) -> None:
            outcomes.append(is_there)
            if len(outcomes) == len(extents):
                then(all(outcomes))

        for extent in list(extents):
            if place is None:
                self._absent.discard(extent)
                self.transfers.want(extent, None, holders, ended)
            elif place in self._nodes:
                arrival = self.arrival(place, extent, holders)
                if isinstance(arrival, Arrival):
                    arrival.when_ended(ended)
                else:
                    ended(True)  # it was sent before
            else:
                ended(False)

    def arrival(self, node: RemoteNode, extent: Extent, holders: Iterable[RemoteNode | None]) -> Piecewise | Arrival:
        """A range as it comes to a node."""
        arrival = node.mirrored.get(extent)
        if arrival is None:
            arrival = node.mirrored[extent] = Arrival()
            node.warm.reused(pages_of(extent))
            self.transfers.want(extent, node, holders, partial(self._arrived, node, extent, arrival))
        return arrival

    def _arrived(self, node: RemoteNode, extent: Extent, arrival: Arrival, is_there: bool) -> None:
        if not is_there and node.mirrored.get(extent) is arrival:
            del node.mirrored[extent]
            node.warm.add(pages_of(extent))  # what there is of it may go
        arrival.end(is_there)
        self._reactor.flush_soon(node.link)  # of what has waited for it

    def holders_of(self, extent: Extent) -> list[RemoteNode]:
        """The nodes that have a range of which the bytes are here, too."""
        return [node for node in self._nodes if extent[0] in node.home or _has_arrived(node.mirrored.get(extent))]

    def _tell_at(self, node: RemoteNode, data: Any, place: int) -> None:
        node.link.queue(data, worker_id=place)
        self._reactor.flush_soon(node.link)

    def writer_died(self, segment_id: int, size_bytes: int, keep: list[Extent]) -> None:
        """Nobody will write this segment any more, and nobody needs more of it than these ranges. Its node gives the
        rest of the memory back; with the last range all forget the segment."""
        if not keep:
            self._mirrors.pop(segment_id, None)
            self._files.pop(segment_id, None)
        for node in self._nodes:
            if not keep:
                node.home.discard(segment_id)
                for extent in [extent for extent in node.mirrored if extent[0] == segment_id]:
                    node.mirrored.pop(extent).drop()
                node.warm.forget(segment_id)
                self._tell_at(node, frame(frames.FORGET_SEGMENT, number=segment_id), 0)
            elif segment_id in node.home:
                gaps = gaps_between([pages_of(extent) for extent in keep], segment_id, size_bytes)
                self._tell_at(node, frame(frames.DISCARD, marshal.dumps(gaps)), 0)
        if not keep:
            self._warm.forget(segment_id)

    def over(self, extents: list[Extent]) -> None:
        """Nobody reads these any more."""
        self.transfers.over(extents)
        for node in self._nodes:
            for extent in extents:
                pieces = node.mirrored.pop(extent, None)
                if pieces is not None:
                    pieces.drop()
                    node.warm.add(pages_of(extent))
        for extent in extents:
            if extent in self._absent:
                self._absent.discard(extent)
            elif extent[0] in self._mirrors:
                self._warm.add(pages_of(extent))
        if max(warm.size_bytes for warm in self._all_warm) > limits.WARM_BYTES:
            self._trim()
        elif not self._is_trim_armed:
            self._is_trim_armed = True
            self._reactor.call_later(limits.WARM_SECONDS, self._trim_if_idle)
        self._used_at = time.monotonic()

    @property
    def _all_warm(self) -> list[WarmRanges]:
        return [self._warm, *(node.warm for node in self._nodes)]

    def _trim_if_idle(self) -> None:
        if time.monotonic() - self._used_at < limits.WARM_SECONDS * 0.9:
            self._reactor.call_later(limits.WARM_SECONDS, self._trim_if_idle)
            return
        self._is_trim_armed = False
        self._trim()

    def _trim(self) -> None:
        """Give the pages back that nobody needs."""
        for node in self._nodes:
            ranges = node.warm.take()
            if ranges:
                self._tell_at(node, frame(frames.DISCARD, marshal.dumps(ranges)), 0)
        for segment_id, offset, size_bytes in self._warm.take():
            segment.punch(self._mirrors[segment_id].fd, offset, size_bytes)

    def write(self, segment_id: int, body: bytes) -> None:
        file = self._mirrors.get(segment_id)
        if file is not None:
            offset = OFFSET.unpack_from(body)[0]
            self._warm.reused(pages_of((segment_id, offset, len(body) - OFFSET.size)))
            segment.write_all(file.fd, memoryview(body)[OFFSET.size :], offset)

    def close(self) -> None:
        """Nothing comes any more."""
        self.transfers.close()
        self.forget()

    def forget(self) -> None:
        self._mirrors.clear()
        self._files.clear()


def _has_arrived(arrival: Piecewise | Arrival | None) -> bool:
    """All of it, and not only sent."""
    return isinstance(arrival, Arrival) and arrival.is_done
