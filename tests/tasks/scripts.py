"""Drivers as processes of their own, that import what these tests test."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import programs

import scaleout

PATHS = [os.path.dirname(programs.__file__), os.path.dirname(os.path.dirname(scaleout.__file__))]


def running_here(script: str, directory: Path, **environ: str) -> AbstractContextManager[programs.Program]:
    return programs.running(script, directory, PYTHONPATH=os.pathsep.join(PATHS), **environ)
