"""What a driver's workers on a node print, on its way to the driver: whole lines, with node and pid before them.

Nothing here holds a worker up: what is too much is dropped, and counted. On the node's reactor thread.
"""

from __future__ import annotations

import os
import time
from functools import partial

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Printer = Any  # a worker: what has a pid


class Output:
    """What a worker writes to its stdout or stderr: a pipe, and the line that is not whole yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.line = b""
        self.last = b""  # the line that came last, and how often it did
        self.times = 0
        self.is_unfolding = False
        self.has_ended = False

    def take_theirs(self) -> int:
        theirs, self.theirs = self.theirs, -1
        return theirs

    def close(self) -> None:
        os.close(self.fd)
        if self.theirs >= 0:  # there will be no worker
            os.close(self.take_theirs())

    def take(self, data: bytes) -> list[bytes]:
        """The lines that are whole now; too long ones in parts. At the end of the stream (b"") what is left."""
        *lines, self.line = (self.line + data).split(b"\n")
        if len(self.line) > limits.LINE_BYTES or (self.line and not data):
            lines.append(self.line)
            self.line = b""
        return lines

    def fold(self, lines: list[bytes]) -> list[bytes]:
        """Without those that repeat the one before them, from the FOLDED_LINES-th on; how many there were comes with
        the next that does not, or from `unfold`."""
        kept = []
        for line in lines:
            if line != self.last:
                kept += self.unfold()
                self.last = line
                self.times = 0
            self.times += 1
            if self.times <= limits.FOLDED_LINES:
                kept.append(line)
        return kept

    def unfold(self) -> list[bytes]:
        """What is to be said of those that were left out."""
        more, self.times = self.times - limits.FOLDED_LINES, min(self.times, limits.FOLDED_LINES)
        return [b"[the line before came %d more times]" % more] if more > 0 else []


def origin_of(node_id: str, pid: int) -> str:
    """What goes before each line of a worker's."""
    return f"({node_id}, pid {pid}) "


class Outputs:
    """See the module's docstring. `watch`, `forget` and `call_later` are the reactor's; `say(1 or 2, text)` hands on
    what goes to stdout or stderr."""

    def __init__(
        self,
        node_id: str,
        watch: Callable[[int, Callable[[int], None]], None],
        forget: Callable[[int], None],
        call_later: Callable[[float, Callable[[], None]], None],
        say: Callable[[int, bytes], None],
    ) -> None:
        self._node_id = node_id
        self._watch = watch
        self._forget = forget
        self._call_later = call_later
        self._say = say
        self._of: dict[Printer, list[Output]] = {}
        self._may_print_bytes = float(limits.OUTPUT_BYTES_PER_SECOND)
        self._printed_at = time.monotonic()
        self._unprinted = 0

    def open(self, printer: Printer) -> None:
        """Its stdout and stderr. OSError: there are no descriptors left."""
        outputs = self._of[printer] = []
        for number in (1, 2):
            output = Output(number)
            outputs.append(output)
            self._watch(output.fd, partial(self._on_output, printer, output))

    def take_theirs(self, printer: Printer) -> list[tuple[int, int]]:
        """(1 or 2, the end of the pipe that it writes to), which are the caller's from now on."""
        return [(output.number, output.take_theirs()) for output in self._of[printer]]

    def end(self, printer: Printer) -> None:
        """It is dead: what it has still printed. A grandchild may hold the other ends, and is not heard any more."""
        for output in list(self._of.get(printer, ())):
            self._read(printer, output)
            if not output.has_ended:
                self._print(printer, output.number, output.fold(output.take(b"")))
        self.close(printer)

    def close(self, printer: Printer) -> None:
        for output in self._of.pop(printer, ()):
            self._end(printer, output)

    def forget(self) -> None:
        """In a forked child: close the fds, which are the parent's."""
        for outputs in self._of.values():
            for output in outputs:
                if not output.has_ended:
                    output.close()
        self._of.clear()

    def _on_output(self, printer: Printer, output: Output, events: int) -> None:
        self._read(printer, output)

    def _read(self, printer: Printer, output: Output) -> None:
        if output.has_ended:
            return
        try:
            data = os.read(output.fd, limits.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._print(printer, output.number, output.fold(output.take(data)))
        if output.times > limits.FOLDED_LINES and not output.is_unfolding:
            output.is_unfolding = True
            self._call_later(limits.FOLD_SECONDS, partial(self._unfold, printer, output))
        if not data:
            self._end(printer, output)

    def _unfold(self, printer: Printer, output: Output) -> None:
        output.is_unfolding = False
        self._print(printer, output.number, output.unfold())

    def _end(self, printer: Printer, output: Output) -> None:
        if not output.has_ended:
            output.has_ended = True
            self._print(printer, output.number, output.unfold())
            self._forget(output.fd)
            output.close()

    def _print(self, printer: Printer, number: int, lines: list[bytes]) -> None:
        if not lines:
            return
        mark = origin_of(self._node_id, printer.pid).encode()
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
        self._say(number, text)
