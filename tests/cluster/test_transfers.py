"""Values on their way between nodes: who sends them, and what becomes of them when a sender or a connection is gone."""

from __future__ import annotations

import itertools
import marshal
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from clusters import DEADLINE_S, Cluster, finish, kill, read_line
from test_connections import Proxy
from test_lineage import TASKS

from scaleout._runtime.cluster import bulk, keys, tls
from scaleout._runtime.cluster.admission import receive_frame
from scaleout._runtime.cluster.outbox import Piecewise, SharedFile
from scaleout._runtime.cluster.transfers import Transfers
from scaleout._runtime.store import segment
from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame

PROGRAM = (
    TASKS
    + """
    @scaleout.remote
    def total_at(directory, array, count):
        # all at once, each on a node of its own
        open(f"{directory}-{os.getpid()}", "w").close()
        deadline = time.monotonic() + 60
        while len([name for name in os.listdir() if name.startswith(directory)]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return float(array.sum())

    def transfers():
        return lineage()._owner.keeper.mirrors.transfers

    def wait_for_nodes(count):
        while len(transfers_of_nodes()) < count:
            time.sleep(0.01)

    def transfers_of_nodes():
        return lineage()._owner.keeper.nodes
"""
)


@pytest.mark.parametrize("kind", ["made by a task", "put by the program"])
def test_a_value_goes_from_node_to_node(cluster: Cluster, kind: str) -> None:
    cluster.start_head(cpus=1)
    for _ in range(3):
        cluster.start_node(cpus=1)
    said = cluster.run(
        PROGRAM
        + f"""
    ITEMS = 1_000_000

    if __name__ == "__main__":
        if {kind == "made by a task"}:
            ref = make.remote(1)
        else:
            ref = scaleout.put(numpy.ones(ITEMS))
        scaleout.wait([ref])
        wait_for_nodes(4)
        totals = [total_at.remote("first", ref, 4) for _ in range(4)]
        assert scaleout.get(totals) == [ITEMS] * 4
        (spread,) = transfers()._spreads.values()
        assert sum(spread.sends.values()) == len(spread.sends) - 1 == {3 if kind == "made by a task" else 4}
        assert max(spread.sends.values()) <= 3
        assert len(ref._hold.places) == {4 if kind == "made by a task" else 0}  # the program has not had it
        assert scaleout.get(ref).sum() == ITEMS
        del ref, totals, spread
        check_that_nothing_is_left()
        print("well")
    """
    )
    assert said == "well\n"


@pytest.mark.parametrize("victim", ["the one that sends", "the one that receives"])
def test_a_node_is_killed_in_the_midst_of_it(cluster: Cluster, victim: str) -> None:
    cluster.start_head(cpus=1)
    for _ in range(2):
        cluster.start_node(cpus=1)
    program = cluster.start(
        PROGRAM
        + f"""
    ITEMS = 30_000_000
    SENDS = {victim == "the one that sends"}

    if __name__ == "__main__":
        head = os.environ["SCALEOUT_ADDRESS"]
        scaleout.get([double.remote(numpy.ones(1))])
        wait_for_nodes(3)
        while True:
            refs = ready([make.remote(1) for _ in range(3)])
            found = [ref for ref in refs if (places([ref]) != [head]) == SENDS]
            if found:
                break
        ref, = found[:1]
        del refs, found
        open("count", "w").close()
        totals = [total_at.remote("second", ref, 2) for _ in range(2)]
        moving = {{}}
        while not moving:
            moving = {{to.address: source.address for _, source, to in transfers()._under_way.copy().values() if to}}
        victim = [pair[SENDS] for pair in moving.items() if pair[SENDS] != head]
        print(victim[0] if victim else "none", flush=True)
        assert scaleout.get(totals) == [ITEMS] * 2
        assert scaleout.get(total.remote(ref)) == ITEMS
        del ref, totals
        check_that_nothing_is_left()
        print("well")
    """
    )
    address = read_line(program)
    if address != "none":
        kill(cluster.pid_of(address))
    assert finish(program) == "well\n"


# -- what the driver arranges, without nodes ---------------------------------------------------------


class Told:
    """A node that is told things."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.reading = f"may read at {address}"
        self.kinds: list[int] = []
        self.pulled_from: list[str] = []

    def hear(self, data: Any) -> int:
        if isinstance(data, Piecewise):
            self.kinds.append(frames.PIECE)
            return 0
        length, kind, _, _, number = frames.HEADER.unpack_from(data)
        self.kinds.append(kind)
        if kind == frames.PULL:
            self.pulled_from.append(marshal.loads(data[frames.HEADER_BYTES :])[2])
        return int(number)


def transfers_to(nodes: list[Told]) -> tuple[Transfers, list[int], Counter[Any]]:
    """With the numbers of what was asked, and how often each range is held."""
    numbers: list[int] = []
    held: Counter[Any] = Counter()
    next_number = itertools.count(1)

    def tell(node: Any, data: Any, place: int) -> None:
        number = node.hear(data)
        if number:
            numbers.append(number)

    transfers = Transfers(tell, next_number.__next__)
    transfers.file_of = lambda segment_id: (SharedFile(os.open(os.devnull, os.O_RDONLY)), 1 << 30)
    transfers.hold = held.update
    transfers.drop = held.subtract
    return transfers, numbers, held


EXTENT = (7, 4096, 1 << 20)


def test_what_the_driver_sends_begins_with_the_segment() -> None:
    node: Any = Told("a")
    transfers, numbers, held = transfers_to([node])
    ended: list[bool] = []
    transfers.want(EXTENT, node, [None], ended.append)
    assert node.kinds == [frames.INTRODUCE, frames.PIECE, frames.PULL] and node.pulled_from == [""]
    assert held[EXTENT] == 1 and not ended
    transfers.ended(numbers[-1], True)
    assert ended == [True] and held[EXTENT] == 0 and transfers.is_idle


def test_a_node_that_fails_to_pull_gets_it_from_another() -> None:
    first, second, third = nodes = [Told(name) for name in "abc"]
    transfers, numbers, held = transfers_to(nodes)
    ended: list[bool] = []
    holders: Any = [first, second, None]
    transfers.want(EXTENT, third, holders, ended.append)  # type: ignore[arg-type]
    for _ in range(2):
        transfers.ended(numbers[-1], False)
    assert third.pulled_from == ["a", "b", ""] and not ended and held[EXTENT] == 1
    transfers.ended(numbers[-1], False)
    assert ended == [False] and held[EXTENT] == 0 and transfers.is_idle


def test_nodes_that_are_lost_and_values_that_are_over() -> None:
    first, second, third = nodes = [Told(name) for name in "abc"]
    transfers, numbers, held = transfers_to(nodes)
    ended: list[tuple[str, bool]] = []
    holders: Any = [first]
    for name, place in (("second", second), ("third", third), ("here", None)):
        transfers.want(EXTENT, place, holders, lambda is_there, name=name: ended.append((name, is_there)))  # type: ignore
    assert second.pulled_from == ["a"] and third.pulled_from == []
    transfers.place_lost(second)  # type: ignore[arg-type]
    assert ended == [("second", False)] and third.pulled_from == ["a"]
    transfers.place_lost(first)  # type: ignore[arg-type]
    transfers.ended(numbers[-1], False)  # as the third one says
    assert sorted(ended) == [("here", False), ("second", False), ("third", False)]
    assert transfers.is_idle and not +held
    transfers.want(EXTENT, third, [None], lambda is_there: ended.append(("again", is_there)))  # type: ignore[arg-type]
    transfers.close()
    assert ended[-1] == ("again", False) and transfers.is_idle


# -- from node to node, without nodes ---------------------------------------------------------------


class Holder:
    """Has segments, for whoever may read them, and is asked for them as a node is."""

    def __init__(self, home: Path) -> None:
        keys.Authority(home)
        self._identity = keys.own_identity(home, "holder", tls.NODE, "holder")
        self.puller = bulk.Puller(keys.own_identity(home, "puller", tls.NODE, "puller"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.files: dict[tuple[str, int], SharedFile] = {}
        self.asked = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock = secure = tls.server_context(self._identity).wrap_socket(sock, server_side=True)
            secure.sendall(frame(frames.WELCOME, b"{}"))
            _, body = receive_frame(secure, bulk.ASKED_BYTES, time.monotonic() + DEADLINE_S)
        except Exception:  # noqa: BLE001  # the connection was broken just then
            sock.close()
            return
        self.asked += 1
        bulk.serve(secure, body, lambda reading, segment_id: self.files.get((reading, segment_id)))

    def pull(self, address: str, extent: segment.Extent, file: SharedFile, reading: str = "ours") -> Future[bool]:
        is_there: Future[bool] = Future()
        self.puller.pull(address, reading, extent, file, is_there.set_result)
        return is_there

    def close(self) -> None:
        self.puller.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self.files.clear()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    made = Holder(tmp_path)
    try:
        yield made
    finally:
        made.close()


def file_with(data: bytes, offset: int) -> SharedFile:
    file = SharedFile(segment.create_memory_segment(1 << 30).fd)
    segment.write_all(file.fd, memoryview(data), offset)
    return file


def test_ranges_arrive_as_they_are_over_one_connection(holder: Holder) -> None:
    target = SharedFile(segment.create_memory_segment(1 << 30).fd)
    for number, size_bytes in enumerate((1, 4096, 5_000_001)):
        data = os.urandom(size_bytes)
        offset = number << 24
        holder.files["ours", 7] = file_with(data, offset)
        assert holder.pull(holder.address, (7, offset, size_bytes), target).result(DEADLINE_S)
        assert os.pread(target.fd, size_bytes, offset) == data
    assert holder.asked == 1


def test_who_may_not_read_gets_nothing(holder: Holder) -> None:
    holder.files["ours", 7] = file_with(b"secret", 0)
    target = SharedFile(segment.create_memory_segment(1 << 30).fd)
    assert not holder.pull(holder.address, (7, 0, 6), target, "another").result(DEADLINE_S)
    assert not holder.pull(holder.address, (8, 0, 6), target).result(DEADLINE_S)
    assert os.pread(target.fd, 6, 0) == bytes(6)


def test_connections_that_break_are_gone_on_with(holder: Holder) -> None:
    chance = random.Random(7)
    data = chance.randbytes(64 << 20)
    holder.files["ours", 7] = file_with(data, 4096)
    target = SharedFile(segment.create_memory_segment(1 << 30).fd)
    proxy = Proxy(holder.address)
    try:
        is_there = holder.pull(proxy.address, (7, 4096, len(data)), target)
        for _ in range(5):
            time.sleep(0.05)
            proxy.break_all(with_reset=chance.random() < 0.5)
        assert is_there.result(DEADLINE_S)
        assert os.pread(target.fd, len(data), 4096) == data
    finally:
        proxy.close()


def test_nobody_is_there(holder: Holder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
    target = SharedFile(segment.create_memory_segment(1 << 30).fd)
    assert not holder.pull(address, (7, 0, 6), target).result(DEADLINE_S)
