"""Counted FLOPs against those that torch sees in a whole step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, MixtralConfig

from lit_eve.errors import ConfigError
from lit_eve.losses import FrozenTeacher
from lit_eve.models import EveConfig
from lit_eve.planning.flops import Flops, Workload, meta_model, total_flops, training_flops
from lit_eve.training import Rule, Stage
from lit_eve.training.stages import STAGES, Lora, get_stage
from tests import towers
from tests.models import tiny
from tests.models.attention.images import both_ways, numbers, samples

HALF = Stage("half", 1e-3, [Rule(r"language_model\.model\.layers\.[23]"), Rule("language_model.lm_head")])
ALIGNER = Stage("aligner", 1e-3, [Rule("aligner")])
ADAPTERS = Stage("adapters", 1e-3, [Rule("patch_embedding|projector|aligner"), Rule(r"language_model.*\.lora_")])
UPPER = Stage("upper", 1e-3, [Rule("projector"), Rule(r"language_model\.model\.layers\.3")])


class CountedLinear(torch.autograd.Function):
    """A linear layer that adds up the products that autograd asks of it."""

    @staticmethod
    def forward(ctx, x, weight, bias, tally):
        ctx.save_for_backward(x, weight)
        ctx.tally = tally
        tally["forward"] += 2 * x.numel() * len(weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        ctx.tally["backward"] += 2 * x.numel() * len(weight) * (needs_x + needs_weight)
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if needs_x else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
            None,
        )


def seen_by_torch(model, batch, monkeypatch) -> dict[str, tuple[int, int]]:
    """(forward, both passes) of the parts of a step, and of ``all``.

    Torch's counter attributes products to modules in the forward pass; in the backward pass it errs where something is
    frozen, so that linear layers count for themselves there.
    """
    names = {module: name.split(".")[0] if "lm_head" not in name else "lm_head" for name, module in model.named_modules()}
    names = {module: {"language_model": "decoder"}.get(name, name) for module, name in names.items()}

    def products(backward: bool) -> dict[str, Counter]:
        with FlopCounterMode(display=False) as counter:
            loss = model(**batch).loss
            if backward:
                loss.backward()
        root = f"{type(model).__name__}."
        return {name.removeprefix(root): Counter(ops) for name, ops in counter.get_flop_counts().items()}

    forward, both = products(False), products(True)
    teacher, bmm = forward["teacher"], torch.ops.aten.bmm
    parts = {
        "all": (sum(forward["Global"].values()), sum(both["Global"].values())),
        "attention": (forward["Global"][bmm] - teacher[bmm], both["Global"][bmm] - teacher[bmm]),
    }
    tallies: dict[str, Counter] = defaultdict(Counter)
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.Linear, "forward", lambda self, x: CountedLinear.apply(x, self.weight, self.bias, tallies[names[self]])
        )
        model(**batch).loss.backward()
    parts |= {name: (tally["forward"], tally.total()) for name, tally in tallies.items()}
    return parts | {"teacher": (sum(teacher.values()),) * 2}


LINEAR = {"name": "linear", "width": 16}
STAGED = [STAGES["prealign"], STAGES["pretrain"], HALF, ALIGNER, UPPER]  # what is trained; the others train the same
BY_DEFAULT = {  # one decoder or patch embedding changed, and each stage for those that differ most; the other pairs are slow
    *((stage.name, decoder, "eve_v1") for stage in STAGED for decoder in ("llama-dense", "qwen3-experts")),
    *((stage, decoder, "eve_v1") for stage in ("pretrain", "half") for decoder in ("persimmon-dense", "qwen3-dense")),
    *((stage, "llama-dense", "linear") for stage in ("prealign", "pretrain")),
}


def every_part() -> Iterator[Any]:
    """Each stage with each decoder and patch embedding."""
    decoders = ("llama", "dense"), ("persimmon", "dense"), ("qwen3", "dense"), ("qwen3", "experts")
    embeddings = {"name": "eve_v1", "width": 16, "num_heads": 4}, LINEAR
    for stage, (decoder, kind), embedding in product(STAGED, decoders, embeddings):
        key = stage.name, f"{decoder}-{kind}", embedding["name"]
        marks = () if key in BY_DEFAULT else pytest.mark.slow
        yield pytest.param(stage, decoder, kind, embedding, marks=marks, id="-".join(key))


@pytest.mark.parametrize(("stage", "decoder", "kind", "patch_embedding"), list(every_part()))
def test_every_part_is_what_torch_counts(stage, decoder, kind, patch_embedding, monkeypatch):
    parts_are_what_torch_counts(monkeypatch, stage, decoder, decoder_kind={"name": kind}, patch_embedding=patch_embedding)


@pytest.mark.parametrize("stage", [STAGES["prealign"], STAGES["pretrain"], ADAPTERS], ids=lambda stage: stage.name)
def test_adapters_are_what_torch_counts(stage, monkeypatch):
    kind = {"name": "image_adapter", "rank": 4, "layers": 3}
    parts_are_what_torch_counts(monkeypatch, stage, "qwen3", decoder_kind=kind, patch_embedding=LINEAR)


@pytest.mark.parametrize("stage", [STAGES["prealign"], STAGES["pretrain"], UPPER], ids=lambda stage: stage.name)
def test_channels_for_row_and_column_are_what_torch_counts(stage, monkeypatch):
    parts = {"decoder_kind": {"name": "pre_buffer", "layers": 1}, "positions": {"name": "neo"}}
    parts_are_what_torch_counts(monkeypatch, stage, "qwen3", **parts, patch_embedding=LINEAR)


@pytest.mark.parametrize("stage", [STAGES["prealign"], STAGES["pretrain"]], ids=lambda stage: stage.name)
def test_adapters_of_peft_are_what_torch_counts(stage, monkeypatch):
    pytest.importorskip("peft")
    lora = Lora(rank=4, target_modules=["q_proj", "up_proj"])
    stage = replace(stage, lora=lora)
    parts_are_what_torch_counts(monkeypatch, stage, "qwen3", lora=lora.architecture, patch_embedding=LINEAR)


def parts_are_what_torch_counts(monkeypatch, stage, decoder, **variant):
    variant["geometry"] = tiny.HD_GEOMETRY
    model = tiny.model(decoder, with_teacher=True, **variant)
    names = [name for name, _ in model.named_parameters() if not name.startswith("teacher.")]
    rates = stage.rates(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates.get(name) is not None)
    for part in (model.language_model, model.teacher.backbone):
        part.config._attn_implementation = "eager"  # plain products, which torch tells apart from linear layers
    batch = tiny.packed([tiny.samples(model, [2])])
    length = batch["input_ids"].shape[1]
    flops = training_flops(model.config, Workload.of_batch(batch), stage, model.teacher.backbone.config)
    all_pairs = 2 * length / (length + 1)  # eager attention computes the pairs above the diagonal too
    flops["attention"] = Flops(*(x * all_pairs for x in flops["attention"]))
    expected = seen_by_torch(model, batch, monkeypatch)
    assert expected.keys() - {"all"} == flops.keys()
    for name, part in flops.items():
        assert (part.forward, part.total) == pytest.approx(expected[name], rel=0.02), name
    assert total_flops(flops) == pytest.approx(expected["all"][1], rel=0.02)


@pytest.mark.parametrize("stage", [STAGES["prealign"], STAGES["pretrain"], UPPER], ids=lambda stage: stage.name)
def test_every_supervision_is_what_torch_counts(stage, monkeypatch):
    entries = [{"name": "distillation"}, {"name": "masked_patches", "ratio": 0.5, "tap": 2}, {"name": "next_patch"}]
    teacher = tiny.teacher().backbone.config
    model = tiny.model(supervision=entries)
    model.attach_supervision(tiny.teacher())
    for name, rate in stage.apply(model).items():
        assert rate is not None or name.split(".")[0] not in model.supervisions
    batch = tiny.packed([tiny.samples(model, [2])]) | {"image_seeds": torch.arange(2)}
    flops = training_flops(model.config, Workload.of_batch(batch), stage, teacher)
    expected = seen_by_torch(model, batch, monkeypatch)
    for part in ("distillation", "masked_patches", "next_patch"):
        assert (flops[part].forward, flops[part].total) == pytest.approx(expected[part], rel=0.02), part
    alone = training_flops(tiny.config(supervision=entries[2:]), Workload.of_batch(batch), stage)
    assert alone["next_patch"] == flops["next_patch"] and not {"teacher", "aligner"} & alone.keys()


@pytest.mark.parametrize("stage", [STAGES["prealign"], STAGES["pretrain"]], ids=lambda stage: stage.name)
def test_a_teacher_that_trains_is_what_torch_counts(stage):
    """All that it costs beside the same model without a teacher."""
    teacher = tiny.teacher().backbone.config
    model, without = (
        tiny.model(supervision=entries)
        for entries in (
            [{"name": "trained_teacher", "aligner": {"name": "layerwise", "layer_interval": 1, "num_heads": 4}}],
            [],
        )
    )
    model.attach_supervision(tiny.teacher())
    model.trained_teacher["tower"].config._attn_implementation = "eager"
    batch = tiny.packed([tiny.samples(model, [2])])
    counts = []
    for one in (model, without):
        stage.apply(one)
        with FlopCounterMode(display=False) as counter:
            one(**batch).loss.backward()
        counts.append(counter.get_total_flops())
    flops = training_flops(model.config, Workload.of_batch(batch), stage, teacher)
    assert "teacher" not in flops and flops["trained_teacher"].total == pytest.approx(counts[0] - counts[1], rel=0.02)


def test_frozen_is_twice_and_trained_three_times_the_forward_pass():
    config, workload = tiny.config(), Workload(np.array([30, 50]), np.array([[4, 6]]), 20)
    for stage, factor in (("prealign", 2), ("pretrain", 3)):
        flops = training_flops(config, workload, stage)
        assert flops["decoder"].total == factor * flops["decoder"].forward == factor * 2 * 80 * 4 * (4 * 32 * 32 + 3 * 32 * 64)
        assert flops["lm_head"].total == factor * flops["lm_head"].forward == factor * 2 * 20 * 32 * tiny.VOCAB
        assert flops["attention"].total == 3 * flops["attention"].forward  # it has no weights
        assert flops.keys() == {"patch_embedding", "projector", "decoder", "attention", "lm_head"}


@pytest.mark.parametrize("window", [None, 1, 7, 30, 100])
def test_attended_pairs(window):
    workload = Workload(np.array([1, 12, 30]), np.zeros((0, 2), int), 0)
    expected = sum(min(query + 1, window or 1000) for length in workload.lengths for query in range(length))
    assert workload.attended_pairs(window) == expected


@pytest.mark.parametrize("window", [None, 1, 7, 30])
def test_images_that_see_both_ways_are_counted(window):
    """As the mask has them, for every sample."""
    model = tiny.model(image_attention={"name": "bidirectional"})
    rows = samples(model)
    expected = sum(int(both_ways(numbers(model, row), window).sum()) for row in rows)
    workload = Workload.of_batch(tiny.packed([rows]))
    lengths = np.array([len(row["input_ids"]) for row in rows])
    workload = Workload(lengths, workload.image_grid_hw, 10)
    images = model.geometry.num_tokens_of_grid(torch.from_numpy(workload.image_grid_hw)).numpy()
    assert workload.attended_pairs(window, images) == expected > workload.attended_pairs(window)
    attention = training_flops(model.config, workload, "pretrain")["attention"]
    assert attention.forward == 4 * 4 * 32 * workload.attended_pairs(None, images)


def test_sliding_windows_are_counted():
    text = {"model_type": "mistral", **tiny.COMMON, "sliding_window": 8}
    workload = Workload(np.array([40]), np.zeros((0, 2), int), 10)
    attention = training_flops(EveConfig(text_config=text, geometry=tiny.GEOMETRY), workload, "pretrain")["attention"]
    assert attention.forward == 4 * 4 * 32 * workload.attended_pairs(8)


def test_a_batch_is_its_samples_without_padding():
    model = tiny.model()
    rows = tiny.samples(model, [1, 0, 2])
    batch = tiny.packed([rows[:1], rows[1:]])
    workload = Workload.of_batch(batch)
    assert workload.lengths.tolist() == [len(row["input_ids"]) for row in rows] and workload.num_images == 3
    assert workload.num_tokens < batch["input_ids"].numel()
    assert workload.num_patches == len(batch["pixel_values"]) and workload.num_targets == len(batch["target_positions"])


def test_eve_7b_without_weights():
    """Vicuna-7B has 6.476 billion weights in its linear layers; a CLIP-L/14-336 of 23 layers takes 0.37 TFLOP per image."""
    text = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    teacher = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    config = EveConfig(text_config=text.to_dict())
    workload = Workload(np.full(3, 650), np.full((3, 2), 48), 200)
    flops = training_flops(config, workload, "prealign", teacher)
    assert flops["decoder"].forward == 2 * 1950 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert flops["teacher"].total / 3 == pytest.approx(0.366e12, rel=0.02)
    assert 0.92 < flops["decoder"].total / total_flops(flops) < 0.97
    assert config.teacher is None and config.aligner is None, "the config is left as it was"
    assert all(p.is_meta for p in meta_model(config, teacher).parameters())


def test_layers_that_are_no_attention_are_refused():
    text = AutoConfig.for_model("qwen3_next", vocab_size=61, hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
    config = EveConfig(text_config=text, geometry=tiny.GEOMETRY)
    with pytest.raises(ConfigError, match="Qwen3NextModel are not known: not all its layers are attention"):
        training_flops(config, Workload(np.array([8]), np.zeros((0, 2), int), 4), get_stage("pretrain"))


def test_experts_are_refused():
    text = MixtralConfig(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = EveConfig(text_config=text.to_dict(), geometry=tiny.GEOMETRY)
    with pytest.raises(ConfigError, match="MixtralModel are not known: layers.0.mlp"):
        training_flops(config, Workload(np.array([8]), np.zeros((0, 2), int), 4), get_stage("pretrain"))


@pytest.mark.parametrize("kind", towers.CONFIGS)
def test_teachers_of_all_families_are_what_torch_counts(kind):
    tower = towers.make(kind)
    config = tiny.config()
    teacher = FrozenTeacher(tower)
    tower.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(2, 3, 64, 64))
    workload = Workload(np.array([200]), np.array([[16, 16], [8, 16]]), 20)
    counted = training_flops(config, workload, "pretrain", towers.make(kind).config)["teacher"]
    assert counted.forward == counter.get_total_flops() and counted.backward == 0
