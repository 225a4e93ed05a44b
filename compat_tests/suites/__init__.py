"""One module per upstream suite; each defines ``SUITE``. To add a suite: write its module and name it here."""

MODULES = (
    "compat_tests.suites.multiprocessing_spawn",
    "compat_tests.suites.multiprocessing_main",
    "compat_tests.suites.futures",
    "compat_tests.suites.futures_class",
    "compat_tests.suites.joblib",
    "compat_tests.suites.scikit_learn",
)
