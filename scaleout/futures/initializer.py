"""Runs in workers: the user's initializer, whose failure is logged there as the standard library does."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def run_initializer(initializer: Callable[..., Any], initargs: Iterable[Any]) -> None:
    """What it raises ends the worker, and breaks the executor."""
    try:
        initializer(*initargs)
    except BaseException:
        from concurrent.futures import _base  # its logger has a handler of its own

        _base.LOGGER.critical("Exception in initializer:", exc_info=True)
        raise
