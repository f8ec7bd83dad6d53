"""Builds a model in two processes, sharded and whole, and prints by how many bytes the memory of each grew at most meanwhile.

Pages of mapped files are not its own: all processes of a machine share them, and the system takes them back when it likes.
"""

from __future__ import annotations

import sys
import threading
import time

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lit_eve.testing.forks import in_processes
from lit_eve.training import FSDP2Strategy
from lit_eve.training.blueprint import Blueprint


def own_memory() -> int:
    """Bytes of this process that no other shares."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Peak(threading.Thread):
    """Looks every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.value, self.going = 0, True

    def run(self) -> None:
        while self.going:
            self.value = max(self.value, own_memory())
            time.sleep(0.002)


def measure(decoder: str, how: str) -> None:
    """Build a model around a decoder in one of the processes, ``sharded`` or ``whole``."""
    dist.init_process_group("gloo")
    strategy = FSDP2Strategy()
    strategy._device_mesh = init_device_mesh(
        "cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel")
    )
    blueprint = Blueprint(decoder=decoder, patch_embedding={"name": "eve_v1", "width": 64})
    blueprint.check()
    before, peak = own_memory(), Peak()
    peak.start()
    model = blueprint.build(strategy.shard if how == "sharded" else None)
    peak.going = False
    peak.join()
    print(f"{how} grew by {peak.value - before} of {sum(p.numel() for p in model.parameters()) * 4}", flush=True)


if __name__ == "__main__":
    for way in ("sharded", "whole"):
        in_processes(2, measure, sys.argv[1], way)
