"""Execute an upstream test module with ``multiprocessing`` meaning ``scaleout.multiprocessing``.

Two things are changed, both in memory: what ``import multiprocessing`` finds, and the import lines of the scripts
that upstream keeps in string constants. Swapping the module's global afterwards would not do: classes that are
bound at import (``class _UpperCaser(multiprocessing.Process)``, managers, ``wait``) would stay the stdlib's.

A submodule that scaleout does not have (``multiprocessing.heap``) is the stdlib's. A missing NAME in a module that
scaleout has is an error: nothing falls back silently, because then a test would pass against the stdlib.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compat_tests import evidence

STDLIB = "multiprocessing"
OURS = "scaleout.multiprocessing"

# One import statement on its own line, as it stands in the scripts.
_IMPORT = re.compile(
    r"^(?P<indent>[ \t]*)(?P<verb>from|import)[ \t]+multiprocessing(?P<sub>(?:\.\w+)*)(?P<rest>(?:[ \t][^\n]*)?)$",
    re.MULTILINE,
)
_LEFT_OVER = re.compile(
    r"^[ \t]*(?:from[ \t]+multiprocessing\b|import[ \t]+(?:[^\n#]*[, \t])?multiprocessing\b)[^\n]*$", re.MULTILINE
)


def run_upstream(namespace: dict[str, Any], upstream: str, watches: Sequence[evidence.Watch]) -> None:
    """Execute the installed module ``upstream`` in ``namespace`` (a module's globals), redirected."""
    spec = importlib.util.find_spec(upstream)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{upstream} is not installed", name=upstream)
    code = spec.loader.get_code(upstream)  # type: ignore[attr-defined]
    namespace["__file__"] = spec.origin  # tests look for data files and sources beside it
    namespace["__doc__"] = None
    namespace["__builtins__"] = {**vars(builtins), "__import__": redirected_import}
    exec(rewrite_scripts(code), namespace)
    for watch in watches:
        evidence.install(watch)


def redirected_import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    """``__import__`` for upstream code."""
    if level or not _is_multiprocessing(name):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    ours = our_module(name[len(STDLIB) :])
    if fromlist:
        return builtins.__import__(ours or name, globals, locals, fromlist, 0)
    if ours is None:
        importlib.import_module(name)
    return importlib.import_module(OURS)


def _is_multiprocessing(name: str) -> bool:
    return name == STDLIB or name.startswith(STDLIB + ".")


@functools.cache
def our_module(suffix: str) -> str | None:
    """``scaleout.multiprocessing`` + ``suffix`` if it can be imported; None if it does not exist."""
    name = OURS + suffix
    if not suffix:
        return name
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise
    return name


def rewrite_scripts(code: types.CodeType) -> types.CodeType:
    """The same code with the import lines of the scripts in its string constants redirected, recursively."""
    constants = tuple(
        rewrite_scripts(constant)
        if isinstance(constant, types.CodeType)
        else rewrite_script(constant)
        if isinstance(constant, str)
        else constant
        for constant in code.co_consts
    )
    return code.replace(co_consts=constants)


def rewrite_script(text: str) -> str:
    """``text`` with each line that imports ``multiprocessing`` importing scaleout's where it exists."""
    return _IMPORT.sub(_rewrite_line, text) if STDLIB in text else text


def _rewrite_line(match: re.Match[str]) -> str:
    indent, verb, sub, rest = match.group("indent", "verb", "sub", "rest")
    if our_module(sub) is None:
        return match.group()
    # A sabotaged run imports what does not exist: a script that still succeeds does not depend on scaleout.
    package = "scaleout_sabotaged" if os.environ.get(evidence.SABOTAGE_VARIABLE) else "scaleout"
    if verb == "from":
        return f"{indent}from {package}.multiprocessing{sub}{rest}"
    if rest.lstrip().startswith("as "):
        return f"{indent}import {package}.multiprocessing{sub}{rest}"
    if sub:
        return f"{indent}import {package}.multiprocessing{sub}; from {package} import multiprocessing{rest}"
    if "," in rest.partition("#")[0]:
        return match.group()  # "import multiprocessing, sys": not seen upstream; reported by imports_left()
    return f"{indent}from {package} import multiprocessing{rest}"


def imports_left(code: types.CodeType) -> Iterable[str]:
    """The lines in string constants that still import the stdlib's package after the rewriting."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from imports_left(constant)
        elif isinstance(constant, str):
            yield from (match.group().strip() for match in _LEFT_OVER.finditer(constant))
