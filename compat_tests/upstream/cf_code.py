"""Executes modules of ``test.test_concurrent_futures``, the import lines of their scripts redirected to scaleout."""

from __future__ import annotations

import importlib.util
import os
import re
import types
from typing import Any

from compat_tests import evidence

PACKAGE = "test.test_concurrent_futures"

# One line of the scripts, before upstream formats the executor's name into it.
_SCRIPT_IMPORT = re.compile(r"^([ \t]*)from concurrent\.futures import \{executor_type\}", re.MULTILINE)


def run_upstream(namespace: dict[str, Any], module: str) -> None:
    """Execute ``module`` of upstream's package in ``namespace`` (a module's globals)."""
    name = f"{PACKAGE}.{module}"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name} is not installed", name=name)
    namespace["__package__"] = PACKAGE  # for its relative imports
    exec(_rewritten(spec.loader.get_code(name)), namespace)  # type: ignore[attr-defined]


def _rewritten(code: types.CodeType) -> types.CodeType:
    # A sabotaged run imports what does not exist: a script that still succeeds does not depend on scaleout.
    package = "scaleout_sabotaged" if os.environ.get(evidence.SABOTAGE_VARIABLE) else "scaleout"
    constants = tuple(
        _rewritten(constant)
        if isinstance(constant, types.CodeType)
        else _SCRIPT_IMPORT.sub(rf"\1from {package}.futures import {{executor_type}}", constant)
        if isinstance(constant, str)
        else constant
        for constant in code.co_consts
    )
    return code.replace(co_consts=constants)
