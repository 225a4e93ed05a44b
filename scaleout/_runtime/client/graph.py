"""Calls as a program makes them: what the owner's client and a worker's have in common."""

from __future__ import annotations

from scaleout._runtime.base.references import Dependency, ObjectRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def with_dependencies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, list[ObjectRef]]:
    """(args, kwargs, dependencies): each top-level reference is replaced by its position among the dependencies."""
    found: dict[ObjectRef, int] = {}  # each once: its value is sent once

    def replaced(value: Any) -> Any:
        if type(value) is not ObjectRef:
            return value
        return Dependency(found.setdefault(value, len(found)))

    args = tuple(map(replaced, args))
    return args, {name: replaced(value) for name, value in kwargs.items()}, list(found)


class Options:
    """What one call asks for beyond its arguments. Made once per function or method, and shared by its calls."""

    __slots__ = ("channel", "max_retries", "name", "priority", "retry_exceptions", "returns", "shape", "timeout_s")

    def __init__(
        self,
        shape: Any = (("CPU", 1000),),
        returns: int = 1,
        max_retries: int | None = None,
        retry_exceptions: Any = False,
        timeout_s: float | None = None,
        name: str = "",
        priority: int = 0,
    ) -> None:
        self.shape = shape
        self.returns = returns
        self.max_retries = max_retries
        self.retry_exceptions = retry_exceptions
        self.timeout_s = timeout_s
        self.name = name
        self.priority = priority
        self.channel = 0  # of an actor's calls: those of one channel keep their order, and hold up no others

    def plain(self) -> dict[str, Any]:
        """What the owner must know of them, as plain data."""
        return {
            "shape": self.shape,
            "max_retries": self.max_retries,
            "timeout_s": self.timeout_s,
            "name": self.name,
            "priority": self.priority,
            "channel": self.channel,
            "retry_exceptions": self.retry_exceptions,
        }

    @property
    def is_plain(self) -> bool:
        """Whether a call needs no more than its arguments."""
        return self.returns == 1 and self.timeout_s is None and not self.retry_exceptions and not self.priority
