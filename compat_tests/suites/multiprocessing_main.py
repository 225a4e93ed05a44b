"""CPython's tests of ``__main__`` handling: a Pool in scripts, packages, zip files and compiled files."""

from pathlib import Path

from compat_tests.suite import SCRIPT, Counted, Suite
from compat_tests.suites.multiprocessing_spawn import POOL_PROBE
from compat_tests.suites.multiprocessing_spawn import SUITE as _SPAWN

SUITE = Suite(
    name="multiprocessing-main",
    upstream="test.test_multiprocessing_main_handling",
    module="compat_tests.upstream.mp_main_handling",
    counted=(Counted("SpawnCmdLineTest.*", SCRIPT),),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get=_SPAWN.where_to_get,
    script_probe=POOL_PROBE,
)
