"""`multiprocessing` on scaleout: change the import, keep the program.

`Pool` is scaleout's own. Every other public name is the standard library's, bound to its *spawn* context: workers are
started clean, so objects are shared the way that spawned processes share them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_SUBMODULES = frozenset(
    {
        "connection", "context", "dummy", "forkserver", "heap", "managers", "popen_fork", "popen_forkserver",
        "popen_spawn_posix", "process", "queues", "reduction", "resource_sharer", "resource_tracker",
        "shared_memory", "sharedctypes", "spawn", "synchronize", "util",
    }
)  # fmt: skip


def Pool(
    processes: int | None = None,
    initializer: Any = None,
    initargs: Any = (),
    maxtasksperchild: int | None = None,
    *,
    max_retries: int | None = None,
) -> Any:
    """A pool of worker processes: see `scaleout.multiprocessing.pool.Pool`."""
    from scaleout.multiprocessing.pool import Pool

    return Pool(processes, initializer, initargs, maxtasksperchild, context=_context(), max_retries=max_retries)


def _context() -> Any:
    from scaleout.multiprocessing.context import default_context

    return default_context


def __getattr__(name: str) -> Any:
    if name == "__all__":
        import multiprocessing

        return list(multiprocessing.__all__)
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "pool":
        return importlib.import_module("scaleout.multiprocessing.pool")
    if name in _SUBMODULES:
        module = importlib.import_module(f"multiprocessing.{name}")
        return module
    try:
        value = getattr(_context(), name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    import multiprocessing

    return sorted({*globals(), *multiprocessing.__all__})
