"""The corner cases of `__main__`, with and without the exact binding that `Namespace.activate` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("mode", ["strict", "newest"])
def test_corner_cases(run_driver: Callable[..., str], mode: str) -> None:
    run_driver("", str(Path(__file__).with_name("corner_cases.py")), mode)
