"""``python -m compat_tests surface``: names that upstream's suites take from ``multiprocessing`` and scaleout lacks.

A static look at the installed sources: no test is run. The suite cannot be loaded before the names exist that are
used at import time (decorators, mixins, base classes).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compat_tests.redirect import OURS, STDLIB, our_module
from compat_tests.suite import load_suite
from compat_tests.suites import MODULES


def used_names(tree: ast.AST) -> set[str]:
    """Dotted names below ``multiprocessing`` that a module reads or imports, e.g. ``pool.RUN``."""
    return {name for node in ast.walk(tree) for name in _names_in(node)}


def _names_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        prefix = STDLIB + "."
        yield from (alias.name.removeprefix(prefix) for alias in node.names if alias.name.startswith(prefix))
    elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == STDLIB:
        package = node.module[len(STDLIB) + 1 :]
        yield from (f"{package}.{alias.name}".lstrip(".") for alias in node.names)
    elif isinstance(node, ast.Attribute):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == STDLIB:
            yield ".".join(reversed(names))


def resolve(package: str, dotted: str) -> Any:
    """The object ``package.dotted``; raises AttributeError or ImportError where there is none."""
    found: Any = importlib.import_module(package)
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def missing_names(source: str) -> list[str]:
    """The names used in ``source`` that the stdlib's package has and ours does not."""
    missing = []
    for name in sorted(used_names(ast.parse(source))):
        our_module("." + name.partition(".")[0])  # import the submodule if there is one, as upstream does
        if _has(STDLIB, name) and not _has(OURS, name):
            missing.append(name)
    return missing


def _has(package: str, name: str) -> bool:
    try:
        resolve(package, name)
    except (AttributeError, ImportError):
        return False
    return True


def main() -> int:
    """Print the missing names of each suite; 1 if there are any."""
    found = False
    for suite in map(load_suite, MODULES):
        spec = importlib.util.find_spec(suite.upstream)
        if spec is None or spec.origin is None:
            continue
        for name in missing_names(Path(spec.origin).read_text(encoding="utf-8")):
            print(f"{suite.name}: {OURS}.{name}")
            found = True
    return int(found)
