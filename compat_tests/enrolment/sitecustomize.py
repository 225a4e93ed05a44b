"""First on the path of every process of a run: as soon as joblib is imported, "scaleout" is one of its backends.

The workers of other backends and fresh scripts, which know nothing of scaleout, look the backend up by its name.
COMPAT_TESTS_WATCH names the `Watch` of `compat_tests.evidence` by which the use of it is noted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

AWAITED = "joblib.parallel"


class AfterJoblib(importlib.abc.MetaPathFinder):
    """Imports what registers the backend right after the module that keeps the register."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            import scaleout.joblib_backend  # noqa: F401
            from compat_tests import evidence

            evidence.install(getattr(evidence, os.environ["COMPAT_TESTS_WATCH"]))

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, AfterJoblib())
