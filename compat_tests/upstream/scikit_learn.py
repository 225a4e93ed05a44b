"""scikit-learn's tests of what it hands to joblib: "scaleout" is the backend, with two jobs where they ask for none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compat_tests.pytest_runner import files_of

NAMES = (
    "compose.tests.test_column_transformer",
    "ensemble.tests.test_bagging",
    "ensemble.tests.test_forest",
    "ensemble.tests.test_voting",
    "inspection.tests.test_permutation_importance",
    "model_selection.tests.test_search",
    "model_selection.tests.test_validation",
    "tests.test_calibration",
    "tests.test_multiclass",
    "tests.test_pipeline",
    "utils.tests.test_parallel",
)


OF_FORESTS = ("parallel", "importances", "oob", "backend", "warm_start", "decision_path")


def paths() -> list[str]:
    """What pytest collects."""
    return files_of(*(f"sklearn.{name}" for name in NAMES))


def enrol() -> None:
    """The backend is registered already (see ``enrolment``)."""


def keeps(item: Any) -> bool:
    """Whether one uses the backend is seen when it has run. Of the forests' tests, which are all alike in what they
    leave to joblib and take longest, a part."""
    return item.path.stem != "test_forest" or any(word in item.name for word in OF_FORESTS)


@contextmanager
def around(item: Any) -> Iterator[None]:
    """As a user does who makes the backend the one of a program."""
    from joblib import parallel_config

    with parallel_config(backend="scaleout", n_jobs=2):
        yield
