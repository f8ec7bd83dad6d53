"""What the loss is made of is summed and logged, whoever names it; lines are means over all steps since the last one."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lit_eve.data import model_inputs
from lit_eve.losses import Term, weighted_sum
from lit_eve.models import EveForConditionalGeneration
from lit_eve.training import LitEve
from lit_eve.training.term_sums import TermSums
from tests.training import world as micro
from tests.training.test_module import Sharded, _shard

# Steps of two micro-batches of very different sizes.
STEPS = [[[[2, 0]], [[1]]], [[[0]], [[0, 0]]], [[[1, 1, 1]], [[3]]], [[[0, 1]], [[2]]], [[[1]], [[1, 2]]]]


class WithNorms(LitEve):
    """An auxiliary loss of one's own: the mean over images of the size of a weight."""

    def auxiliary_losses(self, batch, output):
        size = self.model.projector[0].weight.square().mean()
        return {"size_loss": Term(size * len(batch["image_grid_hw"]), "images", 0.5)}


class Parts(Callback):
    """Terms of every micro-batch: name, sum, what it is averaged over."""

    def __init__(self):
        self.parts = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        counts = {"tokens": len(batch["target_positions"]), "images": len(batch["image_grid_hw"])}
        self.parts.append({name: (float(term.total), counts[term.per]) for name, term in outputs["terms"].items()})


class Lines(Logger):
    """What is logged, by step."""

    name = version = "lines"

    def __init__(self):
        super().__init__()
        self.lines = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines.setdefault(step, {}).update(metrics)


def modules(world, kind):
    settings = {"decoder": str(world / "decoder"), "teacher": str(world / "teacher"), **micro.ARCHITECTURE, "lr": 1e-2}
    torch.manual_seed(0)
    return kind(**settings)


def fit(world, folder, kind=WithNorms, every=2, steps=STEPS, **kwargs):
    module = modules(world, kind)
    module.configure_model()
    batches = micro.make_batches(module, steps)
    settings = {"accumulate_grad_batches": 2, "log_every_n_steps": every, "logger": Lines()} | kwargs
    trainer = micro.trainer(folder, **settings)
    trainer.fit(module, micro.loader(batches), micro.loader(batches[:3]))
    return trainer, module, batches


def test_ones_own_term_is_trained_on_and_logged_everywhere(world, tmp_path):
    trainer, module, batches = fit(world, tmp_path, every=1)
    metrics = trainer.callback_metrics
    for prefix in ("train", "val"):
        parts = {name: float(metrics[f"{prefix}/{name}"]) for name in ("language_loss", "alignment_loss", "size_loss")}
        total = parts["language_loss"] + parts["alignment_loss"] + 0.5 * parts["size_loss"]
        assert float(metrics[f"{prefix}/loss"]) == pytest.approx(total, rel=1e-5)
        assert parts["size_loss"] > 0 and f"{prefix}/token_accuracy" in metrics
    tested = trainer.test(module, micro.loader(batches[:3]), verbose=False)[0]
    assert tested["test/size_loss"] == pytest.approx(float(metrics["val/size_loss"]))
    assert tested["test/loss"] == pytest.approx(float(metrics["val/loss"]))
    plain = fit(world, tmp_path, kind=LitEve)[1]
    weights = [m.model.projector[0].weight.norm() for m in (module, plain)]
    assert weights[0] < weights[1], "the loss makes weights smaller"


def test_a_term_of_the_model_is_a_term_of_the_training(world, tmp_path, monkeypatch):
    forward = EveForConditionalGeneration.forward

    def with_term(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.terms["size_loss"] = Term(self.projector[0].weight.square().mean() * len(kwargs["image_grid_hw"]), "images", 0.5)
        return output

    expected = fit(world, tmp_path, every=1)[0].callback_metrics
    monkeypatch.setattr(EveForConditionalGeneration, "forward", with_term)
    metrics = fit(world, tmp_path, kind=LitEve, every=1)[0].callback_metrics
    for tag in ("train/loss", "train/size_loss", "val/loss", "val/size_loss"):
        assert float(metrics[tag]) == pytest.approx(float(expected[tag]), rel=1e-5)


def test_the_models_loss_is_the_sum_of_its_terms(world):
    module = modules(world, LitEve)
    module.configure_model()
    batch = micro.make_batches(module, [[[[2, 0]]]])[0]
    output = module.model(**model_inputs(batch))
    counts = {"tokens": batch["num_targets"], "images": batch["num_images"]}
    assert float(output.loss) == pytest.approx(float(weighted_sum(output.terms, counts)))


def test_lines_are_means_over_all_steps_since_the_last(world, tmp_path):
    """Five steps, a line every two: the third line is that of the last step alone."""
    trainer = fit(world, tmp_path, callbacks=[recorder := Parts()])[0]
    lines = trainer.logger.lines
    assert sorted(lines) == [2, 4, 5] and "val/loss" in lines[5]
    for step, micros in ((2, slice(0, 4)), (4, slice(4, 8)), (5, slice(8, 10))):
        for name in ("language_loss", "alignment_loss", "token_accuracy", "size_loss"):
            total, count = map(sum, zip(*(parts[name] for parts in recorder.parts[micros]), strict=True))
            assert lines[step][f"train/{name}"] == pytest.approx(total / count, rel=1e-5), (step, name)


def test_a_term_is_averaged_over_the_batches_that_have_it():
    batch = lambda images: {"target_positions": [0] * 3, "image_grid_hw": [0] * images}  # noqa: E731
    term = lambda total, weight=1.0: Term(torch.tensor(total), "images", weight)  # noqa: E731
    sums = TermSums()
    sums.add({"a": term(6.0), "b": term(2.0, 0.5)}, batch(2))
    sums.add({"a": term(2.0)}, batch(2))
    assert sums.means(torch.device("cpu")) == {"a": 2.0, "b": 1.0, "loss": 2.5}
    state = sums.state(torch.device("cpu"))
    older = state | {"counts": {"tokens": 6, "images": 4}}  # of a version in which every batch had all terms
    for saved, expected in ((state, 1.0), (older, 0.5)):
        again = TermSums()
        again.load(saved)
        assert again.means(torch.device("cpu"))["b"] == expected
        other = TermSums()
        other.load(saved, share=0)
        assert other.names == again.names and other.means(torch.device("cpu")) == {}


def test_two_ranks_log_the_same_means(world, tmp_path):
    """Each rank takes one of the two micro-batches of a step."""
    one = fit(world, tmp_path)[0].callback_metrics
    module = modules(world, WithNorms)
    module.configure_model()
    batches = micro.make_batches(module, STEPS)
    pairs = [_shard(batches[i : i + 2]) for i in range(0, len(batches), 2)]
    path = tmp_path / "metrics.pt"

    class Save(Callback):
        def on_train_end(self, trainer, module):
            if trainer.is_global_zero:
                torch.save({k: float(v) for k, v in trainer.callback_metrics.items()}, path)

    trainer = micro.trainer(tmp_path, log_every_n_steps=2, callbacks=[Save()], devices=2, strategy="ddp_fork")
    trainer.fit(modules(world, WithNorms), Sharded(pairs, 2))
    two = torch.load(path)
    for name in ("loss", "language_loss", "alignment_loss", "token_accuracy", "size_loss"):
        assert two[f"train/{name}"] == pytest.approx(float(one[f"train/{name}"]), rel=1e-4), name
