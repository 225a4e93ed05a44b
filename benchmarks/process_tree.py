"""What /proc says of a process and all its descendants: memory, processor time, wake-ups. Linux only.

Read from outside, so that looking changes nothing in the processes looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Activity:
    """Totals since the start of the processes, over all their threads."""

    cpu_s: float
    context_switches: int


def descendants(root: int) -> list[int]:
    """`root` and every process below it by parent links: workers, zygote, resource tracker."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            stat = _read(entry / "stat")
            if stat:
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def pss_mb(root: int) -> float:
    """Proportional set size of the whole tree: shared pages count once, split over their users."""
    return sum(map(pss_of, descendants(root)))


def pss_of(pid: int) -> float:
    """The same of one process, in MB."""
    for line in _read(_PROC / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def peak_and_current_rss_mb(pid: int | str = "self") -> tuple[float, float]:
    fields = dict(line.split(":", 1) for line in _read(_PROC / str(pid) / "status").splitlines() if ":" in line)
    peak_kb, current_kb = (int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS"))
    return peak_kb * 1024 / 1e6, current_kb * 1024 / 1e6


def activity(root: int) -> Activity:
    cpu_ns = switches = 0
    for pid in descendants(root):
        for task in (_PROC / str(pid) / "task").glob("*"):
            cpu_ns += int((_read(task / "schedstat") or "0").split()[0])
            for line in _read(task / "status").splitlines():
                if "ctxt_switches" in line:  # voluntary and nonvoluntary
                    switches += int(line.split()[1])
    return Activity(cpu_ns / 1e9, switches)


def _read(path: Path) -> str:
    """The file's text; empty if the process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""
