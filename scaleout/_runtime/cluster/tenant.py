"""What a node has for one driver: a zygote, the workers that it forked, and copies of segments that lie elsewhere.

The node does not know what tasks are. It hands on what the driver sends to a worker and what the worker says, as it is,
and looks only at what needs something of this machine: descriptors (the control page, segments, channels of workers
that become owners) and large values, which it sends before the frame that names them.

Everything here runs on the node's reactor thread.
"""

from __future__ import annotations

import marshal
import os
import secrets
import shutil
import signal
import threading
import time
from collections import deque
from functools import partial

from scaleout._runtime.base import limits, memory
from scaleout._runtime.cluster import near_socket, places
from scaleout._runtime.cluster.bulk import Puller
from scaleout._runtime.cluster.node_link import NodeLink
from scaleout._runtime.cluster.outbox import OFFSET, TRANSFERS, Piecewise, SharedFile
from scaleout._runtime.cluster.outputs import Outputs
from scaleout._runtime.core.resources import MILLI, Devices
from scaleout._runtime.node.host import Host, present_state
from scaleout._runtime.node.reactor import READABLE
from scaleout._runtime.node.seat import Seat, SeatSupply
from scaleout._runtime.node.stored import extents_of
from scaleout._runtime.store import segment
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame
from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.base.settings import Settings
    from scaleout._runtime.node.reactor import Reactor

STORED_AT = {frames.SUBMIT: 3, frames.CREATE_ACTOR: 2, frames.FUNCTION: 0, frames.INITIALIZER_FAILED: 0}
"""Where in the bodies of these the stored value is; in others it is the body, or the first part of it."""

OF_WORKERS = frozenset(
    {frames.RELAY, frames.FORK, frames.KILL, frames.WORD, frames.LOOK, frames.INTRODUCE, frames.UNSEAT}
)
"""Orders whose number is a worker's."""


class Resident:
    """A worker."""

    def __init__(self, worker_id: int, seat: Seat) -> None:
        self.worker_id = worker_id
        self.seat = seat
        self.link = seat.link
        self.is_stream_over = False
        self.exit_status: int | None = None
        self.known_segments: set[int] = set()
        self.writes_large = False
        self.pid = 0
        self.told: bytes = b""  # its control page, as the driver knows it
        self.restless_until = 0.0  # its control page may change without a word


class Gpus:
    """The GPUs of this machine, shared by all its tenants: who comes first has them first, and nobody has one that
    another still has. Where enough is free in all, but not of the devices that it would need, others may come before.
    A worker is named by its tenant's session and its number."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._devices = Devices(len(names))
        self._queue: deque[tuple[tuple[str, int], int, Callable[[dict[str, str]], object]]] = deque()

    def can_ever_have(self, amount: int) -> bool:
        return -(-amount // MILLI) <= len(self._names)

    def request(self, worker: tuple[str, int], amount: int, then: Callable[[dict[str, str]], object]) -> None:
        """So much, in thousandths, for a worker that is to be: `then(what it has in its environment)`, at once or when
        they are free."""
        self._queue.append((worker, amount, then))
        self._serve()

    def _serve(self) -> None:
        while (entry := self._next()) is not None:
            self._queue.remove(entry)
            worker, amount, then = entry
            names = [self._names[number] for number in self._devices.take(worker, amount)]
            then({"CUDA_VISIBLE_DEVICES": ",".join(names)})

    def _next(self) -> tuple[tuple[str, int], int, Callable[[dict[str, str]], object]] | None:
        for entry in self._queue:
            if self._devices.has(entry[1]):
                return entry
            if self._devices.free < entry[1]:
                return None
        return None

    def give_back(self, worker: tuple[str, int]) -> None:
        """It is gone, or will not be."""
        self._queue = deque(entry for entry in self._queue if entry[0] != worker)
        self._devices.give_back(worker)
        self._serve()


class Tenant:
    """See the module's docstring. `on_end(tenant)` is called when the driver is gone, `on_watch(tenant)` when it wants
    to hear of nodes; `report(line)` writes to the node's log."""

    def __init__(
        self,
        reactor: Reactor,
        link: NodeLink,
        session: str,
        reading: str,
        node_id: str,
        gpus: Gpus,
        settings: Settings,
        sources_dir: str,
        puller: Puller,
        on_end: Callable[[Tenant], None],
        on_watch: Callable[[Tenant], None],
        report: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._link = link
        self.session = session  # by which the driver comes back when it has lost the connection
        self.reading = reading  # what other nodes show who may read what it has here
        self._broken_times = 0
        self._attempt = 0  # the driver's, at coming back
        self._gpus = gpus
        self._settings = settings
        self._sources_dir = sources_dir
        self._puller = puller
        self._work_dir = os.path.join(sources_dir, f"{places.WORK}{os.getpid()}-{secrets.token_hex(6)}")
        self._on_end = on_end
        self._on_watch = on_watch
        self._report = report
        self._is_closed = False
        self.is_watching = False  # the driver wants to hear of nodes from us, of all
        self._host: Host | None = None
        self._near: Host | None = None  # whose channel the driver has, being on this machine
        self._state: dict[str, Any] = {}
        self._seats = SeatSupply(reactor)
        self._residents: dict[int, Resident] = {}
        self._held: dict[int, list[tuple[int, int, int, bytes]]] = {}  # orders for workers that wait for their GPUs
        self._segments: dict[int, SharedFile] = {}  # all that is mirrored here or was written here
        self._is_ticking = False
        self._outputs = Outputs(node_id, self._watch, reactor.forget, self._call_later, self._printed)
        self._orders: dict[int, Callable[[int, int, int, bytes], None]] = {
            frames.RELAY: self._relay,
            frames.FORK: self._fork,
            frames.KILL: self._kill,
            frames.STATE: self._set_state,
            frames.GREET: self._greet,
            frames.WORD: self._store_word,
            frames.LOOK: self._look,
            frames.INTRODUCE: self._introduce,
            frames.PIECE: self._write_piece,
            frames.DISCARD: self._discard,
            frames.FETCH: self._fetch,
            frames.PULL: self._pull,
            frames.FORGET_SEGMENT: self._forget_segment,
            frames.UNSEAT: self._unseat,
            frames.WATCH: self._watch_nodes,
            frames.CONFIRM: self._confirmed,
            frames.BYE: self._told_bye,
        }

    def open(self) -> None:
        self._watch(self._link.fileno(), self._on_driver)
        self._safely(self._on_driver, READABLE)  # a TLS connection may hold what no poll shows

    def may_resume(self, attempt: int, arrived_bytes: int) -> bool:
        """Not by an attempt that was overtaken by a later one."""
        is_new = attempt > self._attempt
        self._attempt = max(attempt, self._attempt)
        return is_new and self._link.may_resume(arrived_bytes)

    def lodge(self, sock: socket.socket) -> None:
        """The driver, which is on this machine, gets a zygote of its own by this connection; what it had goes."""
        if self._is_closed:
            sock.close()
            return
        self._end_near()
        try:
            self._near = Host.start(is_apart=True)
            near_socket.give(sock, self._near, self._settings)
        except OSError:  # it has not waited; or there are no descriptors left, or no processes: then it goes without
            sock.close()
            self._end_near()

    def _end_near(self) -> None:
        near, self._near = self._near, None
        if near is not None:
            near.end()

    def break_off(self) -> int:
        """The connection is lost, if it was not known yet; another is awaited for a while. How much has arrived."""
        if not self._link.is_broken:
            self._reactor.forget_link(self._link)
            self._link.break_off()
            self._broken_times += 1
            self._call_later(limits.RESUME_SECONDS, partial(self._give_up, self._broken_times))
        return self._link.received_bytes

    def resume(self, sock: ssl.SSLSocket, arrived_bytes: int) -> None:
        self._safely(self._resume, sock, arrived_bytes)

    def _resume(self, sock: ssl.SSLSocket, arrived_bytes: int) -> None:
        self._link.resume(sock, arrived_bytes)
        self._reactor.flush_soon(self._link)
        self.open()

    def _give_up(self, broken_times: int) -> None:
        if self._link.is_broken and self._broken_times == broken_times:
            self._report(f"a driver that lost its connection has not come back in {limits.RESUME_SECONDS:g} s")
            self.close()

    # Whatever goes wrong for one driver (it talks nonsense; this machine has no descriptors or memory left for it) is
    # its end here, and nobody else's.

    def _safely(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._is_closed:
            return
        try:
            function(*arguments)
        except Exception as error:
            self._report(f"a driver is given up: {type(error).__name__}: {error}")
            self.close()

    def _watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._reactor.watch(fd, partial(self._safely, handler))

    def _call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        self._reactor.call_later(delay_s, partial(self._safely, function))

    # -- from the driver -------------------------------------------------------------------------

    def _on_driver(self, events: int) -> None:
        data = self._reactor.read(self._link, events)
        if not data:
            if data is not None:
                self.break_off()
            return
        for kind, flag, aux, number, body in self._link.frames(data):
            if self._held and kind in OF_WORKERS and number in self._held:
                self._hold(kind, flag, aux, number, body)
            else:
                self._orders[kind](flag, aux, number, body)
            if self._is_closed:
                return
        self._reactor.flush_soon(self._link)  # of confirmations

    def _confirmed(self, flag: int, aux: int, number: int, body: bytes) -> None:
        self._link.confirmed(number)

    def _told_bye(self, flag: int, aux: int, number: int, body: bytes) -> None:
        self.close()

    def _say(self, data: Any, worker_id: int = 0) -> None:
        self._link.queue(data, worker_id=worker_id)
        self._reactor.flush_soon(self._link)

    def _printed(self, output: int, text: bytes) -> None:
        for start in range(0, len(text), limits.PIECE_BYTES):
            self._say(frame(frames.PRINTED, text[start : start + limits.PIECE_BYTES], aux=output))

    def tell_nodes(self, nodes: tuple[int, list[Any]]) -> None:
        """The cluster's nodes are these now: see `cluster.daemon`."""
        self._say(frame(frames.NODES, marshal.dumps(nodes)))

    def memory_usage(self) -> dict[int, int]:
        """What its workers occupy, in bytes, by pid."""
        pids = [resident.pid for resident in self._residents.values()]
        if self._near is not None:
            pids += memory.children(self._near.pid)
        return {pid: memory.resident_bytes(pid) for pid in pids}

    def tell_short(self, usage: dict[int, int]) -> None:
        """This machine has little memory left: the driver is to end something."""
        self._say(frame(frames.SHORT, marshal.dumps(usage)))

    def _watch_nodes(self, flag: int, aux: int, number: int, body: bytes) -> None:
        self.is_watching = True
        self._on_watch(self)

    def _set_state(self, flag: int, aux: int, number: int, body: bytes) -> None:
        here = present_state(self._settings.max_processes)
        wanted = marshal.loads(body)
        path = [*wanted["path"], *(entry for entry in here["path"] if entry not in wanted["path"])]
        keep = ("argv", "cwd", "umask", "preload", "max_depth")
        self._state = {**here, **{name: wanted[name] for name in keep}, "path": path}
        host = self._need_host()
        host.describe(self._state)
        self._reactor.flush_soon(host.link)

    def _greet(self, flag: int, aux: int, number: int, body: bytes) -> None:
        """The first of a worker that is to be."""
        info, gpus = marshal.loads(body)
        if gpus:
            if not self._gpus.can_ever_have(gpus):
                self._say(frame(frames.REFUSED, b"the node has no such GPUs", number=number), number)
                return
            self._held[number] = []
            self._gpus.request((self.session, number), gpus, partial(self._safely, self._granted, number, info))
        else:
            self._seat_worker(number, info)

    def _granted(self, number: int, info: dict[str, Any], environment: dict[str, str]) -> None:
        """Its GPUs are free: what the driver has said of it since is done now."""
        held = self._held.pop(number)
        try:
            self._seat_worker(number, {**info, "environment": {**(info["environment"] or {}), **environment}})
        except OSError as error:  # no descriptors are left
            self._gpus.give_back((self.session, number))
            self._say(frame(frames.REFUSED, str(error).encode(), number=number), number)
            return
        for kind, flag, aux, body in held:
            self._orders[kind](flag, aux, number, body)

    def _hold(self, kind: int, flag: int, aux: int, number: int, body: bytes) -> None:
        """Said of a worker that waits for its GPUs."""
        is_killed = kind == frames.KILL and aux in (signal.SIGKILL, signal.SIGTERM)
        is_over = kind == frames.RELAY and _has_exit(body)
        if is_killed or is_over or kind == frames.UNSEAT:
            del self._held[number]
            self._gpus.give_back((self.session, number))
            if kind != frames.UNSEAT:
                self._say(frame(frames.EXITED, aux=aux if is_killed else 0, number=number), number)
        elif kind != frames.KILL:
            self._held[number].append((kind, flag, aux, body))

    def _seat_worker(self, number: int, info: dict[str, Any]) -> None:
        resident = self._residents[number] = Resident(number, self._seats.take())
        resident.seat.words[control_page.ALLOWANCE_BYTES] = self._settings.store_bytes
        self._watch(resident.link.fileno(), partial(self._on_worker, resident))
        info["spill_dir"] = self._settings.spill_dir
        info["modules"] = info["modules"][0], self._sources_dir, self._work_dir
        resident.seat.greet({**info, "parent_pid": os.getpid()})
        self._reactor.flush_soon(resident.link)

    def _unseat(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents.pop(number, None)
        if resident is not None:
            resident.seat.take_theirs().close()
            self._forget(resident)

    def _fork(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents.get(number)
        if resident is None:
            return  # the zygote died in between, and it was said that the worker is gone
        self._outputs.open(resident)
        host = self._need_host()
        for output, fd in self._outputs.take_theirs(resident):
            host.give_output(output, fd)
        host.fork(number, resident.seat.take_theirs())
        self._reactor.flush_soon(host.link)

    def _kill(self, flag: int, aux: int, number: int, body: bytes) -> None:
        if self._host is not None and number in self._residents:
            self._host.kill(number, aux)
            self._reactor.flush_soon(self._host.link)

    def _relay(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents.get(number)
        if resident is not None:
            resident.link.queue(body)
            self._reactor.flush_soon(resident.link)
            self._may_change(resident)

    def _store_word(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents.get(number)
        if resident is not None:
            resident.seat.words[aux] = OFFSET.unpack(body)[0]

    def _look(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents.get(number)
        if resident is not None:
            self._call_later(limits.REVOKE_SETTLE_SECONDS, partial(self._answer_look, number, aux))

    def _answer_look(self, number: int, question: int) -> None:
        resident = self._residents.get(number)
        if resident is not None:
            self._tell_words(resident, question)

    def _tell_words(self, resident: Resident, question: int = 0) -> None:
        values = resident.seat.words.tolist()
        resident.told = bytes(resident.seat.words)
        values[control_page.SINCE_NS] = max(0, time.monotonic_ns() - values[control_page.SINCE_NS])
        words = frame(frames.WORDS, _as_bytes(values), aux=question, number=resident.worker_id)
        self._say(words, resident.worker_id)

    # -- large values ----------------------------------------------------------------------------

    def _introduce(self, flag: int, aux: int, number: int, body: bytes) -> None:
        segment_id, size_bytes, is_on_disk = marshal.loads(body)
        file = self._mirror(segment_id, size_bytes)
        resident = self._residents.get(number)
        if resident is not None and segment_id not in resident.known_segments:
            resident.known_segments.add(segment_id)
            resident.seat.introduce(segment_id, file.fd, size_bytes, is_on_disk)
            self._reactor.flush_soon(resident.link)

    def _mirror(self, segment_id: int, size_bytes: int) -> SharedFile:
        """The segment as it is here, or is to be."""
        file = self._segments.get(segment_id)
        if file is None:
            file = self._segments[segment_id] = SharedFile(segment.create_memory_segment(size_bytes).fd)
        return file

    def segment(self, segment_id: int) -> SharedFile | None:
        """For another node that pulls a range of it."""
        return self._segments.get(segment_id)

    def _write_piece(self, flag: int, aux: int, number: int, body: bytes) -> None:
        file = self._segments.get(number)
        if file is not None:
            segment.write_all(file.fd, memoryview(body)[OFFSET.size :], OFFSET.unpack_from(body)[0])

    def _fetch(self, flag: int, aux: int, number: int, body: bytes) -> None:
        """What stayed here is wanted at the driver."""
        extent = marshal.loads(body)
        file = self._segments.get(extent[0])
        if file is not None:
            self._say(Piecewise(extent, file), TRANSFERS | number)
        self._say(frame(frames.FETCHED, flag=int(file is None), number=number), TRANSFERS | number)

    def _pull(self, flag: int, aux: int, number: int, body: bytes) -> None:
        """A range is to be here: (segment's size, extent, address of the node that has it, what is shown there to read
        it). Without an address: it has been sent by the driver just before."""
        size_bytes, extent, address, reading = marshal.loads(body)
        if not address:
            self._say(frame(frames.FETCHED, flag=int(extent[0] not in self._segments), number=number))
            return
        file = self._mirror(extent[0], size_bytes)
        done = partial(self._pulled, number)
        self._puller.pull(address, reading, extent, file, lambda is_there: self._reactor.post(partial(done, is_there)))

    def _pulled(self, number: int, is_there: bool) -> None:
        self._safely(self._say, frame(frames.FETCHED, flag=int(not is_there), number=number))

    def _discard(self, flag: int, aux: int, number: int, body: bytes) -> None:
        for segment_id, offset, size_bytes in marshal.loads(body):
            file = self._segments.get(segment_id)
            if file is not None:
                segment.punch(file.fd, offset, size_bytes)

    def _forget_segment(self, flag: int, aux: int, number: int, body: bytes) -> None:
        self._segments.pop(number, None)

    # -- from workers ----------------------------------------------------------------------------

    def _on_worker(self, resident: Resident, events: int) -> None:
        data = self._reactor.read(resident.link, events)
        if data:
            self._hand_on(resident, data)
        elif data is not None:
            self._stream_over(resident)

    def _hand_on(self, resident: Resident, data: bytes) -> None:
        """Whole frames go to the driver, in as few pieces as can be."""
        try:
            self._forward(resident, data)
        except (ValueError, EOFError, TypeError, IndexError, KeyError, InternalError):
            # User code wrote to a descriptor that was not its own: nothing that follows makes sense.
            resident.is_stream_over = True
            self._reactor.forget(resident.link.fileno())
            self._kill(0, signal.SIGKILL, resident.worker_id, b"")
        self._may_change(resident)

    def _forward(self, resident: Resident, data: bytes) -> None:
        said = 0  # up to where they have gone
        is_told = bytes(resident.seat.words) == resident.told
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = HEADER.unpack_from(data, position)
            following = position + HEADER_BYTES + length
            if following > end:
                if length > limits.FRAME_BYTES:
                    raise InternalError(f"a frame of {length} bytes")
                break
            if following - said > limits.PIECE_BYTES:
                self._say_bytes(resident, data[said:position])
                said = position
            body_at = position + HEADER_BYTES
            if kind != frames.RESULT and not is_told:  # what it asks, it asks for the task that runs there now
                is_told = True
                self._say_bytes(resident, data[said:position])
                said = position
                self._tell_words(resident)
            if kind == frames.RESULT and flag & frames.STAYS:
                self._share_budget()
            elif flag & frames.STORED:
                self._say_bytes(resident, data[said:position])
                said = position
                self._send_ranges(resident, kind, flag, data[body_at:following])
            elif kind == frames.SEGMENT:
                self._segments[number] = SharedFile(resident.link.fds.popleft())
                resident.writes_large = True
                self._share_budget()
            elif kind == frames.CHANNEL:
                self._need_host().adopt(resident.worker_id, resident.link.fds.popleft())
                self._reactor.flush_soon(self._need_host().link)
                self._say_bytes(resident, data[said:position])
                said = following
            position = following
        self._say_bytes(resident, data[said:position])
        if position < end:
            resident.link.leftover(data, position)

    def _say_bytes(self, resident: Resident, data: bytes) -> None:
        for start in range(0, len(data), limits.PIECE_BYTES):
            body = data[start : start + limits.PIECE_BYTES]
            self._say(frame(frames.RELAY, body, number=resident.worker_id), resident.worker_id)

    def _send_ranges(self, resident: Resident, kind: int, flag: int, body: bytes) -> None:
        """What the frame names goes before it."""
        if kind in STORED_AT or flag & (frames.HAS_REFERENCES | frames.STATUS_MASK):
            body = marshal.loads(body)[STORED_AT.get(kind, 0)]
        self._share_budget()
        for extent in extents_of(body):
            file = self._segments.get(extent[0])
            if file is not None:
                self._say(Piecewise(extent, file), resident.worker_id)

    def _share_budget(self) -> None:
        """As `node.objects` does where there is one process for all: each who writes may use what it uses, and half of
        what is left."""
        pages = [resident.seat.words for resident in self._residents.values() if resident.writes_large]
        spare = max(0, self._settings.store_bytes - sum(words[control_page.USED_BYTES] for words in pages))
        for words in pages:
            words[control_page.ALLOWANCE_BYTES] = words[control_page.USED_BYTES] + spare // 2

    def _stream_over(self, resident: Resident) -> None:
        if not resident.is_stream_over:
            resident.is_stream_over = True
            self._reactor.forget(resident.link.fileno())
            if resident.exit_status is None:
                self._kill(0, signal.SIGTERM, resident.worker_id, b"")

    # -- control pages ---------------------------------------------------------------------------

    def _may_change(self, resident: Resident) -> None:
        resident.restless_until = time.monotonic() + limits.RESTLESS_SECONDS
        self._need_tick()

    def _need_tick(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self._call_later(limits.WORDS_SECONDS, self._tick)

    def _tick(self) -> None:
        """Tell the driver of control pages that have changed."""
        self._is_ticking = False
        now = time.monotonic()
        for resident in self._residents.values():
            if bytes(resident.seat.words) != resident.told:
                self._tell_words(resident)
            if now < resident.restless_until:
                self._need_tick()

    # -- the zygote ------------------------------------------------------------------------------

    def _need_host(self) -> Host:
        if self._host is None:
            # Linux shares processor time among sessions ("autogroup"): so programs have equal parts of a busy node,
            # however many workers each has there.
            self._host = Host.start(is_apart=True)
            self._watch(self._host.link.fileno(), self._on_host)
            if self._state:
                self._host.describe(self._state)
        return self._host

    def _on_host(self, events: int) -> None:
        host = self._host
        assert host is not None
        data = self._reactor.read(host.link, events)
        if not data:
            if data is not None:
                self._host_died(host)
            return
        for kind, _, aux, number, body in host.link.frames(data):
            resident = self._residents.get(number)
            if resident is None:
                continue
            if kind == frames.FORKED:
                resident.pid = aux
                self._say(frame(frames.FORKED, aux=aux, number=number), number)
            elif kind == frames.EXITED:
                self._bury(resident, frame(frames.EXITED, aux=aux, number=number))
            elif kind == frames.REFUSED:
                self._bury(resident, frame(frames.REFUSED, body, number=number))

    def _host_died(self, host: Host) -> None:
        self._reactor.forget_link(host.link)
        host.close()
        self._host = None
        for resident in list(self._residents.values()):
            self._bury(resident, frame(frames.EXITED, flag=1, number=resident.worker_id))

    def _bury(self, resident: Resident, last_word: bytes) -> None:
        """It is dead: what it has still said, its control page, and how it ended, in this order."""
        resident.exit_status = 0
        while not resident.is_stream_over:
            try:
                data = resident.link.receive()
            except OSError:
                data = b""
            if data:
                self._hand_on(resident, data)
            else:
                resident.is_stream_over = True
        self._outputs.end(resident)
        self._tell_words(resident)
        self._say(last_word, resident.worker_id)
        del self._residents[resident.worker_id]
        self._forget(resident)

    def _forget(self, resident: Resident) -> None:
        self._gpus.give_back((self.session, resident.worker_id))
        self._reactor.forget_link(resident.link)
        resident.link.close()
        resident.seat.release()

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """The driver is gone: what is its own ends with it."""
        if self._is_closed:
            return
        self._is_closed = True
        self._link.bye()
        self._reactor.forget_link(self._link)
        self._link.close()
        for resident in self._residents.values():
            self._outputs.close(resident)
            self._forget(resident)
        self._residents.clear()
        for number in list(self._held):
            self._gpus.give_back((self.session, number))
        self._held.clear()
        if self._host is not None:
            self._reactor.forget_link(self._host.link)
            self._host.end()
            self._host = None
        self._end_near()
        self._seats.close()
        self._segments.clear()
        if os.path.isdir(self._work_dir):
            threading.Thread(
                target=shutil.rmtree, args=(self._work_dir, True), name="scaleout-tidy", daemon=True
            ).start()
        self._on_end(self)


def _has_exit(data: bytes) -> bool:
    """Whether a worker is told to leave by these frames."""
    position = 0
    while len(data) - position >= HEADER_BYTES:
        length, kind, _, _, _ = HEADER.unpack_from(data, position)
        if kind == frames.EXIT:
            return True
        position += HEADER_BYTES + length
    return False


def _as_bytes(values: list[int]) -> bytes:
    words = memoryview(bytearray(8 * len(values))).cast("Q")
    for index, value in enumerate(values):
        words[index] = value
    return bytes(words)
