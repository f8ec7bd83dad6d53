"""LitEve: the loss of the global batch however it is cut, frozen parts, evaluation, and runs that must stop."""

from __future__ import annotations

import csv
import time

import pytest
import torch
from lightning.pytorch import Callback
from torch.multiprocessing import ProcessRaisedException
from torch.testing import assert_close

from lit_eve.data import model_inputs
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.processing import AroundImages
from lit_eve.training import LitEve, Rule, Stage
from lit_eve.training.callbacks import NonFiniteError, NonFiniteGuard
from lit_eve.training.record import MetricsFile
from tests.models import tiny
from tests.training import world as micro

# Two optimizer steps; the samples of a step have very different numbers of images and targets, and one has no image.
ROWS = [[[2, 0], [1]], [[0], [0, 0]], [[1, 1, 1], [3]], [[0, 1], [2]]]
LAST = [[[1], [1]], [[0], [2]]]


class Recorder(Callback):
    """Gradients before each optimizer step, and the losses that are logged."""

    def __init__(self, path=None):
        self.gradients, self.losses, self.path = [], [], path

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_end(self, trainer, pl_module):
        if self.path and trainer.is_global_zero:
            torch.save((self.gradients, float(trainer.callback_metrics["train/loss"])), self.path)


def joined(micros):
    return [row for micro in micros for row in micro]


def run(world, tmp_path, windows, shards=1, **kwargs):
    """Train over windows of micro-batches; with two shards, each rank takes every other micro-batch."""
    reference = micro.make_module(world)
    reference.configure_model()
    batches = micro.make_batches(reference, windows)
    if shards == 2:
        batches = [_shard(batches[i : i + 2]) for i in range(0, len(batches), 2)]
    path, module = tmp_path / "recorded.pt", micro.make_module(world)
    trainer = micro.trainer(tmp_path, callbacks=[Recorder(path)], gradient_clip_val=1e9, **kwargs)
    trainer.fit(module, Sharded(batches, shards))
    return torch.load(path)


def _shard(pair):
    """Two micro-batches for two ranks; each rank counts its own targets and images."""
    for batch in pair:
        batch["num_targets"] = torch.tensor(len(batch["target_positions"]))
        batch["num_images"] = torch.tensor(len(batch["image_grid_hw"]))
    return pair


class Sharded(torch.utils.data.DataLoader):
    """A loader over batches, or over tuples of batches of which each rank takes its own."""

    def __init__(self, batches, shards):
        def own(items):
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            return items[0][rank] if shards > 1 else items[0]

        super().__init__(batches, batch_size=1, collate_fn=own)


@pytest.fixture(scope="module")
def one_big_batch(world, tmp_path_factory):
    windows = [[joined(ROWS)], [joined(LAST)]]
    return run(world, tmp_path_factory.mktemp("big"), windows)


def same(result, expected):
    assert len(result[0]) == len(expected[0]) == 2
    for step, wanted in zip(result[0], expected[0], strict=True):
        assert step.keys() == wanted.keys()
        for name in wanted:
            assert_close(step[name], wanted[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert result[1] == pytest.approx(expected[1], abs=1e-5)


def test_accumulation_gives_the_gradient_of_one_big_batch(world, tmp_path, one_big_batch):
    """The last window is shorter than the others: the epoch ends in the middle of it."""
    same(run(world, tmp_path, [ROWS, LAST], accumulate_grad_batches=4), one_big_batch)


def test_two_ranks_give_the_gradient_of_one_big_batch(world, tmp_path, one_big_batch):
    windows = [[joined(ROWS[:2]), joined(ROWS[2:])], LAST]
    same(run(world, tmp_path, windows, shards=2, devices=2, strategy="ddp_fork"), one_big_batch)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)])
def test_half_precision_trains(world, tmp_path, one_big_batch, precision, dtype):
    gradients, loss = run(world, tmp_path, [[joined(ROWS)], [joined(LAST)]], precision=precision)
    assert loss == pytest.approx(one_big_batch[1], rel=0.02)
    assert gradients[0].keys() == one_big_batch[0][0].keys()
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in gradients[0].values())


@pytest.mark.parametrize("stage", ["prealign", "pretrain", "finetune"])
def test_what_is_frozen_does_not_move_and_the_rest_does(world, tmp_path, stage):
    module = micro.make_module(world, stage=stage)
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    micro.trainer(tmp_path).fit(module, micro.loader(micro.make_batches(module, [[joined(ROWS)]] * 3)))
    moved = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    frozen = ("teacher.", "language_model.") if stage == "prealign" else ("teacher.",)
    expected = {name for name in before if not name.startswith(frozen)}
    assert moved == expected
    assert {name for name, p in module.model.named_parameters() if p.requires_grad} == expected, "no gradients for nothing"


def test_a_stage_of_ones_own(world, tmp_path):
    rules = [Rule(r"language_model\.model\.layers\.1\.", lr=1e-3), Rule("projector")]
    module = micro.make_module(world, stage=Stage("mine", 1e-2, rules), lr=None)
    module.configure_model()
    trainer = micro.trainer(tmp_path)
    trainer.fit(module, micro.loader(micro.make_batches(module, [[joined(ROWS)]])))
    rates = {g["initial_lr"]: g["param_names"] for g in trainer.optimizers[0].param_groups}
    assert rates.keys() == {1e-3, 1e-2}
    assert all(name.startswith("language_model.model.layers.1.") for name in rates[1e-3])
    assert all(name.startswith("projector.") for name in rates[1e-2])


def test_evaluation_weighs_batches_by_their_tokens_and_images(world, tmp_path):
    module = micro.make_module(world)
    module.configure_model()
    trainer = micro.trainer(tmp_path)
    split = trainer.validate(module, micro.loader(micro.make_batches(module, [[m] for m in ROWS])), verbose=False)[0]
    whole = trainer.validate(module, micro.loader(micro.make_batches(module, [[joined(ROWS)]])), verbose=False)[0]
    assert split == pytest.approx(whole, abs=1e-6)
    assert split["val/loss"] == pytest.approx(split["val/language_loss"] + split["val/alignment_loss"])
    batch = micro.make_batches(module, [[joined(ROWS)]])[0]
    output = module.eval().model(**model_inputs(batch))
    assert whole["val/language_loss"] == pytest.approx(output.language_loss.item(), abs=1e-5)
    assert whole["val/token_accuracy"] == pytest.approx(output.num_correct.item() / batch["num_targets"].item())
    tested = trainer.test(module, micro.loader(micro.make_batches(module, [[m] for m in ROWS])), verbose=False)[0]
    assert tested["test/loss"] == pytest.approx(split["val/loss"])


def test_without_a_teacher_there_is_no_alignment(world, tmp_path):
    module = micro.make_module(world, teacher=None, aligner=None)
    module.configure_model()
    trainer = micro.trainer(tmp_path)
    trainer.fit(module, *[micro.loader(micro.make_batches(module, [[joined(ROWS)]]))] * 2)
    assert module.teacher_grid is None and "val/alignment_loss" not in trainer.callback_metrics
    assert trainer.callback_metrics["train/loss"] == pytest.approx(trainer.callback_metrics["train/language_loss"])


def test_scalars_that_a_run_logs(world, tmp_path):
    module = micro.make_module(world, stage=Stage("mine", 1e-2, [Rule("projector", lr=1e-3), Rule(".*")]), lr=None)
    module.configure_model()
    trainer = micro.trainer(tmp_path, gradient_clip_val=1e-3, callbacks=[recorder := Recorder()])
    trainer.fit(module, micro.loader(micro.make_batches(module, [[joined(ROWS)]])))
    metrics = trainer.callback_metrics
    losses = {f"train/{name}" for name in ("loss", "language_loss", "alignment_loss", "gradient_norm")}
    speed = {"speed/tokens_per_second", "speed/images_per_second", "speed/seconds", "data/padding", "data/tokens"}
    assert losses | speed | {"lr/stage", "lr/projector"} <= metrics.keys()
    norm = torch.stack([g.norm() for g in recorder.gradients[0].values()]).norm()
    assert metrics["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-5), "the norm before clipping"


def test_tokens_and_seconds_until_a_step(world, tmp_path):
    """They add up over the lines of a run, without padding; a validation takes no time of training."""

    class Slow(Callback):
        def on_validation_end(self, trainer, pl_module):
            time.sleep(1.0)

    module = micro.make_module(world)
    module.configure_model()
    batches = micro.make_batches(module, [[joined(ROWS)]] * 3)
    for batch in batches:
        batch["num_padding"] = 5
    log = MetricsFile(tmp_path)
    trainer = micro.trainer(tmp_path, logger=log, log_every_n_steps=2, val_check_interval=1, callbacks=[Slow()])
    start = time.perf_counter()
    trainer.fit(module, micro.loader(batches), micro.loader(batches[:1]))
    seconds = time.perf_counter() - start
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data/tokens"]]
    real = [batch["input_ids"].numel() - 5 for batch in batches]
    assert [(int(row["step"]), float(row["data/tokens"])) for row in rows] == [(2, sum(real[:2])), (3, sum(real))]
    first, last = (float(row["speed/seconds"]) for row in rows)
    assert 0 < first < last < seconds - 3.0


def test_a_run_with_muon(world, tmp_path):
    """The rate of each part is logged; the steps do not depend on how a batch is cut."""
    weights = []
    for windows in ([[joined(ROWS)]], [ROWS]):
        module = micro.make_module(world, optimizer={"name": "muon", "adamw_lr_factor": 0.5, "ns_dtype": "float32"})
        module.configure_model()
        trainer = micro.trainer(tmp_path, accumulate_grad_batches=len(windows[0]), gradient_clip_val=1e-3)
        trainer.fit(module, micro.loader(micro.make_batches(module, windows)))
        metrics = trainer.callback_metrics
        assert metrics["lr/stage/adamw"] == metrics["lr/stage"] / 2 > 0
        weights.append(module.model.state_dict())
    for name, value in weights[0].items():
        assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


# ---- runs that must stop


class Poison(Callback):
    """Breaks the weights before one batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            with torch.no_grad():
                next(pl_module.model.projector.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_no_number_stops_the_run_with_its_samples(world, tmp_path, optimizer):
    module = micro.make_module(world, optimizer={"name": optimizer})
    module.configure_model()
    batches = micro.make_batches(module, [[m] for m in ROWS])
    trainer = micro.trainer(tmp_path, callbacks=[Poison(2)])
    with pytest.raises(
        NonFiniteError, match=r"language loss in epoch 0, batch 2, rank 0 is nan, samples: sample-2-0, from shard-2.tar"
    ):
        trainer.fit(module, micro.loader(batches))
    assert trainer.global_step == 3


def test_one_bad_rank_stops_all_and_is_named_by_all(world, tmp_path, monkeypatch):
    """The first rank's own numbers are fine, yet it stops too, with the other's samples in the message."""
    look, step = NonFiniteGuard._look, LitEve.training_step

    def bad_step(module, batch, batch_idx):
        output = step(module, batch, batch_idx)
        output["terms"]["language_loss"].total[...] = float("inf") if (batch_idx, module.global_rank) == (1, 1) else 1.0
        return output

    monkeypatch.setattr(LitEve, "training_step", bad_step)

    def recording_look(guard, trainer):
        try:
            look(guard, trainer)
        except NonFiniteError as error:
            (tmp_path / f"rank-{trainer.global_rank}").write_text(str(error))
            patience = time.monotonic() + 20  # the first to end is the death of both
            while len(list(tmp_path.glob("rank-?"))) < 2 and time.monotonic() < patience:
                time.sleep(0.05)
            raise

    monkeypatch.setattr(NonFiniteGuard, "_look", recording_look)
    module = micro.make_module(world)
    module.configure_model()
    batches = micro.make_batches(module, [[m] for m in ROWS])
    pairs = [_shard(batches[:2]), _shard(batches[2:])]
    trainer = micro.trainer(tmp_path, devices=2, strategy="ddp_fork")
    with pytest.raises(ProcessRaisedException, match="NonFiniteError"):
        trainer.fit(module, Sharded(pairs, 2))
    message = "before step 3: language loss in epoch 0, batch 1, rank 1 is inf, samples: sample-3-0, from shard-3.tar"
    assert all((tmp_path / f"rank-{rank}").read_text().endswith(message) for rank in (0, 1))


def test_a_gradient_that_is_no_number_stops_the_run(world, tmp_path):
    module = micro.make_module(world)
    module.configure_model()
    next(module.model.projector.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="gradient norm in epoch 0, batch 0, rank 0 is (inf|nan), samples: sample-0-0"):
        micro.trainer(tmp_path).fit(module, micro.loader(micro.make_batches(module, [[m] for m in ROWS])))


# ---- keys that do not fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": None}, "give model.decoder .*, model.init_from .*, or both"),
        ({"patch_embedding": {"name": "eve_v1", "widht": 3}}, "model.patch_embedding: .*'widht'"),
        ({"patch_embedding": {"name": "eve_v11"}}, "model.patch_embedding: .*'eve_v11'"),
        ({"projector": {"name": "mlp_gelu", "dept": 3}}, "model.projector: .*'dept'"),
        ({"aligner": {"name": "layerwise", "interval": 3}}, "model.aligner: .*'interval'"),
        ({"geometry": {"image_sise": 64}}, "model.geometry: geometry 'eve_v1' has no key 'image_sise'"),
        ({"geometry": {"image_size": 60}}, "geometry.image_size = 60 must be a multiple"),
        ({"teacher": None}, "model.aligner needs model.teacher"),
        ({"stage": "prelign"}, "unknown stage 'prelign'"),
        ({"around_images": {"start": "<img>"}}, "model.around_images has no key 'start'"),
        ({"attn_implementation": "packt"}, "model.attn_implementation: there is no 'packt'; known: .*packed"),
    ],
)
def test_settings_that_cannot_be_meant(world, settings, message):
    with pytest.raises(ConfigError, match=message):
        micro.make_module(world, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "/nowhere"}, "model.decoder: there is no folder '/nowhere'"),
        ({"decoder": None, "init_from": "/nowhere"}, "model.init_from: there is no '/nowhere'"),
        ({"teacher": "/nowhere"}, "model.teacher: there is no folder '/nowhere'"),
    ],
)
def test_folders_that_are_not_there(world, settings, message):
    module = micro.make_module(world, **settings)
    with pytest.raises(CheckpointError, match=message):
        module.configure_model()


@pytest.mark.parametrize("beside_the_decoder", [False, True])
def test_what_no_key_says_is_as_in_init_from(world, tmp_path, beside_the_decoder):
    keys = {"teacher": None, "aligner": None, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    keys["around_images"] = {"before": "<s>", "after": "</s>"}
    first = micro.make_module(world, **keys, image_attention={"name": "bidirectional"}, decoder_kind={"name": "experts"})
    first.configure_model()
    first.processor.max_image_pixels, first.processor.max_aspect_ratio = 10**6, 7.0
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    later = LitEve(init_from=str(tmp_path), decoder=str(world / "decoder") if beside_the_decoder else None)
    before, now = first.blueprint.config.to_dict(), later.blueprint.config.to_dict()
    parts = ("geometry", "patch_embedding", "projector", "decoder_kind", "image_attention", "image_mean", "image_std")
    assert {key: now[key] for key in (*parts, "image_token_id")} == {key: before[key] for key in (*parts, "image_token_id")}
    assert later.processor.image_mean == (0.5, 0.5, 0.5)
    assert (later.processor.max_image_pixels, later.processor.max_aspect_ratio) == (10**6, 7.0)
    assert later.processor.around_images == first.processor.around_images != AroundImages()
    without = LitEve(init_from=str(tmp_path), around_images={})
    assert without.processor.around_images == AroundImages()


def test_a_model_of_the_hub_is_looked_for_there(world, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    module = micro.make_module(world, decoder=None, init_from="BAAI/EVE-7B-v1.0")
    with pytest.raises(CheckpointError, match="BAAI/EVE-7B-v1.0 is no folder here, the Hugging Face hub cannot be reached"):
        module.configure_model()


@pytest.mark.parametrize("name", [None, "packed_sdpa", "eager"])
def test_attention_by_name(world, name):
    module = micro.make_module(world, attn_implementation=name)
    module.configure_model()
    assert module.model.get_decoder().config._attn_implementation == (name or "packed")
    assert module.model.teacher.backbone.config._attn_implementation == "sdpa"
    output = module.model(**tiny.packed([tiny.samples(module.model, [1, 0])]))
    reference = micro.make_module(world)
    reference.configure_model()
    reference.model.load_state_dict(module.model.state_dict())
    assert_close(output.loss, reference.model(**tiny.packed([tiny.samples(module.model, [1, 0])])).loss)


def test_an_image_attention_is_part_of_what_is_built(world):
    module = micro.make_module(world, image_attention={"name": "bidirectional"})
    module.configure_model()
    assert module.model.config.image_attention == {"name": "bidirectional"}
    assert not module.model.image_attention.is_causal
    for name in ("flash_attention_2", "packed_varlen"):
        module = micro.make_module(world, image_attention={"name": "bidirectional"}, attn_implementation=name)
        with pytest.raises(ConfigError, match=f"model.attn_implementation '{name}' cannot let the tokens of an image see"):
            module.blueprint.check()
    with pytest.raises(ConfigError, match="model.image_attention: unknown image attention 'two_way'"):
        micro.make_module(world, image_attention={"name": "two_way"})


def test_an_attention_that_is_not_installed(world):
    module = micro.make_module(world, attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match="model.attn_implementation: .*FlashAttention2"):
        module.configure_model()


def test_new_parts_do_not_depend_on_what_was_drawn_before(world):
    """One process of several may have drawn random numbers that the others have not."""
    module, other = micro.make_module(world), micro.make_module(world)
    torch.manual_seed(3)
    expected = other.blueprint.build().state_dict()
    torch.manual_seed(3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    for name, value in module.blueprint.build().state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert not torch.equal(other.blueprint.build().projector[0].weight, expected["projector.0.weight"])
