from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_eve.errors import LitEveError
from lit_eve.interpretation.alignment import _beside_the_teacher, cka_figure, cosine_figure, teacher_cka, teacher_cosine
from lit_eve.models import EveForConditionalGeneration
from lit_eve.processing import EveProcessor, Sample
from tests.models import tiny
from tests.tiny_model import make_tiny, scene_image

IMAGES = [scene_image(0), scene_image(3)]
SAMPLES = [Sample(f"s{seed}", [{"role": "user", "content": "<image>what?"}], [scene_image(seed)]) for seed in range(5)]
SAMPLES.insert(1, Sample("text", [{"role": "user", "content": "what?"}]))
SAMPLES.insert(3, Sample("two", [{"role": "user", "content": "where?<image>or<image>"}], IMAGES))


def make_model(decoder: str = "llama") -> tuple[EveForConditionalGeneration, EveProcessor]:
    model, processor = make_tiny(decoder)
    torch.manual_seed(1)
    model.attach_teacher(tiny.teacher(), {"name": "layerwise", "layer_interval": 1, "num_heads": 4})
    for parameter in model.aligner.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval(), processor


@torch.no_grad()
def reference(
    model: EveForConditionalGeneration, processor: EveProcessor, sample: Sample
) -> tuple[list[list[list[torch.Tensor]]], list[list[torch.Tensor]]]:
    """Hidden states and the teacher's features of each teacher patch, image by image and row by row; a token is a patch."""
    inputs = dict(processor(conversation=[sample.conversation], images=[list(sample.images)]))
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    slots = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.config.image_mean, model.config.image_std))
    states, features = [], []
    for image in sample.images:
        pixels = (model.teacher.grid.canvas(image, model.geometry) / 255 - mean) / std
        square = model.teacher(pixels[None])[0].view(8, 8, -1)
        rows, columns = model.geometry.cell_grid(*image.size)
        above, left = (8 - rows) // 2, (8 - columns) // 2
        slots.pop(0)
        for row in range(rows):
            for column in range(columns):
                place = slots.pop(0)
                states.append([state[0, place] for state in hidden])
                features.append(square[above + row, left + column])
            slots.pop(0)
    return states, features


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
@torch.no_grad()
def test_cosines_are_those_between_aligner_and_teacher(decoder: str) -> None:
    model, processor = make_model(decoder)
    maps = teacher_cosine(model, processor, IMAGES)
    states, features = reference(model, processor, Sample("both", [{"role": "user", "content": "<image><image>"}], IMAGES))
    assert [tuple(one.shape) for one in maps] == [model.geometry.cell_grid(*image.size) for image in IMAGES]
    found = torch.cat([one.flatten() for one in maps]).tolist()
    for cosine, own, target in zip(found, states, features, strict=True):
        prediction = model.aligner([own[tap][None] for tap in model.aligner.taps])[0]
        expected = prediction @ target / prediction.norm() / target.norm()
        assert cosine == pytest.approx(expected.item(), abs=1e-5)
    assert np.std(found) > 0.01
    conversation = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"}]
    encoded = processor.encode_sample(Sample("one", conversation, IMAGES[1:]), teacher=model.teacher.grid)
    encoded |= {"input_ids": encoded["input_ids"][None], "labels": encoded["labels"][None]}
    (alone,) = teacher_cosine(model, processor, IMAGES[1:])
    assert 1 - alone.mean().item() == pytest.approx(model(**encoded).alignment_loss.item(), abs=1e-5)


@torch.no_grad()
def test_cosines_are_of_whole_images_whatever_else_the_model_was_trained_with() -> None:
    """No other supervision changes what the decoder reads, and a schedule that ended the alignment ends nothing here."""
    alone, processor = make_model()
    model, _ = make_model()
    aligner = {"name": "layerwise", "layer_interval": 1, "num_heads": 4}
    alignment = {"name": "patch_alignment", "aligner": aligner, "weight": [[0.0, 1.0], [0.5, 0.0]]}
    model.config.supervision = [{"name": "masked_patches"}, alignment]
    model.attach_supervision(alone.teacher)
    model.aligner.load_state_dict(alone.aligner.state_dict())
    ours, theirs = (teacher_cosine(one.eval(), processor, IMAGES) for one in (model, alone))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """By the definition: HSIC of centred Gram matrices."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = (centre @ values @ values.T @ centre for values in (x, y))  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_cka_is_that_of_gram_matrices(decoder: str, capsys: pytest.CaptureFixture) -> None:
    model, processor = make_model(decoder)
    found = teacher_cka(model, processor, SAMPLES)
    assert "reading" in capsys.readouterr().out
    assert found.states == [0, 1, 2, 3] and [reason.split(":")[0] for reason in found.skipped] == ["text"]
    parts = [reference(model, processor, sample) for sample in SAMPLES if sample.images]
    states = [[vector.double().numpy() for vector in patch] for part, _ in parts for patch in part]
    features = np.stack([vector.double().numpy() for _, part in parts for vector in part])
    grids = [model.geometry.cell_grid(*image.size) for sample in SAMPLES for image in sample.images]
    assert found.patches == len(features) == sum(rows * columns for rows, columns in grids)
    generator = np.random.default_rng(0)
    for state in range(4):
        own = np.stack([patch[state] for patch in states])
        assert found.cka[state].item() == pytest.approx(cka(own, features), abs=1e-6)
        dealt = [cka(own, generator.permutation(features)) for _ in range(20)]
        assert abs(found.chance[state].item() - np.mean(dealt)) < 5 * np.std(dealt) / 20**0.5 + 1e-6
    last = teacher_cka(model, processor, SAMPLES, states=[-1], progress=None)
    assert last.states == [3] and last.cka[0] == found.cka[3]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("geometry", [tiny.GEOMETRY, tiny.HD_GEOMETRY], ids=["token", "4 tokens"])
@torch.no_grad()
def test_packed_samples_are_seen_as_if_alone(geometry: dict[str, int]) -> None:
    model = tiny.model("qwen3", with_teacher=True, geometry=geometry).eval()
    samples = tiny.samples(model, [1, 2, 0, 1])
    batch = tiny.packed([samples[:2], samples[2:]])
    given: list[torch.Tensor] = []  # to the aligner, one per tap
    handle = model.aligner.register_forward_pre_hook(lambda _, arguments: given.extend(arguments[0]))
    seen = _beside_the_teacher(model, batch)
    handle.remove()
    for tap, features in zip(model.aligner.taps, given, strict=True):
        assert torch.equal(seen.hidden[tap], features)
    assert torch.equal(batch["labels"], tiny.packed([samples[:2], samples[2:]])["labels"])
    alone = [_beside_the_teacher(model, tiny.packed([[sample]])) for sample in samples if len(sample["image_grid_hw"])]
    torch.testing.assert_close(seen.predictions, torch.cat([one.predictions for one in alone]), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(seen.targets, torch.cat([one.targets for one in alone]), atol=1e-4, rtol=1e-3)
    for state in range(5):
        torch.testing.assert_close(seen.hidden[state], torch.cat([one.hidden[state] for one in alone]), atol=1e-4, rtol=1e-3)
    assert not any(module._forward_hooks for module in (model.aligner, model.teacher))


def test_figures_show_every_model() -> None:
    model, processor = make_model()
    maps = teacher_cosine(model, processor, IMAGES)
    figure = cosine_figure(IMAGES, {"one": maps, "two": [-one for one in maps]}, 1)
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["image", f"one\n{maps[1].mean():.2f}", f"two\n{-maps[1].mean():.2f}"]
    heats = [axis.get_images()[1] for axis in figure.axes[1:3]]
    assert np.array_equal(heats[0].get_array(), maps[1]) and heats[0].get_clim() == heats[1].get_clim()
    assert heats[0].get_clim()[0] <= -maps[1].abs().max() < 0 and heats[0].get_clim()[1] == 1
    curve = teacher_cka(model, processor, SAMPLES, progress=None)
    (axis,) = cka_figure({"one": curve, "two": curve}).axes
    assert [line.get_label() for line in axis.lines][::2] == ["one", "two", "by chance"]
    assert np.array_equal(axis.lines[0].get_ydata(), curve.cka) and np.array_equal(axis.lines[1].get_ydata(), curve.chance)


def test_what_cannot_be_compared_is_refused() -> None:
    bare, processor = make_tiny()
    for call in (lambda: teacher_cosine(bare, processor, IMAGES), lambda: teacher_cka(bare, processor, SAMPLES, progress=None)):
        with pytest.raises(LitEveError, match="the model has no teacher: lit_eve.load"):
            call()
    model, processor = make_model()
    with pytest.raises(LitEveError, match="no image to look at"):
        teacher_cosine(model, processor, [])
    with pytest.raises(LitEveError, match="the model is in training mode"):
        teacher_cosine(model.train(), processor, IMAGES)
    model.eval()
    with pytest.raises(LitEveError, match="there is no hidden state 4: there are 4"):
        teacher_cka(model, processor, SAMPLES, states=[4])
    with pytest.raises(LitEveError, match="no sample can be used: text: the sample has no image"):
        teacher_cka(model, processor, SAMPLES[1:2], progress=None)
    with pytest.raises(LitEveError, match="no sample can be used: there is none"):
        teacher_cka(model, processor, [], progress=None)
    torch.nn.init.zeros_(model.projector[-1].weight)
    with pytest.raises(LitEveError, match="hidden state 0 or the teacher is the same at all 64 patches"):
        teacher_cka(model, processor, SAMPLES[:1], progress=None)
    maps = [torch.zeros(8, 8)]
    with pytest.raises(LitEveError, match="one has maps over 1 images, but 2 are given"):
        cosine_figure(IMAGES, {"one": maps})
    with pytest.raises(LitEveError, match="there is no image 1: there are 1"):
        cosine_figure(IMAGES[:1], {"one": maps}, 1)
    for draw in (lambda: cosine_figure(IMAGES, {}), lambda: cka_figure({})):
        with pytest.raises(LitEveError, match="to draw"):
            draw()
