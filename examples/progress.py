"""Progress bars: tqdm around `executor.map`, around `as_completed`, and tqdm's own parallel map.

What to change: the executor's name and import. The first two ways need nothing else. For the third, tqdm gives its
lock to every worker, so it must be one that a clean process can be given: `scaleout.multiprocessing.RLock`.

What one sees: three bars on stderr, and three times the same digest on stdout, whichever the executor.

    python examples/progress.py            # on ScaleoutExecutor
    python examples/progress.py stdlib     # on ProcessPoolExecutor
"""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.concurrent import _executor_map

from scaleout.futures import ScaleoutExecutor
from scaleout.multiprocessing import RLock

EXECUTORS: dict[str, type[Executor]] = {"scaleout": ScaleoutExecutor, "stdlib": ProcessPoolExecutor}


def digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def around_map(executor_class: type[Executor], paths: list[str]) -> list[str]:
    with executor_class() as executor:
        return list(tqdm(executor.map(digest_of, paths), total=len(paths), desc="map"))


def around_as_completed(executor_class: type[Executor], paths: list[str]) -> list[str]:
    with executor_class() as executor:
        paths_of = {executor.submit(digest_of, path): path for path in paths}
        digests = {}
        for future in tqdm(as_completed(paths_of), total=len(paths_of), desc="as_completed"):
            digests[paths_of[future]] = future.result()
    return [digests[path] for path in paths]


def in_tqdms_own_map(executor_class: type[Executor], paths: list[str]) -> list[str]:
    """`process_map` with the executor's class as a parameter: the name is tqdm's private one, as there is no other."""
    return _executor_map(executor_class, digest_of, paths, desc="tqdm's own")


def main() -> None:
    executor_class = EXECUTORS[sys.argv[1] if len(sys.argv) > 1 else "scaleout"]
    tqdm.set_lock(RLock())
    paths = sorted(str(path) for path in Path(os.__file__).parent.glob("*.py"))
    for way in (around_map, around_as_completed, in_tqdms_own_map):
        digests = way(executor_class, paths)
        total = hashlib.sha256("".join(digests).encode()).hexdigest()
        print(f"{way.__name__}: {len(digests)} files, {total[:16]}")


if __name__ == "__main__":
    main()
