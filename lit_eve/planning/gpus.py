"""GPUs by name: how much memory a program finds, and how fast they multiply matrices. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lit_eve.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """What a plan must know about a GPU.

    Args:
        name: as NVIDIA calls it.
        memory_gib: GiB that a program finds, all of it together.
        teraflops: dense bf16 matrix products with float32 sums, 10^12 operations per second, from the data sheet.
        device: part of the name that CUDA gives it; where several fit, the longest counts.
    """

    name: str
    memory_gib: float
    teraflops: float
    device: str


GPUS: dict[str, Gpu] = {
    "a100-40g": Gpu("A100 40 GB", 39.4, 312, "A100"),
    "a100-80g": Gpu("A100 80 GB", 79.1, 312, "A100"),
    "h100": Gpu("H100 SXM", 79.1, 989, "H100"),
    "h100-pcie": Gpu("H100 PCIe", 79.1, 756, "H100 PCIe"),
    "h100-nvl": Gpu("H100 NVL", 93.1, 835, "H100 NVL"),
    "h200": Gpu("H200", 139.8, 989, "H200"),
    "b200": Gpu("B200", 178.3, 2250, "B200"),
    "l40s": Gpu("L40S", 44.4, 362, "L40S"),
    "a6000": Gpu("RTX A6000", 47.4, 155, "RTX A6000"),
    "a10": Gpu("A10", 22.0, 125, "A10"),
    "l4": Gpu("L4", 22.0, 121, "L4"),
    "rtx4090": Gpu("GeForce RTX 4090", 23.5, 165, "RTX 4090"),
    "rtx3090": Gpu("GeForce RTX 3090", 23.6, 71, "RTX 3090"),
}


def get_gpu(name: str) -> Gpu:
    """A GPU by its short name.

    Raises:
        ConfigError: it is not listed; the message lists those that are.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"unknown GPU {name!r}; known: {', '.join(GPUS)}")
    return GPUS[name.lower()]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations per second of a GPU by the name that CUDA gives it ("NVIDIA H100 80GB HBM3"); None if unknown."""
    fitting = [gpu for gpu in GPUS.values() if re.search(rf"(?<!\w){gpu.device}(?!\w)", device_name)]
    return max(fitting, key=lambda gpu: len(gpu.device)).teraflops * 1e12 if fitting else None
