"""The daemons of a cluster that run on this machine, by the records that they leave; what they write to their logs."""

from __future__ import annotations

import json
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def records(local: Path) -> list[dict[str, Any]]:
    """Those of a cluster's local directory. What dead ones have left behind is removed."""
    found = []
    for path in sorted(local.glob("node-*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if process_start(record["pid"]) == record["started"]:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
            path.with_suffix(".sock").unlink(missing_ok=True)
    return found


def process_start(pid: int) -> float:
    """When it was started: with the pid, that names a process. 0 if there is none, or it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return 0.0


def report(line: str) -> None:
    """Into the log of this process."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)
