"""Custom serializers, for what pickle cannot do or does badly."""

from __future__ import annotations

import copyreg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Have instances of `cls` (not of its subclasses) cross as `deserializer(serializer(instance))`.

    `serializer` gives something that pickles. A process that gets such an instance from here knows the serializer from
    then on; one that makes instances itself registers it for itself.

    >>> import threading, scaleout
    >>> class Guarded:
    ...     def __init__(self, value):
    ...         self.value, self.lock = value, threading.Lock()
    >>> scaleout.register_serializer(Guarded, serializer=lambda guarded: guarded.value, deserializer=Guarded)
    >>> scaleout.get(scaleout.put(Guarded(5))).value
    5
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer takes a class, not {cls!r}")
    if not callable(serializer) or not callable(deserializer):
        raise TypeError("serializer and deserializer are functions of one argument")

    def reduce(instance: Any) -> Any:
        return _rebuilt, (cls, serializer, deserializer, serializer(instance))

    copyreg.pickle(cls, reduce)


def deregister_serializer(cls: type) -> None:
    """Have instances of `cls` cross as pickle has it again."""
    copyreg.dispatch_table.pop(cls, None)


def _rebuilt(cls: type, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any], data: Any) -> Any:
    if cls not in copyreg.dispatch_table:
        register_serializer(cls, serializer=serializer, deserializer=deserializer)
    return deserializer(data)
