"""Terms of the loss added up over batches, and their means over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_eve.losses import Term
from lit_eve.training.distributed import sum_over_ranks


class TermSums:
    """Sums that stay on the device until means are asked for; no batch waits for it.

    Every mean is exact: all that was added up, over what it is averaged over, however it was cut into batches, steps and ranks.
    All ranks must add the same terms.
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
            self._spec[name] = (term.per, term.weight)
        for per, key in (("tokens", "target_positions"), ("images", "image_grid_hw")):
            self._counts[per] = self._counts.get(per, 0) + len(batch[key])

    def merge(self, other: TermSums) -> None:
        """Add what ``other`` holds."""
        for name, total in other._totals.items():
            self._totals[name] = self._totals.get(name, 0.0) + total
        for per, count in other._counts.items():
            self._counts[per] = self._counts.get(per, 0) + count
        self._spec |= other._spec

    def means(self, device: torch.device) -> dict[str, float]:
        """The mean of every term over all ranks, and ``loss``, their weighted sum. Waits for the device.

        A term that is averaged over nothing, as alignment over texts, is left out; without any term there is no loss.
        """
        state = self.state(device)
        means = {
            name: total / state["counts"][self._spec[name][0]]
            for name, total in state["totals"].items()
            if state["counts"][self._spec[name][0]]
        }
        weights = {name: self._spec[name][1] for name in means if self._spec[name][1]}
        return means | ({"loss": sum(weight * means[name] for name, weight in weights.items())} if weights else {})

    def state(self, device: torch.device) -> dict[str, Any]:
        """All sums over all ranks, as numbers, for a checkpoint. Waits for the device."""
        names, kinds = self.names, list(self._counts)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        values = [
            torch.as_tensor(value, dtype=dtype, device=device) for value in (*self._totals.values(), *self._counts.values())
        ]
        numbers = sum_over_ranks(torch.stack(values)).tolist() if values else []
        totals, counts = numbers[: len(names)], numbers[len(names) :]
        return {
            "totals": dict(zip(names, totals, strict=True)),
            "counts": dict(zip(kinds, map(int, counts), strict=True)),
            "spec": {name: list(spec) for name, spec in self._spec.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, on one rank."""
        self._totals, self._counts = dict(state["totals"]), dict(state["counts"])
        self._spec = {name: (per, weight) for name, (per, weight) in state["spec"].items()}
