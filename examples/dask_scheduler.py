"""Dask collections computed by an executor: delayed calls, a bag and an array.

What to change: nothing but the keyword, `scheduler=ScaleoutExecutor()`, or `dask.config.set(scheduler=...)` for all.

What one sees: facts about the standard library's sources and about an array, the same as with dask's own schedulers.

    python examples/dask_scheduler.py               # on ScaleoutExecutor
    python examples/dask_scheduler.py processes     # on dask's own: processes, threads or synchronous
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array
import dask.bag

from scaleout.futures import ScaleoutExecutor


@dask.delayed
def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


@dask.delayed
def largest(paths: list[Path], counts: list[int]) -> tuple[int, str]:
    return max((count, path.name) for path, count in zip(paths, counts, strict=True))


def words_of(path: Path) -> list[str]:
    return re.findall(r"[a-z]{4,}", path.read_text("utf-8", "replace"))


def compute(scheduler: Any) -> None:
    paths = sorted(Path(os.__file__).parent.glob("*.py"))

    counts = [count_lines(path) for path in paths]
    total, (lines, name) = dask.compute(dask.delayed(sum)(counts), largest(paths, counts), scheduler=scheduler)
    print(f"delayed: {total} lines in {len(paths)} files, {lines} of them in {name}")

    words = dask.bag.from_sequence(paths, npartitions=8).map(words_of).flatten()
    top = words.frequencies().topk(3, key=lambda item: (item[1], item[0])).compute(scheduler=scheduler)
    print("bag:     " + ", ".join(f"{word} {count}" for word, count in top))

    x = dask.array.linspace(0, 1, 1_000_000, chunks=250_000).reshape(1_000, 1_000) ** 2
    with dask.config.set(scheduler=scheduler):
        print(f"array:   mean {x.mean().compute():.6f}, trace of x.T @ x {(x.T @ x).trace().compute():.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compute(scheduler=sys.argv[1])
    else:
        with ScaleoutExecutor() as executor:
            compute(scheduler=executor)
