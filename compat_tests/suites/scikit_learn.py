"""Those of scikit-learn's own tests that have work for joblib, with our backend as the one that does it."""

from pathlib import Path

from compat_tests.suite import Counted, Suite

SUITE = Suite(
    name="scikit-learn",
    upstream="sklearn.utils.tests.test_parallel",
    module="compat_tests.upstream.scikit_learn",
    counted=(Counted("*"),),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get="pip install scikit-learn",
    script_probe=None,
    runner="compat_tests.pytest_runner",
    environ={"COMPAT_TESTS_WATCH": "JOBLIB_WORK", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    first_on_path=Path(__file__).parent.parent / "enrolment",
    at_least=750,
)
