"""Losses at image tokens: against plain loops and VoRA's code, packed and alone, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import ALIGNERS, LayerwiseAligner, LayerwiseHeads, patch_alignment_loss
from lit_eve.losses.distillation import distillation_loss
from lit_eve.models import SUPERVISIONS, EveForConditionalGeneration, Supervision
from lit_eve.models.supervision import check_entries
from tests.models import tiny

VORA = Path(__file__).parents[1] / "data" / "vora"
ALIGNMENT = {"name": "patch_alignment", "aligner": {"name": "layerwise", "layer_interval": 2, "num_heads": 4}}
NEXT, DISTILLATION = {"name": "next_patch", "weight": 0.5}, {"name": "distillation", "weight": 2.0}
TRAINED = {"name": "trained_teacher", "aligner": ALIGNMENT["aligner"]}
ALL = [ALIGNMENT, NEXT, DISTILLATION]
TERMS = {name: f"{name}_loss" for name in ("next_patch", "distillation")}
TERMS |= dict.fromkeys(("aligner", "trained_teacher"), "alignment_loss")


def supervised(entries, seed: int = 0, **kwargs) -> EveForConditionalGeneration:
    model = tiny.model(supervision=entries, seed=seed, aligner=ALIGNMENT["aligner"], **kwargs)
    needed = any(entry["name"] != "next_patch" for entry in entries or ALL)
    model.attach_supervision(tiny.teacher() if needed else None)
    for part in model.supervisions.values():
        for parameter in part.head.parameters():
            nn.init.normal_(parameter, std=0.15)
    return model


def mean(output, name: str) -> torch.Tensor:
    return output.terms[name].total


def hidden_states(model, sample) -> list[torch.Tensor]:
    """(Q, D) of one sample at its image tokens in row-major order, image after image, without classes and splits."""
    output = model(**tiny.padded([sample]), output_hidden_states=True)
    slots = (sample["input_ids"] == model.config.image_token_id).nonzero().flatten().tolist()
    grids, places = model.geometry.token_grid_of(sample["image_grid_hw"]).tolist(), []
    for rows, columns in grids:
        slots.pop(0)  # the class token
        for _ in range(rows):
            places += [slots.pop(0) for _ in range(columns)]
            slots.pop(0)  # the split token
    assert not slots
    return [state[0, places] for state in output.hidden_states]


def test_next_patch_is_what_a_loop_says():
    model = supervised([NEXT])
    batch = tiny.samples(model, [2, 0, 1])
    expected, head = 0.0, model.next_patch
    mean_, std = (torch.tensor(x)[:, None] for x in (model.config.image_mean, model.config.image_std))
    for sample in batch:
        if not len(sample["image_grid_hw"]):
            continue
        states = hidden_states(model, sample)[-1]
        pixels = (sample["pixel_values"].float().unflatten(1, (3, -1)) / 255 - mean_) / std
        windows = pixels.flatten(1).view(len(states), -1)
        start = 0
        for rows, columns in model.geometry.token_grid_of(sample["image_grid_hw"]).tolist():
            errors = []
            for token in range(start, start + rows * columns - 1):
                target = windows[token + 1]
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
                errors.append((head(states[token]) - target).square().mean())
            expected = expected + (torch.stack(errors).mean() if errors else 0.0)
            start += rows * columns
    output = model(**tiny.packed([batch[:2], batch[2:]]), num_images=3)
    assert_close(mean(output, "next_patch_loss"), expected, rtol=1e-4, atol=1e-5)
    assert_close(output.loss, output.language_loss + 0.5 * expected / 3, rtol=1e-4, atol=1e-5)
    assert "alignment_loss" not in output.terms and output.alignment_loss is None


def test_an_image_of_one_token_has_no_next_patch():
    model = supervised([NEXT])
    sample = tiny.samples(model, [1])[0]
    step = model.geometry.pool_size
    ids, image = sample["input_ids"], model.config.image_token_id
    text = ids[ids != image]
    slots = torch.full((int(model.geometry.num_tokens_of_grid(torch.tensor([[step, step]]))[0]),), image)
    one = {
        "input_ids": torch.cat([text[:2], slots, text[2:]]),
        "labels": torch.cat([torch.full((2 + len(slots),), -100), text[2:]]),
        "pixel_values": sample["pixel_values"][: step**2],
        "image_grid_hw": torch.tensor([[step, step]]),
        "teacher_pixel_values": sample["teacher_pixel_values"],
    }
    assert mean(model(**tiny.padded([one])), "next_patch_loss") == 0


def test_distillation_is_what_a_loop_says():
    model = supervised([DISTILLATION])
    teacher, batch = model.teacher, tiny.samples(model, [2, 0, 1])
    assert teacher.depth == 2 and model.supervisions["distillation"].taps == (0, 1, 2)
    expected, side = 0.0, teacher.grid.side
    for sample in batch:
        if not len(sample["image_grid_hw"]):
            continue
        states = hidden_states(model, sample)
        pixels = (sample["teacher_pixel_values"] / 255 - torch.tensor(teacher.grid.mean).view(3, 1, 1)) / torch.tensor(
            teacher.std
        ).view(3, 1, 1)
        inner = teacher.backbone(pixels, output_hidden_states=True).hidden_states
        start = 0
        for number, (rows, columns) in enumerate(model.geometry.token_grid_of(sample["image_grid_hw"]).tolist()):
            top, left = (side - rows) // 2, (side - columns) // 2
            losses = []
            for layer in range(3):
                square = inner[layer][number, 1:].view(side, side, -1)[top : top + rows, left : left + columns].flatten(0, 1)
                norm, linear = model.distillation[layer]
                x = states[layer][start : start + rows * columns]
                x = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
                losses.append((1 - torch.cosine_similarity(x @ linear.weight.T, square, dim=-1)).mean())
            expected = expected + torch.stack(losses).mean()
            start += rows * columns
    output = model(**tiny.packed([batch[:2], batch[2:]]))
    assert_close(mean(output, "distillation_loss"), expected, rtol=1e-4, atol=1e-5)
    assert_close(output.loss, output.language_loss + 2 * expected / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["b_image", "b_two"])
def test_distillation_has_the_numbers_of_vora(name):
    batch, weights = load_file(VORA / f"{name}.safetensors"), load_file(VORA / "weights" / "model.safetensors")
    metrics = json.loads((VORA / "results.json").read_text())["batches"][name]["metrics"]
    targets = [batch[f"teacher_{i}"].flatten(0, 1) for i in range(4)]
    predictions = [batch[f"aux_pred_{i}"].flatten(0, -2) for i in range(4)]
    images = len(batch["teacher_0"])
    image = torch.arange(images).repeat_interleave(batch["teacher_0"].shape[1])
    for i in range(4):
        loss = patch_alignment_loss(predictions[i], targets[i], image, images) / images
        assert loss.item() == pytest.approx(metrics[f"loss_aux_layer_{i}"], abs=2e-6)
    total = distillation_loss(predictions, targets, image, images) / images
    assert total.item() == pytest.approx(metrics["total_loss"] - metrics["llm_loss"], abs=5e-6)

    heads = LayerwiseHeads(64, 32, 4)
    prefix = "aux_vision.aux_layer_"
    heads.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    for state, hidden in ((0, batch["vision_embeds"].flatten(0, 1)), (2, batch["hidden_2"][batch["vision_mask"].bool()])):
        assert_close(heads[state](hidden), predictions[state], rtol=0, atol=2e-6)


@pytest.mark.parametrize("entries", [None, [ALIGNMENT], [NEXT], [DISTILLATION], [TRAINED], ALL], ids=str)
def test_packed_samples_are_as_alone(entries):
    model = supervised(entries)
    samples = tiny.samples(model, [2, 0, 1, 1])
    counts = {"num_targets": 50, "num_images": 4}
    alone, expected = tiny.gradients(model, *(tiny.padded([sample]) for sample in samples), **counts)
    (packed,), gradients = tiny.gradients(model, tiny.packed([samples[:2], samples[2:]]), **counts)
    assert {TERMS[part] for part in model.supervisions} <= packed.terms.keys()
    for name, term in packed.terms.items():
        assert_close(term.total, sum(output.terms[name].total for output in alone), rtol=1e-4, atol=1e-5)
    assert_close(packed.loss, sum(output.loss for output in alone), rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
        if name.split(".")[0] in model.supervisions:
            assert gradient.any(), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_blocks_change_nothing(checkpointing):
    model = supervised(ALL).train()
    model.recompute_blocks(checkpointing)
    batch = tiny.packed([tiny.samples(model, [1, 1])])
    (output,), gradients = tiny.gradients(model, batch)
    model.recompute_blocks(False)
    (expected,), right = tiny.gradients(model, batch)
    assert_close(output.loss, expected.loss)
    for name, gradient in right.items():
        assert_close(gradients[name], gradient, msg=name)


def test_the_keys_of_patch_alignment_mean_the_same_as_its_entry():
    old, new = (
        tiny.model(seed=0, **keys) for keys in ({"alignment_weight": 0.3}, {"supervision": [ALIGNMENT | {"weight": 0.3}]})
    )
    torch.manual_seed(1)
    old.attach_teacher(tiny.teacher(), ALIGNMENT["aligner"])
    torch.manual_seed(1)
    new.attach_teacher(tiny.teacher())
    assert old.config.aligner == new.config.aligner and old.state_dict().keys() == new.state_dict().keys()
    batch = tiny.packed([tiny.samples(old, [1, 1])])
    (a,), ours = tiny.gradients(old, batch)
    (b,), theirs = tiny.gradients(new, batch)
    assert a.loss == b.loss and a.alignment_loss == b.alignment_loss
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_nothing_is_read_for_an_empty_list(monkeypatch):
    model = tiny.model(supervision=[])
    model.attach_supervision()
    output = model(**tiny.packed([tiny.samples(model, [1])]))
    assert output.terms.keys() == {"language_loss", "token_accuracy"} and output.loss == output.language_loss


@pytest.mark.parametrize("entries", [[NEXT], [TRAINED], ALL], ids=str)
def test_batches_without_images_give_every_weight_a_gradient_of_zero(entries):
    """As all processes of FSDP2 must do the same."""
    model = supervised(entries)
    batch = tiny.packed([tiny.samples(model, [0, 0])])
    (output,), gradients = tiny.gradients(model, batch)
    for part in model.supervisions:
        assert mean(output, TERMS[part]) == 0
        for name, _ in model.named_parameters():
            if name.startswith(f"{part}."):
                assert not gradients[name].any(), name


def test_saved_and_loaded(tmp_path):
    model = supervised(ALL)
    model.save_pretrained(tmp_path)
    files = {file.name for file in tmp_path.glob("*.safetensors")}
    assert files == {"model.safetensors", "aligner.safetensors", "next_patch.safetensors", "distillation.safetensors"}
    assert not any(key.startswith(tuple(TERMS)) for key in load_file(tmp_path / "model.safetensors"))
    again = EveForConditionalGeneration.from_pretrained(tmp_path)
    assert not again.supervisions and again.config.supervision == ALL
    again.attach_supervision(model.teacher)
    assert again.load_heads(tmp_path) == []
    batch = tiny.packed([tiny.samples(model, [1, 1])])
    assert_close(again(**batch).loss, model(**batch).loss)
    (tmp_path / "next_patch.safetensors").unlink()
    assert again.load_heads(tmp_path) == ["next_patch"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "next_path"}], "unknown supervision 'next_path'; known: .*next_patch"),
        ([{"name": "next_patch", "depth": 2}], "supervision 'next_patch' has no argument 'depth'"),
        ([{"weight": 1.0}], "the supervision needs a 'name'"),
        (["next_patch"], "the supervision needs a 'name'"),
        ([NEXT, NEXT], "'next_patch' stands there twice"),
        ([{"name": "next_patch", "weight": -1}], "the weight of 'next_patch' must be a number of at least 0, got -1"),
        ([{"name": "next_patch", "weight": "1"}], "the weight of 'next_patch' must be a number"),
        ([{"name": "patch_alignment", "aligner": {"name": "layerwise", "interval": 3}}], "aligner 'layerwise' .*'interval'"),
        ([{"name": "patch_alignment", "aligner": {"name": "none"}}], "unknown aligner 'none'"),
    ],
)
def test_impossible_entries(entries, message):
    with pytest.raises(ConfigError, match=message):
        check_entries(entries)


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(ConfigError, match="supervision 'distillation' needs a teacher"):
        tiny.model(supervision=[DISTILLATION]).attach_supervision()
    deep = tiny.model(supervision=[DISTILLATION])
    deep.config.text_config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match="hidden state 2 has no counterpart in a decoder of 1 layers"):
        deep.attach_supervision(tiny.teacher())
    model = supervised([DISTILLATION])
    batch = tiny.packed([tiny.samples(model, [1])])
    del batch["teacher_pixel_values"]
    with pytest.raises(LitEveError, match="the batch has no teacher_pixel_values"):
        model(**batch)


def test_one_of_your_own(monkeypatch, tmp_path):
    class Length(Supervision):
        term, per = "length_loss", "tokens"

        def __init__(self, hidden_size: int, target: float = 1.0) -> None:
            self.head, self.target, self.taps = nn.Linear(hidden_size, 1), target, (1,)

        def positions(self, images):
            return images.layout.token_position

        def loss(self, images, hidden, teacher):
            return (self.head(hidden[0]).float() - self.target).square().sum()

    monkeypatch.setitem(SUPERVISIONS._variants, "length", Length)
    model = supervised([{"name": "length", "weight": 0.1}, NEXT])
    batch = tiny.packed([tiny.samples(model, [1, 1])])
    output = model(**batch)
    term = output.terms["length_loss"]
    assert term.per == "tokens" and term.weight == 0.1
    expected = output.language_loss + 0.1 * term.total / len(batch["target_positions"])
    assert_close(output.loss, expected + 0.5 * mean(output, "next_patch_loss") / 2)
    assert model.config.imports == {"supervision.length": Length.__module__}
    model.save_pretrained(tmp_path)
    assert (tmp_path / "length.safetensors").exists()
    monkeypatch.delitem(SUPERVISIONS._variants, "length")
    again = EveForConditionalGeneration.from_pretrained(tmp_path)  # inference needs it not
    with pytest.raises(ConfigError, match=f"this model needs the supervision 'length' from `{Length.__module__}`"):
        again.attach_supervision()
    for taken in ("projector", "model"):
        monkeypatch.setitem(SUPERVISIONS._variants, taken, Length)
        with pytest.raises(ConfigError, match=f"supervision '{taken}': the model has a part of that name"):
            tiny.model(supervision=[{"name": taken}]).attach_supervision()


@pytest.mark.parametrize("name", ["patch_alignment", "trained_teacher"])
def test_an_aligner_of_your_own_inside_an_entry(monkeypatch, tmp_path, name):
    class Last(LayerwiseAligner):
        pass

    monkeypatch.setitem(ALIGNERS._variants, "last", Last)
    model = tiny.model(supervision=[{"name": name, "aligner": {**ALIGNMENT["aligner"], "name": "last"}}])
    model.attach_supervision(tiny.teacher())
    assert model.config.imports[f"supervision.{name}.aligner"] == Last.__module__
    model.save_pretrained(tmp_path / "model")
    monkeypatch.delitem(ALIGNERS._variants, "last")
    again = EveForConditionalGeneration.from_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"this model needs the aligner 'last' from `{Last.__module__}`"):
        again.attach_supervision(tiny.teacher())
