"""Terms of the loss added up over batches, and their means over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_eve.losses import Term
from lit_eve.training.distributed import sum_over_ranks

_COUNTED = {"tokens": "target_positions", "images": "image_grid_hw"}
"""What a batch has as many of as it has supervised tokens or images."""


class TermSums:
    """Sums that stay on the device until means are asked for; no batch waits for it.

    Every mean is exact: all that was added up, over what it is averaged over, however it was cut into batches, steps and ranks.
    A term that only some batches have is averaged over these. All ranks must add the same terms.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._spec: dict[str, tuple[str, float]] = {}

    @property
    def names(self) -> list[str]:
        """Of the terms that were added, also where there was nothing to average them over."""
        return list(self._totals)

    def add(self, terms: Mapping[str, Term], batch: Mapping[str, Any]) -> None:
        """Add the terms of a batch; its tokens and images are counted by the shapes of its tensors."""
        for name, term in terms.items():
            total = term.total.detach()
            self._totals[name] = self._totals.get(name, 0.0) + (total.float() if total.device.type == "mps" else total.double())
            self._counts[name] = self._counts.get(name, 0) + len(batch[_COUNTED[term.per]])
            self._spec[name] = (term.per, term.weight)

    def merge(self, other: TermSums) -> None:
        """Add what ``other`` holds."""
        for name, total in other._totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0) + other._counts[name]
        self._spec |= other._spec

    def means(self, device: torch.device) -> dict[str, float]:
        """The mean of every term over all ranks, and ``loss``, their sum with the weights of the last batch that had them.

        Waits for the device. A term that is averaged over nothing, as alignment over texts, is left out; without any term there
        is no loss.
        """
        state = self.state(device)
        means = {name: total / count for name, total in state["totals"].items() if (count := state["counts"][name])}
        weights = {name: self._spec[name][1] for name in means if self._spec[name][1]}
        return means | ({"loss": sum(weight * means[name] for name, weight in weights.items())} if weights else {})

    def state(self, device: torch.device) -> dict[str, Any]:
        """All sums over all ranks, as numbers, for a checkpoint. Waits for the device."""
        names = self.names
        dtype = torch.float32 if device.type == "mps" else torch.float64
        values = [*self._totals.values(), *(self._counts[name] for name in names)]
        values = [torch.as_tensor(value, dtype=dtype, device=device) for value in values]
        numbers = sum_over_ranks(torch.stack(values)).tolist() if values else []
        totals, counts = numbers[: len(names)], numbers[len(names) :]
        return {
            "totals": dict(zip(names, totals, strict=True)),
            "counts": dict(zip(names, map(int, counts), strict=True)),
            "spec": {name: list(spec) for name, spec in self._spec.items()},
        }

    def load(self, state: Mapping[str, Any], share: int = 1) -> None:
        """Go on from a :meth:`state`: with ``share`` 1 on one rank, and with 0 on all others, which add the same terms."""
        spec = {name: (per, weight) for name, (per, weight) in state["spec"].items()}
        counts = state["counts"]
        if not counts.keys() >= spec.keys():  # an older version counted tokens and images once for all terms
            counts = {name: counts[per] for name, (per, _) in spec.items()}
        self._totals = {name: share * total for name, total in state["totals"].items()}
        self._counts, self._spec = {name: share * counts[name] for name in self._totals}, spec
