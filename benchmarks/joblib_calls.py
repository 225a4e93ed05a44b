"""joblib: `Parallel` and scikit-learn on it, with scaleout's backend and with joblib's own, loky."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.arrays import array_items
from benchmarks.model import Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import WORKERS
from benchmarks.scripts import script_directory, whole_process_s
from benchmarks.workloads import ends_of, negate, with_scikit_learn

REGISTER = {"loky": "", "scaleout": "import scaleout.joblib_backend"}

_GRID_SEARCH = """
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

def search():
    X, y = load_digits(return_X_y=True)
    with parallel_config(backend={backend!r}, n_jobs={workers}):
        found = GridSearchCV(SVC(), {grid!r}, cv=3).fit(X, y)
    assert found.best_score_ > 0.9, found.best_score_
"""

_RUN = """
if __name__ == "__main__":
    search()
"""


def parallel(setting: Setting, **arguments: Any) -> Callable[[Any], list[Any]]:
    """`Parallel(...)` of two workers of the contender."""
    from joblib import Parallel

    exec(REGISTER[setting.peer], {})
    return Parallel(n_jobs=WORKERS, backend=setting.peer, **arguments)  # type: ignore[no-any-return]


def single_calls(setting: Setting) -> Iterator[Sample]:
    from joblib import delayed

    calls = setting.size(5000, 500)
    yield from _timed(
        lambda: parallel(setting, batch_size=1, pre_dispatch="all")(delayed(negate)(i) for i in range(calls)),
        [-i for i in range(calls)],
    )


def batched_calls(setting: Setting) -> Iterator[Sample]:
    from joblib import delayed

    calls = setting.size(100_000, 10_000)
    yield from _timed(lambda: parallel(setting)(delayed(negate)(i) for i in range(calls)), [-i for i in range(calls)])


def call_after_call(setting: Setting) -> Iterator[Sample]:
    from joblib import delayed

    times = setting.size(100, 10)

    def call() -> list[Any]:
        for _ in range(times):
            results = parallel(setting)(delayed(with_scikit_learn)(i) for i in range(10))
        return results

    yield from _timed(call, list(range(10)))


def array_argument(setting: Setting) -> Iterator[Sample]:
    import numpy
    from joblib import delayed

    items = array_items(setting)
    array: Any = numpy.arange(items, dtype=numpy.float64)
    yield from _timed(
        lambda: parallel(setting)(delayed(ends_of)(array, i) for i in range(20)), [items - 1 + i for i in range(20)]
    )


def _timed(call: Callable[[], list[Any]], expected: list[Any]) -> Iterator[Sample]:
    while True:
        start = time.perf_counter()
        results = call()
        elapsed_s = time.perf_counter() - start
        assert results == expected
        yield {"s": elapsed_s}


def grid_search_cold(setting: Setting) -> Iterator[Sample]:
    with script_directory({"script.py": _grid_search(setting) + _RUN}) as directory:
        while True:
            yield {"s": whole_process_s(str(directory / "script.py"))}


def grid_search_warm(setting: Setting) -> Iterator[Sample]:
    namespace: dict[str, Any] = {}
    exec(_grid_search(setting), namespace)
    while True:
        start = time.perf_counter()
        namespace["search"]()
        yield {"s": time.perf_counter() - start}


def _grid_search(setting: Setting) -> str:
    grid = setting.size({"C": [1, 10, 100], "gamma": [0.001, 0.0005, 0.0001]}, {"C": [1], "gamma": [0.001]})
    return REGISTER[setting.peer] + _GRID_SEARCH.format(backend=setting.peer, workers=WORKERS, grid=grid)


_CONTENDERS = (Contender("loky", "loky"), Contender("scaleout", "scaleout"))


def _experiment(
    name: str, function: Callable[[Setting], Iterator[Sample]], measures: str, at_most: float, is_cold: bool = False
) -> Experiment:
    row = Row(name, measures, "s", at_most=at_most, reference=("loky",))
    return Experiment(name, function, (row,), contenders=_CONTENDERS, has_warm_up=not is_cold)


EXPERIMENTS = (
    _experiment("joblib-single", single_calls, "joblib: 5000 no-ops, batch_size=1, pre_dispatch='all'", 0.35),
    _experiment("joblib-auto", batched_calls, "joblib: 100 000 no-ops, batched by joblib", 0.8),
    _experiment(
        "joblib-repeated", call_after_call, "joblib: 100 Parallel calls of 10 calls that import scikit-learn", 0.8
    ),
    _experiment("joblib-array", array_argument, "joblib: one 50 MB array to 20 calls", 0.3),
    _experiment(
        "grid-search-cold", grid_search_cold, "scikit-learn: process that does a GridSearchCV", 0.9, is_cold=True
    ),
    _experiment("grid-search-warm", grid_search_warm, "scikit-learn: GridSearchCV again in the same process", 0.9),
)
