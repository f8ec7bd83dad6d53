"""A part of a training mixture: where it lies and how often it is seen."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eve.files import local_path


@dataclass
class Source:
    """One part of a training mixture.

    Args:
        path: a folder of shards (``*.tar``), a single shard, or names with wildcards, braces or unions (``list_shards``).
        weight: how often each of its samples is seen per epoch: 1 once, 2 twice, 0.5 every second epoch (half of the samples
            in each). The share of a source is its weight times its number of samples.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.path = local_path(self.path, "data")
