"""Weights of a folder, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def iterate_weights(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    path = Path(path)
    if path.suffix == ".ckpt":
        for k, v in torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"].items():
            yield k.removeprefix("model."), v
        return
    if not (path / "config.json").exists():
        path = path / "model"
    for file in sorted(path.glob("*.safetensors")):
        prefix = "aligner." if file.name.startswith("aligner") else ""
        with safe_open(file, "pt") as f:
            for k in f.keys():  # noqa: SIM118
                yield prefix + k, f.get_tensor(k)
