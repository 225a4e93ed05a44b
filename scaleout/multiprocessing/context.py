"""Contexts: `get_context()` answers one whose Pool is scaleout's and whose other names are the standard library's."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context as stdlib

from scaleout._runtime.session import cpu_count, is_on_cluster, set_preload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class ScaleoutContext(stdlib.SpawnContext):
    """The standard library's spawn context with scaleout's Pool. There is one start method: "spawn"."""

    def Pool(
        self,
        processes: int | None = None,
        initializer: Any = None,
        initargs: Any = (),
        maxtasksperchild: int | None = None,
        *,
        max_retries: int | None = None,
    ) -> Any:
        """A pool of worker processes: see `scaleout.multiprocessing.pool.Pool`."""
        from scaleout.multiprocessing.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self, max_retries=max_retries)

    def cpu_count(self) -> int:
        """How many CPUs there are, as `os.cpu_count`; SCALEOUT_NUM_CPUS does not change it. On a cluster, those of its
        nodes."""
        return cpu_count() if is_on_cluster() else super().cpu_count()

    def get_context(self, method: str | None = None) -> Any:
        """This context for None and "spawn" (and, as workers are always started clean, for "fork" and "forkserver");
        ValueError for any other name."""
        if method is None or method in ("spawn", "fork", "forkserver"):
            return self
        raise ValueError(f"cannot find context for {method!r}")

    def get_start_method(self, allow_none: bool = False) -> str:
        return "spawn"

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Accepts the names that the standard library accepts; workers are started clean in any case."""
        if method not in (None, "spawn", "fork", "forkserver"):
            raise ValueError(f"cannot find context for {method!r}")

    def set_forkserver_preload(self, module_names: list[str]) -> None:
        """Modules that the process which forks the workers imports once, so that each worker has them at no cost."""
        if not all(type(name) is str for name in module_names):
            raise TypeError("module_names must be a list of strings")
        set_preload(module_names)

    def get_all_start_methods(self) -> list[str]:
        return ["spawn"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(multiprocessing, name)


default_context = ScaleoutContext()
