"""Driver scripts run as real programs: `run_driver(source)` runs one as `__main__` and gives what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 90


@pytest.fixture
def run_driver(tmp_path: Path) -> Callable[..., str]:
    def run(source: str, *arguments: str) -> str:
        script = tmp_path / "driver.py"
        script.write_text(textwrap.dedent(source))
        paths = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
        done = subprocess.run(
            [sys.executable, *(arguments or [str(script)])],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
