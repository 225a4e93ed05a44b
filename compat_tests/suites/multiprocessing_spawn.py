"""CPython's multiprocessing suite, as ``test.test_multiprocessing_spawn`` runs it. What counts now: Pool.

Every upstream test that touches a Pool is either counted here, excluded with a reason, or uses one of the
standard library's that scaleout re-exports for now: ``WithManagerTestPool`` and ``TestSyncManagerTypes.test_pool``
(a Pool inside a manager's server process), ``WithThreadsTestPool`` (``multiprocessing.dummy``: threads, never ours).
"""

from pathlib import Path

from compat_tests.suite import CHILD, SCRIPT, Counted, Suite

POOL_PROBE = """if __name__ == "__main__":
    from scaleout import multiprocessing
    with multiprocessing.Pool(1) as pool:
        print(f"{type(pool).__module__}.{type(pool).__qualname__} ({multiprocessing.__file__})")
    pool.join()
"""

SUITE = Suite(
    name="multiprocessing",
    upstream="test._test_multiprocessing",
    module="compat_tests.upstream.mp_spawn",
    counted=(
        Counted(
            "WithProcessesTestPoolWorkerLifetime.test_worker_finalization_via_atexit_handler_of_multiprocessing", SCRIPT
        ),
        Counted("WithProcessesTestPool.*"),
        Counted("WithProcessesTestPoolWorkerErrors.*"),
        Counted("WithProcessesTestPoolWorkerLifetime.*"),
        Counted("TestInitializers.test_pool_initializer"),
        Counted("TestStdinBadfiledescriptor.test_pool_in_process", CHILD),
        Counted("MiscTestCase.test_large_pool", SCRIPT, since=(3, 13)),
    ),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get=(
        "it comes with CPython built from source (pyenv install 3.13); Debian's package for its own Python is "
        "libpython3.X-testsuite; docker, uv and most distribution Pythons leave it out"
    ),
    script_probe=POOL_PROBE,
)
