"""Values that go from one program to another: pickled with all definitions that the other cannot import.

A value is a list of parts, the pickle and its large buffers, so that nobody in between needs to look inside.
"""

from __future__ import annotations

import functools
import io
import pickle

from scaleout._runtime import session
from scaleout._runtime.refs import ObjectRef
from scaleout.handles import ActorHandle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

BUFFER_BYTES = 16 * 1024
"""A smaller buffer stays in the pickle."""


@functools.cache
def _pickler() -> Any:
    """Made when it is needed: cloudpickle is slow to import."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is ObjectRef:
                raise TypeError(
                    f"{obj!r}, inside a value that goes from one program to another, is of its own program alone: "
                    "give the value that it stands for, or pass the reference as an argument by itself"
                )
            if kind is ActorHandle:
                raise TypeError(
                    f"{obj!r} is of its own program alone: only handles of detached actors go from one to another"
                )
            return super().reducer_override(obj)

    return Pickler


def packed(value: Any) -> list[Any]:
    """The parts of a value. TypeError if there is something in it that is one program's alone."""
    pickler = _pickler()
    _register_sources()
    buffers: list[pickle.PickleBuffer] = []

    def is_kept(buffer: pickle.PickleBuffer) -> bool:
        with memoryview(buffer) as view:
            if view.nbytes < BUFFER_BYTES or not view.contiguous:
                return True
        buffers.append(buffer)
        return False

    stream = io.BytesIO()
    pickler(stream, protocol=5, buffer_callback=is_kept).dump(value)
    return [stream.getvalue(), *(bytearray(buffer.raw()) for buffer in buffers)]


def unpacked(parts: Sequence[Any]) -> Any:
    """The value of these parts; whoever gives them has no use for them any more: arrays lie in them."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _register_sources() -> None:
    """Modules of the program's own, which came here from its machine, do not exist elsewhere."""
    import cloudpickle

    known = cloudpickle.list_registry_pickle_by_value()
    for module in session.modules_of_program():
        if module.__name__ not in known:
            cloudpickle.register_pickle_by_value(module)
