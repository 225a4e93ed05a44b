"""Who is compared: how a pool of each peer is opened, and whether the peer is there at all.

`fork`, `spawn` and `scaleout` are Pools. The others take part only where single tasks are
counted: their adapters give a function that runs `function(i)` for each i as one task each.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WORKERS = 2

# In generated scripts this is the one line that differs between contenders.
POOL_IMPORT = {
    "fork": 'import multiprocessing; Pool = multiprocessing.get_context("fork").Pool',
    "spawn": 'import multiprocessing; Pool = multiprocessing.get_context("spawn").Pool',
    "scaleout": "from scaleout.multiprocessing import Pool",
}

_PACKAGES = {"loky": "joblib", "ray": "ray", "dask": "distributed"}

RunAll = Callable[[Callable[[int], Any], range], list[Any]]


def why_missing(peer: str) -> str | None:
    """Why `peer` cannot take part, or None if it can."""
    if peer == "scaleout":
        # In a process of its own: while it is being built, an import may do anything.
        check = subprocess.run([sys.executable, "-c", POOL_IMPORT[peer]], capture_output=True, text=True, timeout=60)
        last_line = (check.stderr.strip().splitlines() or ["no message"])[-1]
        return None if check.returncode == 0 else f"cannot be imported ({last_line})"
    package = _PACKAGES.get(peer)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return None


def open_pool(peer: str, processes: int = WORKERS, **arguments: Any) -> Any:
    """A running pool of `peer`; a context manager, as every Pool is."""
    namespace: dict[str, Any] = {}
    exec(POOL_IMPORT[peer], namespace)
    return namespace["Pool"](processes, **arguments)


def open_executor(peer: str, max_workers: int = WORKERS) -> Any:
    """A running executor: the standard library's for `executor`, else scaleout's; a context manager."""
    if peer == "executor":
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(max_workers)
    from scaleout.futures import ScaleoutExecutor

    return ScaleoutExecutor(max_workers)


@contextmanager
def open_task_runner(peer: str) -> Iterator[RunAll]:
    """A function `run_all(function, items)` on two workers of `peer`, one task per item."""
    opened = _RUNNERS[peer] if peer in _RUNNERS else _pool_runner(peer)
    with opened() as run_all:
        yield run_all


def _pool_runner(peer: str) -> Callable[[], Any]:
    @contextmanager
    def opened() -> Iterator[RunAll]:
        with open_pool(peer) as pool:

            def run_all(function: Callable[[int], Any], items: range) -> list[Any]:
                results = [pool.apply_async(function, (i,)) for i in items]
                return [result.get() for result in results]

            yield run_all

    return opened


@contextmanager
def _executor() -> Iterator[RunAll]:
    with open_executor("executor") as executor:
        yield _submit_and_wait(executor)


@contextmanager
def _loky() -> Iterator[RunAll]:
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=WORKERS)
    yield _submit_and_wait(executor)
    executor.shutdown()


def _submit_and_wait(executor: Any) -> RunAll:
    def run_all(function: Callable[[int], Any], items: range) -> list[Any]:
        futures = [executor.submit(function, i) for i in items]
        return [future.result() for future in futures]

    return run_all


@contextmanager
def _ray() -> Iterator[RunAll]:
    import ray

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)

    def run_all(function: Callable[[int], Any], items: range) -> list[Any]:
        remote = remotes.setdefault(function, ray.remote(function))
        results: list[Any] = ray.get([remote.remote(i) for i in items])
        return results

    remotes: dict[Any, Any] = {}
    yield run_all
    ray.shutdown()


@contextmanager
def _dask() -> Iterator[RunAll]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):

        def run_all(function: Callable[[int], Any], items: range) -> list[Any]:
            # pure=False: a repeated call is a task again, not a look-up of its old result.
            futures = [client.submit(function, i, pure=False) for i in items]
            results: list[Any] = client.gather(futures)
            return results

        yield run_all


_RUNNERS: dict[str, Callable[[], Any]] = {
    "executor": _executor,
    "loky": _loky,
    "ray": _ray,
    "dask": _dask,
}
