"""`concurrent.futures` on scaleout: change the import and the executor's name, keep the program.

    from scaleout.futures import ScaleoutExecutor, as_completed, wait

`ScaleoutExecutor` is scaleout's own and takes the arguments of both standard executors. The other public names of
`concurrent.futures` are the standard library's: they work on its futures, which are genuine. `scaleout.futures.aio` is
for asyncio programs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout.futures.executor import ScaleoutExecutor as ScaleoutExecutor

_STDLIB = frozenset(
    {
        "ALL_COMPLETED", "BrokenExecutor", "CancelledError", "Executor", "FIRST_COMPLETED", "FIRST_EXCEPTION", "Future",
        "InvalidStateError", "TimeoutError", "as_completed", "wait",
    }
)  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name == "ScaleoutExecutor":
        value = importlib.import_module("scaleout.futures.executor").ScaleoutExecutor
    elif name in _STDLIB:
        value = getattr(importlib.import_module("concurrent.futures"), name)
    elif name == "BrokenProcessPool":  # what a dead worker's task raises; 18 ms to import
        value = importlib.import_module("concurrent.futures.process").BrokenProcessPool
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_STDLIB, "BrokenProcessPool", "ScaleoutExecutor"})
