"""GPUs by name: how much memory a program finds, and how fast they multiply matrices. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

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


_ALSO = {"4090": "rtx4090", "3090": "rtx3090", "rtxa6000": "a6000", "h100sxm": "h100", "h100sxm5": "h100", "h10080g": "h100"}
_SEVERAL = {"a100": ("a100-40g", "a100-80g")}
_KEYS = {key.replace("-", ""): key for key in GPUS} | _ALSO


def get_gpu(name: str) -> Gpu:
    """A GPU by a usual name: ``rtx4090``, ``4090``, ``"RTX 4090"``, ``a100-40gb``.

    Raises:
        ConfigError: it is not listed, or has several sizes; the message names what may be meant, or all that are known.
    """
    plain = re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
    plain = re.sub(r"(\d+)gb$", r"\1g", plain)
    if plain in _SEVERAL:
        raise ConfigError(f"GPU {name!r}: there is {' and '.join(_SEVERAL[plain])}; say which")
    if plain not in _KEYS:
        near = dict.fromkeys(_KEYS[key] for key in get_close_matches(plain, _KEYS, cutoff=0.7))
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"unknown GPU {name!r}; {meant}known: {', '.join(GPUS)}")
    return GPUS[_KEYS[plain]]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations per second of a GPU by the name that CUDA gives it ("NVIDIA H100 80GB HBM3"); None if unknown."""
    fitting = [gpu for gpu in GPUS.values() if re.search(rf"(?<!\w){gpu.device}(?!\w)", device_name)]
    return max(fitting, key=lambda gpu: len(gpu.device)).teraflops * 1e12 if fitting else None
