"""Trainings go on where they were interrupted."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lit_eve.nano.pretrained.fit import Batches, LitPretrained, fit, train
from lit_eve.nano.progress import results_of


@dataclass(frozen=True)
class Settings:
    steps: int = 12
    lr: float = 0.1
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw"})
    seed: int = 0
    checkpoint_every: int = 4


class Line(LitPretrained):
    """y = w x, on batches that are numbers; keeps the numbers that it saw."""

    def __init__(self, settings: Settings = Settings(), tokenizer: Any = None, stop_at: int | None = None) -> None:
        super().__init__(settings, tokenizer)
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.stop_at = stop_at
        self.seen: list[float] = []

    def batches(self, data):
        return make_batch

    def loss(self, batch):
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(batch.item())
        return (self.weight * batch - 2).square().sum()

    def evaluate(self, data):
        return {"training": self.training, "gradients": torch.is_grad_enabled()}

    def save(self, folder):
        torch.save(self.weight.detach(), folder / "weight.pt")


def make_batch(step: int) -> torch.Tensor:
    return torch.tensor(float(step))


def test_batches_go_on_after_those_seen():
    batches = Batches(make_batch, 5)
    it = iter(batches)
    assert [next(it).item() for _ in range(2)] == [0, 1]
    again = Batches(make_batch, 5)
    again.load_state_dict(batches.state_dict())
    assert [batch.item() for batch in again] == [2, 3, 4]


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path):
    whole = Line()
    fit(whole, make_batch, tmp_path / "whole")
    assert whole.seen == list(range(12))

    killed = Line(stop_at=6)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(killed, make_batch, tmp_path / "killed")
    again = Line()
    fit(again, make_batch, tmp_path / "killed")
    assert again.seen == list(range(4, 12))
    assert torch.equal(again.weight, whole.weight)
    # a training that is over is not repeated
    over = Line()
    fit(over, make_batch, tmp_path / "killed")
    assert over.seen == [] and torch.equal(over.weight, whole.weight)


def test_what_is_trained_is_evaluated_and_saved(tmp_path):
    folder = train(Line, Settings(), tmp_path / "data", tmp_path / "line")
    assert results_of(folder) == {"training": False, "gradients": False}
    line = Line()
    fit(line, make_batch, tmp_path / "again")
    assert torch.equal(torch.load(folder / "weight.pt"), line.weight)
