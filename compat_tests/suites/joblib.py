"""joblib's own tests of ``Parallel``, with our backend enrolled beside its own."""

from pathlib import Path

from compat_tests.suite import Counted, Suite

SUITE = Suite(
    name="joblib",
    upstream="joblib.test.test_parallel",
    module="compat_tests.upstream.joblib_parallel",
    counted=(Counted("test_parallel.*"),),
    exclusions_file=Path(__file__).with_suffix(".exclude.txt"),
    where_to_get="it comes with joblib",
    script_probe=None,
    runner="compat_tests.pytest_runner",
    environ={"COMPAT_TESTS_WATCH": "JOBLIB", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    first_on_path=Path(__file__).parent.parent / "enrolment",
)
