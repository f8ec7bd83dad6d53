"""Trainings go on where they were interrupted."""

import pytest
import torch
from lightning.pytorch import LightningModule

from lit_eve.nano.pretrained.fit import Steps, fit, optimize


class Line(LightningModule):
    """y = w x, on batches that are numbers; keeps the numbers that it saw."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.stop_at = stop_at
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(batch.item())
        loss = (self.weight * batch - 2).square().sum()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return optimize(self, {"name": "adamw"}, lr=0.1, steps=12)


def make_batch(step: int) -> torch.Tensor:
    return torch.tensor(float(step))


def test_steps_go_on_after_those_seen():
    steps = Steps(make_batch, 5)
    it = iter(steps)
    assert [next(it).item() for _ in range(2)] == [0, 1]
    again = Steps(make_batch, 5)
    again.load_state_dict(steps.state_dict())
    assert [batch.item() for batch in again] == [2, 3, 4]


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path):
    whole = Line()
    loss = fit(whole, make_batch, 12, tmp_path / "whole", checkpoint_every=4)
    assert whole.seen == list(range(12))

    killed = Line(stop_at=6)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(killed, make_batch, 12, tmp_path / "killed", checkpoint_every=4)
    again = Line()
    assert fit(again, make_batch, 12, tmp_path / "killed", checkpoint_every=4) == loss
    assert again.seen == list(range(4, 12))
    assert torch.equal(again.weight, whole.weight)
    # a training that is over is not repeated
    over = Line()
    fit(over, make_batch, 12, tmp_path / "killed", checkpoint_every=4)
    assert over.seen == [] and torch.equal(over.weight, whole.weight)
