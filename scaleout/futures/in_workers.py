"""What runs in workers around the user's functions. Apart from the rest, which they need not import."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def run_initializer(initializer: Callable[..., Any], initargs: Iterable[Any]) -> None:
    """The user's initializer. What it raises is logged, as the standard library does, ends the worker, and breaks the
    executor."""
    try:
        initializer(*initargs)
    except BaseException:
        from concurrent.futures import _base  # its logger has a handler of its own

        _base.LOGGER.critical("Exception in initializer:", exc_info=True)
        raise


def run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Several calls of a `map` in one."""
    return [fn(*args) for args in chunk]
