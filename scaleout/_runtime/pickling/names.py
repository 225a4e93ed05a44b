"""Which names a pickle stream, or a code object, refers to. Pure, and exact or too many, never too few."""

from __future__ import annotations

import opcode
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType
    from typing import Any

    Key = tuple[str, str]

NAME_CHUNK_BYTES = 256 * 1024
"""A stream comes in frames of at most about 192 KiB; a larger chunk is one object's raw bytes, without names."""

MAX_HEAD_BYTES = 100
MAX_HEADS = 512
"""What is remembered of streams, in length and number: enough for all functions and classes of a program."""

STACK_GLOBAL = 0x93
"""The opcode behind the name of each global: a stream without this byte has none."""

_STACK_GLOBAL = bytes([STACK_GLOBAL])
_PROTOCOL_AND_FRAME = 11  # bytes: of each stream that is long enough to hold a name; the frame's size differs
_SHORT_STRING, _GET, _LONG_GET, _FRAME = b"\x8c", 0x68, 0x6A, 0x95


def join_frames(chunks: Iterable[bytes]) -> bytes:
    """The part of a stream that can hold names, as one bytes object."""
    frames = [chunk for chunk in chunks if len(chunk) <= NAME_CHUNK_BYTES]
    return frames[0] if len(frames) == 1 else b"".join(frames)


def names_in_stream(stream: bytes) -> set[str] | None:
    """The top-level names of all globals in a protocol 5 stream of the C pickler, of whatever module.

    None: there may be one whose name cannot be read off (it was memoized earlier, or a frame begins in its middle);
    the caller must then take every name that occurs in the stream. A real global is the opcode STACK_GLOBAL behind its
    name, which is a string and MEMOIZE, or a memo reference. Its byte also occurs in data: there may be too many.
    """
    names = set()
    pieces = stream.split(_STACK_GLOBAL)
    pieces.pop()
    for piece in pieces:
        if piece[-1:] == b"\x94":
            start = piece.rfind(_SHORT_STRING, -258)
            while start >= 0 and piece[start + 1] != len(piece) - start - 3:
                start = piece.rfind(_SHORT_STRING, max(0, len(piece) - 258), start)
            if start < 0:
                return None
            try:
                names.add(str(piece[start + 2 : -1], "utf-8").partition(".")[0])
            except UnicodeDecodeError:
                pass  # data that looks like a name: a real one is valid
        elif (
            (len(piece) >= 2 and piece[-2] == _GET)
            or (len(piece) >= 5 and piece[-5] == _LONG_GET)
            or (len(piece) >= 9 and piece[-9] == _FRAME)
        ):
            return None
    return names


class NamesInStreams:
    """Finds the names of by-value modules in streams, and remembers what it found behind a short beginning.

    Most streams have one global: a function, or the class of one instance. What stands before it decides which it is.
    """

    def __init__(self) -> None:
        self.by_value_modules = {"__main__"}
        self._key_by_head: dict[bytes, Key | tuple[()]] = {}

    def only_key(self, stream: bytes) -> Key | tuple[()] | None:
        """(module, name) of the only global in a stream, () if it is of no by-value module; None: look closer."""
        head, _, tail = stream.partition(_STACK_GLOBAL)
        if STACK_GLOBAL in tail:
            return None
        head = head[_PROTOCOL_AND_FRAME:]
        key = self._key_by_head.get(head)
        if key is None and len(head) <= MAX_HEAD_BYTES:
            keys = self.keys_in(stream)
            if keys is not None and len(keys) <= 1:
                if len(self._key_by_head) >= MAX_HEADS:
                    self._key_by_head.clear()
                key = self._key_by_head[head] = keys[0] if keys else ()
        return key

    def may_name(self, chunks: list[bytes]) -> bool:
        """Whether a stream in several chunks may hold a name of a by-value module; without joining what may be large.

        No name is split: the pickler begins a chunk only between two opcodes.
        """
        small = [chunk for chunk in chunks if len(chunk) <= NAME_CHUNK_BYTES]
        if not any(STACK_GLOBAL in chunk for chunk in small):
            return False
        return any(name in chunk for name in [name.encode() for name in self.by_value_modules] for chunk in small)

    def keys_in(self, stream: bytes) -> list[Key] | None:
        """(module, name) of all globals that may be of a by-value module; None as in `names_in_stream`."""
        modules = [name for name in sorted(self.by_value_modules) if name.encode() in stream]
        if not modules:
            return []
        names = names_in_stream(stream)
        if names is None:
            return None
        return [(module, name) for module in modules for name in sorted(names) if name in module_dict(module)]


def module_dict(name: str) -> dict[str, Any]:
    """A module's globals as they are now; empty if there is no such module."""
    module = sys.modules.get(name)
    return module.__dict__ if module is not None else {}


_EXTENDED_ARG = opcode.opmap["EXTENDED_ARG"]
# How far an instruction's argument must be shifted to be an index into co_names.
_GLOBAL_OPS = {
    opcode.opmap[name]: 1 if name == "LOAD_GLOBAL" and sys.version_info >= (3, 11) else 0
    for name in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
    if name in opcode.opmap
}


def global_names(code: CodeType) -> dict[str, None]:
    """The globals that a code object and those nested in it read or write, in order; of a class body its names too."""
    names: dict[str, None] = {}
    for part in walk_code(code):
        high = 0
        raw = part.co_code
        for op, argument in zip(raw[::2], raw[1::2], strict=True):
            if op == _EXTENDED_ARG:
                high = (high | argument) << 8
                continue
            shift = _GLOBAL_OPS.get(op)
            if shift is not None:
                names[part.co_names[(high | argument) >> shift]] = None
            high = 0
    return names


def attribute_names(code: CodeType) -> set[str]:
    """Every name that the code may use as an attribute."""
    return {name for part in walk_code(code) for name in part.co_names}


def walk_code(code: CodeType) -> Iterator[CodeType]:
    """The code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from walk_code(constant)
