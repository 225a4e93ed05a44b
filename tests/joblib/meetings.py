"""How tests find out who the workers are: importable in workers, as it stands on the driver's path."""

from __future__ import annotations

import os
from pathlib import Path

from faults import wait_until


def meet(directory: Path, count: int) -> int:
    """The pid, once `count` processes are here."""
    (directory / str(os.getpid())).touch()
    wait_until(lambda: len(os.listdir(directory)) >= count)
    return os.getpid()
