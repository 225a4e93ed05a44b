"""``joblib.test.test_parallel`` with "scaleout" among the backends that its tests are parametrized with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compat_tests.pytest_runner import files_of

UPSTREAM = "joblib.test.test_parallel"
NAME = "scaleout"

TAKE_THE_DEFAULT = ("test_background_thread_parallelism[scaleout]",)
"""Tests that get the backend as a parameter, but look at the default one: while they run, that is ours."""


def paths() -> list[str]:
    """What pytest collects."""
    return files_of(UPSTREAM)


def enrol() -> None:
    """Before collection. The backend is registered (see ``enrolment``), which enrols it where tests walk joblib's own
    register; where they have lists of names, it stands in each list that names loky."""
    from joblib.test import test_parallel

    lists = [
        test_parallel.PROCESS_BACKENDS,
        test_parallel.PARALLEL_BACKENDS,
        test_parallel.all_backends_for_context_manager,
    ]
    for value in vars(test_parallel).values():
        for mark in getattr(value, "pytestmark", ()) if callable(value) else ():
            if mark.name == "parametrize" and isinstance(mark.args[1], list):
                lists.append(mark.args[1])
    for backends in lists:
        names = [entry for entry in backends if isinstance(entry, str)]
        if "loky" in names and NAME not in names:
            backends.append(NAME)


def keeps(item: Any) -> bool:
    """Whether a parameter of the test is our backend."""
    from scaleout.joblib_backend import ScaleoutBackend

    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(value, ScaleoutBackend) or (isinstance(value, str) and value == NAME) for value in parameters)


@contextmanager
def around(item: Any) -> Iterator[None]:
    """See TAKE_THE_DEFAULT."""
    from joblib import parallel

    default = parallel.DEFAULT_BACKEND
    if item.name in TAKE_THE_DEFAULT:
        parallel.register_parallel_backend(NAME, parallel.BACKENDS[NAME], make_default=True)
    try:
        yield
    finally:
        parallel.DEFAULT_BACKEND = default
