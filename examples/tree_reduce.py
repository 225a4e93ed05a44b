"""Tree reduce: count words in the standard library's sources, and merge the counts two by two.

What one sees: tasks that take references of other tasks, so that no count ever passes through the program itself; then
the same tree built by the tasks themselves, which submit tasks and wait for them. Both give what a plain loop gives. A
worker may be killed at any point: what it was doing is done again.

    python examples/tree_reduce.py
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import scaleout

FILES_PER_LEAF = 8


def count_words(paths: list[Path]) -> Counter[str]:
    return Counter(word for path in paths for word in re.findall(r"\b[a-z]{4,}\b", path.read_text("utf-8", "replace")))


@scaleout.remote
def count(paths: list[Path]) -> Counter[str]:
    return count_words(paths)


@scaleout.remote
def merge(left: Counter[str], right: Counter[str]) -> Counter[str]:
    return left + right


@scaleout.remote
def count_tree(paths: list[Path]) -> Counter[str]:
    """Halves the work until it is small. A task that waits gives its CPU to those that it waits for."""
    if len(paths) <= FILES_PER_LEAF:
        return count_words(paths)
    middle = len(paths) // 2
    halves = [count_tree.remote(paths[:middle]), count_tree.remote(paths[middle:])]
    left, right = scaleout.get(halves)
    return left + right


def reduce_by_references(paths: list[Path]) -> Counter[str]:
    """Submits the whole tree at once; each merge starts when the two that it takes are there."""
    counts = [count.remote(paths[start : start + FILES_PER_LEAF]) for start in range(0, len(paths), FILES_PER_LEAF)]
    while len(counts) > 1:
        counts.append(merge.remote(counts.pop(0), counts.pop(0)))
    return scaleout.get(counts[0])


def reduce_as_ready(paths: list[Path]) -> Counter[str]:
    """Merges whichever two are there first, so that a slow one holds up nobody."""
    counts = [count.remote(paths[start : start + FILES_PER_LEAF]) for start in range(0, len(paths), FILES_PER_LEAF)]
    while len(counts) > 1:
        ready, counts = scaleout.wait(counts, num_returns=2)
        counts.append(merge.remote(*ready))
    return scaleout.get(counts[0])


def main() -> None:
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    expected = count_words(paths)
    for words in (reduce_by_references(paths), reduce_as_ready(paths), scaleout.get(count_tree.remote(paths))):
        assert words == expected
    top = sorted(expected, key=lambda word: (-expected[word], word))[:5]
    print(f"{len(paths)} files, {expected.total()} words: " + ", ".join(f"{word} {expected[word]}" for word in top))


if __name__ == "__main__":
    main()
