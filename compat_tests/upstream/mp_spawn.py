"""The test classes of ``test._test_multiprocessing`` as ``test.test_multiprocessing_spawn`` installs them."""

from compat_tests.upstream.mp_code import install_tests_in_module_dict  # type: ignore[attr-defined]

install_tests_in_module_dict(globals(), "spawn")
