"""The main job: the same analysis once on `multiprocessing.Pool` and once on `scaleout.multiprocessing.Pool`.

The input is real: every .py file of the running Python's standard library. Each is parsed; functions, classes and lines
are counted, the most used names found, and the largest functions ranked. `analyse` gets the pool class and is otherwise
the same code for both; the results must be equal. After that come three things that only scaleout does.

    python examples/quickstart.py              # everything
    python examples/quickstart.py --limit 50   # the first 50 files
"""

from __future__ import annotations

import argparse
import ast
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import scaleout.multiprocessing

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


# --- the same on any pool


def analyse(pool_class: Callable[..., multiprocessing.pool.Pool], paths: list[str], label: str) -> tuple[Report, float]:
    """The report on `paths`, made by a pool, and the seconds it took from making the pool to having ended it."""
    started = time.perf_counter()
    all_facts = []
    with pool_class() as pool:
        for facts in pool.imap_unordered(facts_of, paths, FILES_PER_CHUNK):
            all_facts.append(facts)
            show_progress(label, len(all_facts), len(paths))
        pool.close()
        pool.join()
    return report_on(all_facts), time.perf_counter() - started


def show_progress(label: str, done: int, total: int) -> None:
    """One line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty() and (done % 10 == 0 or done == total):
        end = "\n" if done == total else ""
        print(f"\r{label:10} {done:5}/{total} files", end=end, file=sys.stderr, flush=True)


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
    parser = argparse.ArgumentParser(description="The same analysis on multiprocessing.Pool and on scaleout's.")
    parser.add_argument("--limit", type=natural, metavar="N", help="only the first N files (default: all)")
    paths = standard_library(parser.parse_args().limit)
    for path in paths:  # now the files are in the page cache for both
        Path(path).read_bytes()

    # The standard library's first: it forks this process, which must not have threads then.
    stdlib_report, stdlib_s = analyse(multiprocessing.Pool, paths, "stdlib")
    scaleout_report, scaleout_s = analyse(scaleout.multiprocessing.Pool, paths, "scaleout")

    print_report(scaleout_report, sysconfig.get_path("stdlib"))
    is_equal = stdlib_report == scaleout_report
    print(f"\nthe two reports are {'equal' if is_equal else 'DIFFERENT'}")
    print(f"{'multiprocessing.Pool':32}{stdlib_s:7.3f} s\n{'scaleout.multiprocessing.Pool':32}{scaleout_s:7.3f} s")

    print("\nwhat scaleout adds:")
    is_good = is_equal
    for demonstrate in (a_lambda_crosses, a_killed_worker_is_survived, a_large_array_is_edited_in_place):
        works = demonstrate()
        is_good = is_good and works
        print(f"  {demonstrate.__name__.replace('_', ' ')}: {'yes' if works else 'NO'}")
    return 0 if is_good else 1


if __name__ == "__main__":  # for multiprocessing.Pool; scaleout's does not need it
    sys.exit(main())
