"""Work on whole matrices of which every process holds some rows: each process takes its share of the matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from lit_eve.errors import ConfigError


@dataclass(frozen=True)
class RowShards:
    """How the rows of matrices are shared out: the first process has the first ones, as torch cuts them.

    Copies of the model (hybrid sharding) each work for themselves.

    Args:
        group: the processes that share a matrix.
    """

    group: dist.ProcessGroup

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> RowShards | None:
        """The layout that all ``parameters`` have; None if they are whole.

        Raises:
            ConfigError: they are sharded in another way.
        """
        layouts = {(p.device_mesh, p.placements) if isinstance(p, DTensor) else None for p in parameters}
        if layouts <= {None}:
            return None
        layout, *others = layouts
        mesh, placements = layout or (None, ())
        cut = [dim for dim, placement in enumerate(placements) if placement == Shard(0)]
        if others or len(cut) != 1 or any(placement not in (Shard(0), Replicate()) for placement in placements):
            raise ConfigError("matrices are sharded in an unknown way: trainer.strategy must be fsdp2, ddp or auto")
        return cls(mesh.get_group(cut[0]))

    @property
    def size(self) -> int:
        """The number of processes that share a matrix."""
        return self.group.size()

    def apply(self, function: Callable[[Tensor], Tensor], rows: Tensor, total: int) -> Tensor:
        """Give every process some whole matrices, apply ``function`` to them, and give the rows back.

        A process sends and receives its part of the matrices twice. All processes of the group call this together.

        Args:
            function: (k, R, C) -> (k, R, C), for any k.
            rows: (K, r, C), this process's rows of K matrices.
            total: R.

        Returns:
            (K, r, C), its rows of the results.
        """
        count, own, columns = rows.shape
        here = self.group.rank()
        whole = _evenly(count, self.size)  # matrices that each process works on
        parts = _as_torch_cuts(total, self.size)  # rows that each process holds
        if parts[here] != own:
            raise ConfigError(f"a matrix of {total} rows is cut into unknown parts: {own} rows on one of {self.size} processes")
        sent = [k * own * columns for k in whole]
        received = [whole[here] * r * columns for r in parts]
        flat = self._exchange(rows.reshape(-1), received, sent)
        matrices = [part.view(whole[here], r, columns) for part, r in zip(flat.split(received), parts, strict=True)]
        results = function(torch.cat(matrices, dim=1)) if whole[here] else flat.view(0, total, columns)  # (k, R, C)
        back = torch.cat([part.reshape(-1) for part in results.split(parts, dim=1)])
        return self._exchange(back, sent, received).view(count, own, columns)

    def _exchange(self, values: Tensor, received: list[int], sent: list[int]) -> Tensor:
        """Send the parts of ``values`` to the processes in turn, and join what comes from them."""
        out = values.new_empty(sum(received))
        dist.all_to_all_single(out, values, received, sent, group=self.group)
        return out


def _evenly(count: int, processes: int) -> list[int]:
    """How many of ``count`` matrices each process works on."""
    return [count // processes + (i < count % processes) for i in range(processes)]


def _as_torch_cuts(count: int, processes: int) -> list[int]:
    """How many of ``count`` rows each process holds: the last ones may have fewer, or none."""
    full = -(-count // processes)
    return [min(full, max(0, count - i * full)) for i in range(processes)]
