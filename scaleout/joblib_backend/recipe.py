"""What workers are started with. Workers of one recipe may serve any `Parallel` call that asks for the same."""

from __future__ import annotations

import os
import pickle
import sys

from scaleout._runtime.session import cpu_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""By these the libraries of numerical code learn how many threads to start: the variables that joblib's loky sets."""

TBB_IPC = "ENABLE_IPC"
"""Lets the schedulers of TBB in several processes share the processors out among themselves."""


class Recipe:
    """An initializer with its arguments, an environment, the place: what a worker cannot change once it has started."""

    def __init__(
        self,
        initializer: Callable[..., Any] | None,
        initargs: Iterable[Any],
        environment: dict[str, str],
        max_retries: int | None,
    ) -> None:
        self.initializer = initializer
        self.initargs = tuple(initargs)
        self.environment = environment
        self.max_retries = max_retries
        self._place = (_working_directory(), tuple(sys.path))
        self._content = _content_of(initializer, self.initargs)

    def matches(self, other: Recipe) -> bool:
        """Whether workers of the one are as good as workers of the other.

        Arguments of initializers must be the same or equal, and not changed since: so both are looked at, what they
        are and what they contain.
        """
        return (
            self.environment == other.environment
            and self.max_retries == other.max_retries
            and self._place == other._place
            and _is_same(self.initializer, other.initializer)
            and len(self.initargs) == len(other.initargs)
            and all(map(_is_same, self.initargs, other.initargs))
            and self._content == other._content
        )


def thread_limits(n_jobs: int, inner_max_num_threads: int | None) -> dict[str, str]:
    """The environment that keeps `n_jobs` workers from starting more threads together than there are CPUs.

    What is set in this process's environment already stands, unless `inner_max_num_threads` is given.
    """
    if inner_max_num_threads is not None:
        limits = dict.fromkeys(THREAD_LIMITS, str(inner_max_num_threads))
    else:
        share = str(max(cpu_count() // n_jobs, 1))
        limits = {name: os.environ.get(name, share) for name in THREAD_LIMITS}
    if TBB_IPC not in os.environ:
        limits[TBB_IPC] = "1"
    return limits


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _content_of(initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> bytes | None:
    """None where there is nothing, or what there is can be pickled only for a worker that is being started."""
    if initializer is None:
        return None
    try:
        return pickle.dumps((initializer, initargs), 5)
    except Exception:  # noqa: BLE001 - reducers of the user's; starting the workers says what is wrong, if it is
        return None


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - an __eq__ of the user's, or of an array
        return False
