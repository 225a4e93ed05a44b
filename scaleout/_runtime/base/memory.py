"""What the system says about memory: how much is left, and how often it killed for want of it."""

from __future__ import annotations

_COUNTERS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")
_CGROUP = "/sys/fs/cgroup"


def oom_kills() -> int:
    """Processes killed so far for want of memory, in this control group or on this machine; 0 where nobody counts."""
    return sum(_fields(path).get("oom_kill", 0) for path in _COUNTERS)


def is_short(share: float) -> bool:
    """Whether less than `share` of the memory of the machine, or of its control group, is left; False if unknown."""
    machine = _fields("/proc/meminfo")
    total, available = machine.get("MemTotal:", 0), machine.get("MemAvailable:", 0)
    if total and available < total * share:
        return True
    limit, used = _number(f"{_CGROUP}/memory.max"), _number(f"{_CGROUP}/memory.current")
    if not limit or not used:
        return False
    cache = _fields(f"{_CGROUP}/memory.stat").get("inactive_file", 0)  # given up before anybody is killed
    return limit - (used - cache) < limit * share


def resident_bytes(pid: int) -> int:
    """The memory that a process occupies, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0


def children(pid: int) -> list[int]:
    """The pids of a process's children, as long as it has one thread."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except (OSError, ValueError):
        return []


def _fields(path: str) -> dict[str, int]:
    found = {}
    try:
        with open(path) as file:
            for line in file:
                name, number, *_ = line.split()
                found[name] = int(number)
    except (OSError, ValueError):
        pass
    return found


def _number(path: str) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # "max": no limit
        return 0
