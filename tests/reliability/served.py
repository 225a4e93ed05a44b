"""What recycled workers run: a module of its own, as every one of them imports it anew."""

from __future__ import annotations

import os

served = 0


def serve(number: int) -> tuple[int, int, int]:
    """The number, the process, and which of its tasks this is."""
    global served
    served += 1
    return number, os.getpid(), served


def register(log: str) -> None:
    """Leaves an atexit function and a finalizer that write to `log`."""
    import atexit
    from multiprocessing import util

    atexit.register(say, log, "atexit")
    util.Finalize(None, say, args=(log, "finalizer"), exitpriority=5)


def say(log: str, what: str) -> None:
    with open(log, "a") as file:
        file.write(f"{what}-{os.getpid()}\n")


def make_array(number: int) -> object:
    import numpy

    return numpy.full(125_000, number, dtype=numpy.int64)
