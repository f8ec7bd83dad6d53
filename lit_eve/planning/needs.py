"""What a training needs beside GPUs: disk, memory of the host, and loaders that are fast enough."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eve.planning.gpus import GIB
from lit_eve.planning.memory import Layout, Memory

IMAGE_BYTES = 150_000
"""Of an image in a shard where none can be counted: assumed, a photo of COCO as JPEG."""
GPUS_OF_NODE = 8
"""At most so many GPUs share a host: assumed."""
PROCESS = 3 * GIB
"""A process of a GPU: Python, CUDA, pinned batches; assumed."""
WORKER = 1 * GIB
"""A process that reads and resizes images; assumed."""


@dataclass(frozen=True)
class Needs:
    """What must be there beside GPUs.

    Args:
        images_per_second: that all loaders together must give, so that no GPU waits; None where the model does not fit.
        data: bytes of the shards.
        data_counted: whether they were counted; else assumed (`IMAGE_BYTES`).
        checkpoints: bytes on disk: the newest, the one that is being written, and the exported model.
        host: bytes of the CPUs' memory on each node, of `GPUS_OF_NODE` GPUs at most.
    """

    images_per_second: float | None
    data: int
    data_counted: bool
    checkpoints: int
    host: int


def checkpoint_bytes(memory: Memory, layout: Layout, weights: int) -> int:
    """Two checkpoints, each of weights (bytes of all) and states of the optimizer, and the exported weights."""
    return 3 * weights + 2 * memory.optimizer * layout.shards


def host_bytes(memory: Memory, layout: Layout, gpus: int, workers: int, weights: int) -> int:
    """Memory of a node's CPUs: its processes, and what is copied there for a checkpoint or collected for the export.

    Under FSDP2 every process copies its part of a checkpoint to the host, and writes it while training goes on.
    """
    local = min(gpus, GPUS_OF_NODE)
    copied = (memory.weights + memory.optimizer) * local if layout.gathers else 0
    collected = weights  # by the first process
    return local * (PROCESS + workers * WORKER) + max(copied, collected)
