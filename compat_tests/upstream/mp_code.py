"""``test._test_multiprocessing`` of the running Python, bound to ``scaleout.multiprocessing``.

The names in this module are upstream's. The classes that are run stand in ``mp_spawn``, because upstream's
``install_tests_in_module_dict`` walks this module's globals while it fills the other's.
"""

from compat_tests.evidence import POOL
from compat_tests.redirect import run_upstream

run_upstream(globals(), "test._test_multiprocessing", watches=(POOL,))
