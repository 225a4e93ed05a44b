"""The test classes of ``test.test_concurrent_futures`` for executors, made for ``ScaleoutExecutor`` by upstream's hook.

Workers unpickle test functions by the name of this module.
"""

import unittest

from test.test_concurrent_futures import util  # type: ignore[import-not-found]

from compat_tests import evidence
from compat_tests.upstream.cf_code import run_upstream
from scaleout.futures import ScaleoutExecutor

_MIXINS = (
    "WaitTests",
    "AsCompletedTests",
    "InitializerMixin",
    "FailingInitializerMixin",
    "ProcessPoolExecutorTest",
    "ProcessPoolShutdownTest",
    "ExecutorDeadlockTest",
)


class ScaleoutMixin(util.ExecutorMixin):  # type: ignore[misc]
    executor_type = ScaleoutExecutor
    ctx = "spawn"


def _install() -> None:
    names = globals()
    for module in ("wait", "as_completed", "init", "process_pool", "shutdown", "deadlock"):
        run_upstream(names, f"test_{module}")
    for name, value in list(names.items()):  # those of the standard library's executors
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            del names[name]
    for name in _MIXINS:
        util.create_executor_tests(names, names[name], executor_mixins=(ScaleoutMixin,))
    evidence.install(evidence.EXECUTOR)


_install()
