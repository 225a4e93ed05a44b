"""Which GPUs this machine has, as far as can be seen without a CUDA library."""

from __future__ import annotations

import os


def gpu_names() -> list[str]:
    """What stands for each GPU in CUDA_VISIBLE_DEVICES: what stands there already, or the numbers of all there are."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        kept = names[: names.index("-1")] if "-1" in names else names  # CUDA stops there, too
        return [name for name in kept if name and name.lower() != "nodevfiles"]
    try:
        return [str(number) for number in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []
