"""What this machine has for tasks and actors."""

from __future__ import annotations

from scaleout._runtime.base.devices import gpu_names
from scaleout._runtime.base.settings import usable_memory_bytes
from scaleout._runtime.core.resources import MILLI

TYPE_CHECKING = False
if TYPE_CHECKING:
    from scaleout._runtime.base.settings import Settings

GPU = "GPU"


def resources_here(settings: Settings, amounts: dict[str, float]) -> tuple[dict[str, int], list[str]]:
    """(what this machine has, or is said to have, in milli-units; what stands for each GPU in CUDA_VISIBLE_DEVICES)"""
    names = gpu_names()
    units = {"CPU": settings.num_cpus, GPU: len(names), "memory": usable_memory_bytes(), **amounts}
    names += [str(number) for number in range(len(names), int(units[GPU]))]
    return {name: round(amount * MILLI) for name, amount in units.items()}, names
