"""What the system says about memory: how often it killed for want of it."""

from __future__ import annotations

_COUNTERS = ("/sys/fs/cgroup/memory.events", "/proc/vmstat")


def oom_kills() -> int:
    """Processes killed so far for want of memory, in this cgroup or on this machine; 0 where nobody counts."""
    total = 0
    for path in _COUNTERS:
        try:
            with open(path) as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        total += int(line.split()[1])
        except (OSError, ValueError):
            continue
    return total
