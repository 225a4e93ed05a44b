"""CPython's tests of executors, for ``ScaleoutExecutor`` in the place of a ProcessPoolExecutor with spawned workers."""

from pathlib import Path

from compat_tests.suite import SCRIPT, Counted, Suite
from compat_tests.suites.multiprocessing_spawn import SUITE as _SPAWN

EXECUTOR_PROBE = """if __name__ == "__main__":
    from scaleout import futures
    with futures.ScaleoutExecutor(1) as executor:
        print(f"{type(executor).__module__}.{type(executor).__qualname__} ({futures.__file__})")
"""

SUITE = Suite(
    name="futures",
    upstream="test.test_concurrent_futures.test_wait",
    module="compat_tests.upstream.cf_executor",
    counted=(
        Counted("*Test.test_interpreter_shutdown", SCRIPT),
        Counted("*Test.test_submit_after_interpreter_shutdown", SCRIPT),
        Counted("ScaleoutWaitTest.*"),
        Counted("ScaleoutAsCompletedTest.*"),
        Counted("ScaleoutInitializerTest.*"),
        Counted("ScaleoutFailingInitializerTest.*"),
        Counted("ScaleoutProcessPoolExecutorTest.*"),
        Counted("ScaleoutProcessPoolShutdownTest.*"),
        Counted("ScaleoutExecutorDeadlockTest.*"),
    ),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get=f"{_SPAWN.where_to_get}; 3.11 and 3.12 as released lack this part (gh-115421)",
    script_probe=EXECUTOR_PROBE,
)
