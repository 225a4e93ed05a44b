"""``test.test_multiprocessing_main_handling``: its scripts import ``scaleout.multiprocessing`` instead."""

from compat_tests.evidence import POOL
from compat_tests.redirect import run_upstream

run_upstream(globals(), "test.test_multiprocessing_main_handling", watches=(POOL,))
