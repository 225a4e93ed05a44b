"""scikit-learn on the backend gives what it gives on joblib's own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from programs import running

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")

BACKENDS = ["sequential", "loky", "scaleout"]
ENDS_IN_S = 90.0
"""Each backend's workers import scikit-learn: seconds, also on an idle machine."""

# In a program of its own: scikit-learn's threads and loky's workers stay until it ends.
SCRIPT = """
    import json, os, sys
    from joblib import Parallel, delayed, parallel_config
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    import scaleout.joblib_backend

    measures, kinds = load_iris(return_X_y=True)

    def found_by(backend):
        with parallel_config(backend=backend, n_jobs=2):
            search = GridSearchCV(SVC(), {"C": [0.1, 1.0, 10.0], "gamma": [0.01, 0.1]}, cv=3).fit(measures, kinds)
            forest = RandomForestClassifier(n_estimators=20, random_state=0).fit(measures, kinds)
            model = make_pipeline(StandardScaler(), LogisticRegression())
            scores = cross_val_score(model, measures, kinds, cv=5)
            nested = cross_val_score(GridSearchCV(SVC(), {"C": [0.1, 10.0]}, cv=2), measures, kinds, cv=3)
        return {
            "GridSearchCV": [search.best_params_, search.cv_results_["mean_test_score"].tolist()],
            "RandomForestClassifier": [forest.predict_proba(measures).tolist(), forest.feature_importances_.tolist()],
            "cross_val_score": scores.tolist(),
            "a search inside": nested.tolist(),
        }

    print(json.dumps({backend: found_by(backend) for backend in sys.argv[1:]}))
"""


def test_the_same_results(tmp_path: Path) -> None:
    with running(SCRIPT, tmp_path, *BACKENDS) as program:
        assert program.finish(ENDS_IN_S) == 0, program.stdout + program.stderr
        assert program.stderr == ""
        program.check_nothing_left()
        found = json.loads(program.stdout)
    assert found["scaleout"]["GridSearchCV"][1]
    for name, ours in found["scaleout"].items():
        assert ours == found["loky"][name] == found["sequential"][name], name


WARNS = """
    import os, sys, warnings
    import numpy
    from joblib import parallel_config
    from sklearn.exceptions import FitFailedWarning
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC
    import scaleout.joblib_backend

    measures, kinds = numpy.arange(40.0).reshape(20, 2), numpy.arange(20) % 2
    for backend in sys.argv[1:]:
        with parallel_config(backend=backend, n_jobs=2), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            GridSearchCV(SVC(), {"C": [1.0, -1.0]}, cv=2).fit(measures, kinds)
            failed = [warning for warning in caught if warning.category is FitFailedWarning]
            print(backend, len(failed), "2 fits failed out of a total of 4" in str(failed[0].message))
            try:
                GridSearchCV(SVC(), {"C": [1.0, -1.0]}, cv=2, error_score="raise").fit(measures, kinds)
            except ValueError as error:
                print(backend, type(error).__name__, str(error).splitlines()[0])
"""


def test_the_same_failures(tmp_path: Path) -> None:
    with running(WARNS, tmp_path, "loky", "scaleout") as program:
        assert program.finish(ENDS_IN_S) == 0, program.stdout + program.stderr
        assert program.stderr == ""
        program.check_nothing_left()
        lines = program.stdout.splitlines()
    theirs = [line.removeprefix("loky ") for line in lines if line.startswith("loky ")]
    ours = [line.removeprefix("scaleout ") for line in lines if line.startswith("scaleout ")]
    assert ours == theirs and len(ours) == 2
    assert ours[0] == "1 True"
