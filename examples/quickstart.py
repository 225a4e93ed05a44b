"""The main job: the same work once on the standard library and loky, once with an import or a name changed.

The input is real: every .py file of the running Python's standard library. Each is parsed; functions, classes and lines
are counted, the most used names found, and the largest functions ranked, by a Pool and by an executor. Where
scikit-learn is installed, a grid search on its handwritten digits follows. Each function gets the class or the name of
the backend and is otherwise the same code for both; the results must be equal. After that come three things that only
scaleout does.

    python examples/quickstart.py              # everything
    python examples/quickstart.py --limit 50   # the first 50 files, and fewer digits
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import multiprocessing
import os
import signal
import sys
import sysconfig
import tempfile
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import scaleout.multiprocessing
from scaleout.futures import ScaleoutExecutor

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
FILES_PER_CHUNK = 4
RANKS = 10


# --- the job: plain code that knows nothing of pools


@dataclass(frozen=True)
class Facts:
    """What was found in one file. A class of `__main__`, on purpose: instances of it cross between processes."""

    path: str
    lines: int
    functions: tuple[tuple[int, str], ...]  # (lines, name)
    classes: int
    names: Counter[str]
    problem: str = ""


def facts_of(path: str) -> Facts:
    """Parses one file. A file that cannot be decoded or parsed is a result too: its `problem` says why."""
    try:
        with tokenize.open(path) as file:  # decodes as the file itself declares
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source, path)
    except (SyntaxError, ValueError, RecursionError) as error:
        return Facts(path, 0, (), 0, Counter(), f"{type(error).__name__}: {error}")
    functions, classes, names = [], 0, Counter[str]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, node.name))
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Name):
            names[node.id] += 1
    return Facts(path, source.count("\n"), tuple(functions), classes, names)


@dataclass(frozen=True)
class Report:
    """What was found in all files. Two reports are equal if every count, name and rank of every file is."""

    facts: tuple[Facts, ...]  # by path
    lines: int
    functions: int
    classes: int
    problems: tuple[tuple[str, str], ...]
    top_names: tuple[tuple[str, int], ...]
    largest: tuple[tuple[int, str, str], ...]  # (lines, function, path)


def report_on(all_facts: list[Facts]) -> Report:
    """The sums and ranks; nothing in it depends on the order in which the files came."""
    names: Counter[str] = Counter()
    functions = []
    for facts in all_facts:
        names.update(facts.names)
        functions += [(lines, name, facts.path) for lines, name in facts.functions]
    return Report(
        facts=tuple(sorted(all_facts, key=lambda facts: facts.path)),
        lines=sum(facts.lines for facts in all_facts),
        functions=len(functions),
        classes=sum(facts.classes for facts in all_facts),
        problems=tuple(sorted((facts.path, facts.problem) for facts in all_facts if facts.problem)),
        top_names=tuple(sorted(names.items(), key=lambda item: (-item[1], item[0]))[:RANKS]),
        largest=tuple(sorted(functions, key=lambda item: (-item[0], item[1:]))[:RANKS]),
    )


# --- the same on any pool, any executor, any backend of joblib's


def analyse(pool_class: Callable[..., multiprocessing.pool.Pool], paths: list[str], label: str) -> tuple[Report, float]:
    """The report on `paths`, made by a pool, and the seconds it took from making the pool to having ended it."""
    started = time.perf_counter()
    with pool_class() as pool:
        all_facts = collect(pool.imap_unordered(facts_of, paths, FILES_PER_CHUNK), len(paths), label)
        pool.close()
        pool.join()
    return report_on(all_facts), time.perf_counter() - started


def analyse_with(executor_class: Callable[[], Executor], paths: list[str], label: str) -> tuple[Report, float]:
    """As `analyse`, by an executor."""
    started = time.perf_counter()
    with executor_class() as executor:
        all_facts = collect(executor.map(facts_of, paths, chunksize=FILES_PER_CHUNK), len(paths), label)
    return report_on(all_facts), time.perf_counter() - started


def search_grid(backend: str, digits_used: int) -> tuple[list[tuple[dict[str, float], float]], float]:
    """Every point of the grid with its mean score, and the seconds it took, the start of the workers included."""
    import joblib
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    import scaleout.joblib_backend  # noqa: F401 - makes the name known to joblib

    images, digits = load_digits(return_X_y=True)
    grid = {"C": [1.0, 10.0], "gamma": [0.0005, 0.001, 0.002]}
    started = time.perf_counter()
    with joblib.parallel_config(backend=backend, n_jobs=-1):
        search = GridSearchCV(SVC(), grid, cv=5).fit(images[:digits_used], digits[:digits_used])
    seconds = time.perf_counter() - started
    results = search.cv_results_
    return list(zip(results["params"], map(float, results["mean_test_score"]), strict=True)), seconds


def collect(results: Iterable[Facts], total: int, label: str) -> list[Facts]:
    all_facts = []
    for facts in results:
        all_facts.append(facts)
        show_progress(label, len(all_facts), total)
    return all_facts


def show_progress(label: str, done: int, total: int) -> None:
    """One line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty() and (done % 10 == 0 or done == total):
        end = "\n" if done == total else ""
        print(f"\r{label:20} {done:5}/{total} files", end=end, file=sys.stderr, flush=True)


def standard_library(limit: int | None) -> list[str]:
    """The paths of the standard library's sources, sorted."""
    root = sysconfig.get_path("stdlib")
    paths = sorted(str(path) for path in walk(Path(root)))
    return paths[:limit]


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS:
                yield from walk(path)
        elif path.suffix == ".py":
            yield path


def print_report(report: Report, root: str) -> None:
    print(
        f"{len(report.facts)} files, {report.lines:,} lines, {report.functions:,} functions, {report.classes} classes"
    )
    for path, problem in report.problems:
        print(f"  not parsed: {os.path.relpath(path, root)}: {problem}")
    print("most used names:  ", ", ".join(f"{name} {count:,}" for name, count in report.top_names))
    print("largest functions:")
    for lines, name, path in report.largest:
        print(f"  {lines:5} lines  {name}  ({os.path.relpath(path, root)})")


# --- what scaleout adds


def a_lambda_crosses() -> bool:
    offset = 10
    with scaleout.multiprocessing.Pool(2) as pool:
        return pool.map(lambda number: number * number + offset, range(5)) == [10, 11, 14, 19, 26]


def die_at_first(marker: str) -> str:
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def a_killed_worker_is_survived() -> bool:
    with tempfile.TemporaryDirectory() as folder, scaleout.multiprocessing.Pool(2) as pool:
        marker = os.path.join(folder, "died")
        return pool.apply(die_at_first, (marker,)) == "survived" and os.path.exists(marker)


def add_one(array):
    array += 1  # in place
    return array


def a_large_array_is_edited_in_place() -> bool:
    import numpy  # not needed by anything above

    zeros = numpy.zeros(5_000_000)  # 40 MB: crosses through shared memory, copied only where it is written
    with scaleout.multiprocessing.Pool(2) as pool:
        ones = pool.apply(add_one, (zeros,))
    return bool((ones == 1).all() and (zeros == 0).all())


# --- the program


def natural(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="The same work on the standard library, and on scaleout.")
    parser.add_argument("--limit", type=natural, metavar="N", help="only the first N files (default: all)")
    limit = parser.parse_args().limit
    paths = standard_library(limit)
    for path in paths:  # now the files are in the page cache for both
        Path(path).read_bytes()

    # The standard library's first: they fork this process, which must not have threads then.
    report, pool_s = analyse(multiprocessing.Pool, paths, "Pool")
    executor_report, executor_s = analyse_with(ProcessPoolExecutor, paths, "executor")
    our_report, our_pool_s = analyse(scaleout.multiprocessing.Pool, paths, "Pool, scaleout")
    our_executor_report, our_executor_s = analyse_with(ScaleoutExecutor, paths, "executor, scaleout")

    print_report(our_report, sysconfig.get_path("stdlib"))
    is_equal = report == executor_report == our_report == our_executor_report
    rows = [
        ("multiprocessing.Pool", pool_s, "scaleout.multiprocessing.Pool", our_pool_s),
        ("ProcessPoolExecutor", executor_s, "ScaleoutExecutor", our_executor_s),
    ]
    if importlib.util.find_spec("sklearn") is not None:
        digits_used = 1797 if limit is None else 300
        scores, loky_s = search_grid("loky", digits_used)
        our_scores, our_search_s = search_grid("scaleout", digits_used)
        best, score = max(our_scores, key=lambda point: point[1])
        print(f"best of the grid:   {best}, right about {score:.1%} of the digits")
        is_equal = is_equal and scores == our_scores
        rows.append(("GridSearchCV, joblib's loky", loky_s, 'GridSearchCV, backend="scaleout"', our_search_s))
    else:
        print("GridSearchCV: not run, scikit-learn is not installed")

    print(f"\nthe results are {'equal' if is_equal else 'DIFFERENT'}")
    for name, seconds, our_name, our_seconds in rows:
        print(f"{name:28}{seconds:7.3f} s    {our_name:34}{our_seconds:7.3f} s")

    print("\nwhat scaleout adds:")
    is_good = is_equal
    for demonstrate in (a_lambda_crosses, a_killed_worker_is_survived, a_large_array_is_edited_in_place):
        works = demonstrate()
        is_good = is_good and works
        print(f"  {demonstrate.__name__.replace('_', ' ')}: {'yes' if works else 'NO'}")
    return 0 if is_good else 1


if __name__ == "__main__":  # for the standard library's; scaleout does not need it
    sys.exit(main())
