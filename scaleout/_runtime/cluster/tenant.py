"""What a node has for one driver: a zygote, the workers that it forked, and copies of segments that lie elsewhere.

The node does not know what tasks are. It hands on what the driver sends to a worker and what the worker says, as it is,
and looks only at what needs something of this machine: descriptors (the control page, segments, channels of workers
that become owners) and large values, which it sends before the frame that names them.

Everything here runs on the node's reactor thread.
"""

from __future__ import annotations

import marshal
import os
import signal
import time
from functools import partial

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.node_link import OFFSET, NodeLink, Piecewise
from scaleout._runtime.core.resources import Devices
from scaleout._runtime.node.host import Host, present_state
from scaleout._runtime.node.reactor import READABLE
from scaleout._runtime.node.seat import Seat, SeatSupply
from scaleout._runtime.node.stored import extents_of
from scaleout._runtime.store import segment
from scaleout._runtime.wire import control_page, frames
from scaleout._runtime.wire.frames import HEADER, HEADER_BYTES, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from scaleout._runtime.node.reactor import Reactor

STORED_AT = {frames.SUBMIT: 3, frames.CREATE_ACTOR: 2, frames.FUNCTION: 0, frames.INITIALIZER_FAILED: 0}
"""Where in the bodies of these the stored value is; in others it is the body, or the first part of it."""


class Resident:
    """A worker."""

    def __init__(self, worker_id: int, seat: Seat) -> None:
        self.worker_id = worker_id
        self.seat = seat
        self.link = seat.link
        self.is_stream_over = False
        self.exit_status: int | None = None
        self.known_segments: set[int] = set()
        self.segments: set[int] = set()  # its own
        self.pid = 0
        self.outputs: dict[int, Output] = {}  # by the fd that we read
        self.told: bytes = b""  # its control page, as the driver knows it
        self.is_restless = False  # its control page may change without a word


class Gpus:
    """The GPUs of this machine, shared by all its tenants."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._devices = Devices(len(names))

    def environment_of(self, worker: tuple[int, int], amount: int) -> dict[str, str]:
        """What a worker that was granted so much, in thousandths, has in its environment."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._names[number] for number in self._devices.take(worker, amount))}

    def give_back(self, worker: tuple[int, int]) -> None:
        self._devices.give_back(worker)


class Output:
    """What a worker writes to its stdout or stderr: a pipe, and the line that is not whole yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.line = b""

    def take(self, data: bytes) -> list[bytes]:
        """The lines that are whole now; too long ones in parts. At the end of the stream (b"") what is left."""
        *lines, self.line = (self.line + data).split(b"\n")
        if len(self.line) > limits.LINE_BYTES or (self.line and not data):
            lines.append(self.line)
            self.line = b""
        return lines


class Tenant:
    """See the module's docstring. `on_end(tenant)` is called when the driver is gone; `report(line)` writes to the
    node's log."""

    def __init__(
        self,
        reactor: Reactor,
        link: NodeLink,
        node_name: str,
        gpus: Gpus,
        max_processes: int,
        on_end: Callable[[Tenant], None],
        report: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._link = link
        self._node_name = node_name
        self._gpus = gpus
        self._max_processes = max_processes
        self._on_end = on_end
        self._report = report
        self._is_closed = False
        self._host: Host | None = None
        self._state: dict[str, Any] = {}
        self._seats = SeatSupply(reactor)
        self._residents: dict[int, Resident] = {}
        self._segments: dict[int, int] = {}  # fds, of all that is mirrored here or was written here
        self._is_ticking = False
        self._may_print_bytes = float(limits.OUTPUT_BYTES_PER_SECOND)
        self._printed_at = time.monotonic()
        self._unprinted = 0
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
        }

    def open(self) -> None:
        self._reactor.watch(self._link.fileno(), self._on_driver)
        self._on_driver(READABLE)  # a TLS connection may hold what no poll shows

    # -- from the driver -------------------------------------------------------------------------

    def _on_driver(self, events: int) -> None:
        link = self._link
        if events & ~READABLE:
            self._reactor.flush_soon(link)
        try:
            data = link.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for kind, flag, aux, number, body in link.frames(data):
                self._orders[kind](flag, aux, number, body)
        except Exception as error:  # nonsense, or this machine has no descriptors or memory left: this driver's end
            self._report(f"a driver is given up: {type(error).__name__}: {error}")
            self.close()

    def _say(self, data: Any) -> None:
        self._link.queue(data)
        self._reactor.flush_soon(self._link)

    def tell_nodes(self, nodes: list[Any]) -> None:
        """The cluster's nodes are these now."""
        self._say(frame(frames.NODES, marshal.dumps(nodes)))

    def _set_state(self, flag: int, aux: int, number: int, body: bytes) -> None:
        here = present_state(self._max_processes)
        wanted = marshal.loads(body)
        path = [*wanted["path"], *(entry for entry in here["path"] if entry not in wanted["path"])]
        keep = ("argv", "cwd", "umask", "preload", "max_depth")
        self._state = {**here, **{name: wanted[name] for name in keep}, "path": path}
        host = self._need_host()
        host.describe(self._state)
        self._reactor.flush_soon(host.link)

    def _greet(self, flag: int, aux: int, number: int, body: bytes) -> None:
        """The first of a worker that is to be."""
        resident = Resident(number, self._seats.take())
        self._residents[number] = resident
        self._reactor.watch(resident.link.fileno(), partial(self._on_worker, resident))
        info, gpus = marshal.loads(body)
        if gpus:
            info["environment"] = {**(info["environment"] or {}), **self._gpus.environment_of((id(self), number), gpus)}
        resident.seat.greet({**info, "parent_pid": os.getpid()})
        self._reactor.flush_soon(resident.link)

    def _fork(self, flag: int, aux: int, number: int, body: bytes) -> None:
        resident = self._residents[number]
        outputs = [Output(1), Output(2)]
        host = self._need_host()
        host.connect_outputs(*(output.theirs for output in outputs))
        for output in outputs:
            os.close(output.theirs)
            resident.outputs[output.fd] = output
            self._reactor.watch(output.fd, partial(self._on_output, resident, output))
        host.fork(number, resident.seat.take_theirs())
        self._reactor.flush_soon(host.link)

    # -- what workers print ----------------------------------------------------------------------

    def _on_output(self, resident: Resident, output: Output, events: int) -> None:
        try:
            data = os.read(output.fd, limits.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._print(resident, output.number, output.take(data))
        if not data:
            self._end_output(resident, output)

    def _end_output(self, resident: Resident, output: Output) -> None:
        self._reactor.forget(output.fd)
        os.close(output.fd)
        del resident.outputs[output.fd]

    def _print(self, resident: Resident, number: int, lines: list[bytes]) -> None:
        if not lines:
            return
        mark = f"({self._node_name}, pid {resident.pid}) ".encode()
        text = b"".join(mark + line + b"\n" for line in lines)
        now = time.monotonic()
        rate = limits.OUTPUT_BYTES_PER_SECOND
        self._may_print_bytes = min(float(rate), self._may_print_bytes + (now - self._printed_at) * rate)
        self._printed_at = now
        if len(text) > self._may_print_bytes:
            self._unprinted += len(lines)
            return
        self._may_print_bytes -= len(text)
        if self._unprinted:
            text = mark + f"[{self._unprinted} lines were left out: too many at once]\n".encode() + text
            self._unprinted = 0
        self._say(frame(frames.PRINTED, text, aux=number))

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
            resident.seat.when_settled(partial(self._answer_look, number, aux))

    def _answer_look(self, number: int, question: int) -> None:
        resident = self._residents.get(number)
        if resident is not None:
            self._tell_words(resident, question)

    def _tell_words(self, resident: Resident, question: int = 0) -> None:
        values = resident.seat.words.tolist()
        resident.told = bytes(resident.seat.words)
        values[control_page.SINCE_NS] = max(0, time.monotonic_ns() - values[control_page.SINCE_NS])
        self._say(frame(frames.WORDS, _as_bytes(values), aux=question, number=resident.worker_id))

    # -- large values ----------------------------------------------------------------------------

    def _introduce(self, flag: int, aux: int, number: int, body: bytes) -> None:
        segment_id, size_bytes, is_on_disk = marshal.loads(body)
        fd = self._segments.get(segment_id)
        if fd is None:
            fd = self._segments[segment_id] = segment.create_memory_segment(size_bytes).fd
        resident = self._residents.get(number)
        if resident is not None and segment_id not in resident.known_segments:
            resident.known_segments.add(segment_id)
            resident.seat.introduce(segment_id, fd, size_bytes, is_on_disk)
            self._reactor.flush_soon(resident.link)

    def _write_piece(self, flag: int, aux: int, number: int, body: bytes) -> None:
        fd = self._segments.get(number)
        if fd is not None:
            os.pwrite(fd, memoryview(body)[OFFSET.size :], OFFSET.unpack_from(body)[0])

    def _discard(self, flag: int, aux: int, number: int, body: bytes) -> None:
        for segment_id, offset, size_bytes in marshal.loads(body):
            fd = self._segments.get(segment_id)
            if fd is not None:
                segment.punch(fd, offset, segment.round_to_pages(size_bytes))

    # -- from workers ----------------------------------------------------------------------------

    def _on_worker(self, resident: Resident, events: int) -> None:
        link = resident.link
        if events & ~READABLE:
            self._reactor.flush_soon(link)
        try:
            data = link.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._stream_over(resident)
            return
        self._hand_on(resident, data)

    def _hand_on(self, resident: Resident, data: bytes) -> None:
        """Whole frames go to the driver, in as few pieces as can be."""
        said = 0  # up to where they have gone
        position, end = 0, len(data)
        while end - position >= HEADER_BYTES:
            length, kind, flag, aux, number = HEADER.unpack_from(data, position)
            following = position + HEADER_BYTES + length
            if following > end:
                if length > limits.FRAME_BYTES:
                    self._kill(0, signal.SIGKILL, resident.worker_id, b"")
                    return
                break
            body_at = position + HEADER_BYTES
            if flag & frames.STORED:
                self._say_bytes(resident, data[said:position])
                said = position
                self._send_ranges(kind, flag, data[body_at:following])
            elif kind == frames.SEGMENT:
                self._segments[number] = resident.link.fds.popleft()
                resident.segments.add(number)
            elif kind == frames.CHANNEL:
                self._need_host().adopt(resident.worker_id, resident.link.fds.popleft())
                self._reactor.flush_soon(self._need_host().link)
                self._say_bytes(resident, data[said:position])
                said = following
            position = following
        self._say_bytes(resident, data[said:position])
        if position < end:
            resident.link.leftover(data, position)
        self._may_change(resident)

    def _say_bytes(self, resident: Resident, data: bytes) -> None:
        if data:
            self._say(frame(frames.RELAY, data, number=resident.worker_id))

    def _send_ranges(self, kind: int, flag: int, body: bytes) -> None:
        """What the frame names goes before it."""
        if kind in STORED_AT or flag & (frames.HAS_REFERENCES | frames.STATUS_MASK):
            body = marshal.loads(body)[STORED_AT.get(kind, 0)]
        for extent in extents_of(body):
            fd = self._segments.get(extent[0])
            if fd is not None:
                self._say(Piecewise(extent, fd))

    def _stream_over(self, resident: Resident) -> None:
        if not resident.is_stream_over:
            resident.is_stream_over = True
            self._reactor.forget(resident.link.fileno())
            if resident.exit_status is None:
                self._kill(0, signal.SIGTERM, resident.worker_id, b"")

    # -- control pages ---------------------------------------------------------------------------

    def _may_change(self, resident: Resident) -> None:
        resident.is_restless = True
        if not self._is_ticking:
            self._is_ticking = True
            self._reactor.call_later(limits.WORDS_SECONDS, self._tick)

    def _tick(self) -> None:
        """Tell the driver of control pages that have changed; those that did not are left alone until something is sent
        to or by their workers."""
        self._is_ticking = False
        for resident in self._residents.values():
            if resident.is_restless:
                if bytes(resident.seat.words) != resident.told:
                    self._tell_words(resident)
                    self._may_change(resident)
                else:
                    resident.is_restless = False

    # -- the zygote ------------------------------------------------------------------------------

    def _need_host(self) -> Host:
        if self._host is None:
            self._host = Host.start()
            self._reactor.watch(self._host.link.fileno(), self._on_host)
            if self._state:
                self._host.describe(self._state)
        return self._host

    def _on_host(self, events: int) -> None:
        host = self._host
        assert host is not None
        if events & ~READABLE:
            self._reactor.flush_soon(host.link)
        try:
            data = host.link.receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._host_died(host)
            return
        for kind, _, aux, number, body in host.link.frames(data):
            resident = self._residents.get(number)
            if resident is None:
                continue
            if kind == frames.FORKED:
                resident.pid = aux
                self._say(frame(frames.FORKED, aux=aux, number=number))
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
        for output in list(resident.outputs.values()):
            self._on_output(resident, output, READABLE)  # a grandchild may hold the other end: what is there, then end
            if output.fd in resident.outputs:
                self._print(resident, output.number, output.take(b""))
                self._end_output(resident, output)
        self._tell_words(resident)
        self._say(last_word)
        del self._residents[resident.worker_id]
        self._forget(resident)

    def _forget(self, resident: Resident) -> None:
        self._gpus.give_back((id(self), resident.worker_id))
        self._reactor.forget_link(resident.link)
        resident.link.close()
        resident.seat.release()

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """The driver is gone: what is its own ends with it."""
        if self._is_closed:
            return
        self._is_closed = True
        self._reactor.forget_link(self._link)
        self._link.close()
        for resident in self._residents.values():
            for output in list(resident.outputs.values()):
                self._end_output(resident, output)
            self._forget(resident)
        self._residents.clear()
        if self._host is not None:
            self._reactor.forget_link(self._host.link)
            self._host.close()
            self._host = None
        self._seats.close()
        for fd in self._segments.values():
            os.close(fd)
        self._segments.clear()
        self._on_end(self)


def _as_bytes(values: list[int]) -> bytes:
    words = memoryview(bytearray(8 * len(values))).cast("Q")
    for index, value in enumerate(values):
        words[index] = value
    return bytes(words)
