"""CPython's tests of the class Future, for the futures that ``ScaleoutExecutor`` makes."""

from pathlib import Path

from compat_tests.suite import Counted, Suite
from compat_tests.suites.futures import SUITE as _EXECUTOR

SUITE = Suite(
    name="futures-class",
    upstream="test.test_concurrent_futures.test_future",
    module="compat_tests.upstream.cf_future",
    counted=(Counted("FutureTests.*"),),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get=_EXECUTOR.where_to_get,
    script_probe=None,
    uses_workers=False,
)
