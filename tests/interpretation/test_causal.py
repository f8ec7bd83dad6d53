"""Blanked patches and ablated heads, compared with images that are painted over and weights that are zeroed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AnswerAttention, ablate_heads, attend, blank_patches, overlay
from tests.interpretation.reference import read_again
from tests.tiny_model import make_tiny, scene_image

QUESTION = "where is the red circle?"
MEAN = (123, 117, 104)  # of CLIP
CELL = 8  # pixels of a token in a tiny model's image, whose longest side is 64


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def painted(image: Image.Image, row: int, column: int, colour: tuple[int, int, int] = MEAN) -> Image.Image:
    """With one token's square in one colour."""
    image = image.copy()
    image.paste(colour, (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    return image


def ask(model, processor, *images: Image.Image) -> AnswerAttention:
    return attend(model, processor, images, QUESTION, max_new_tokens=3)


@torch.no_grad()
def test_blank_patches_are_squares_painted_over() -> None:
    model, processor = make_tiny("qwen3")
    images = [noise(64, 24), noise(16, 64, seed=1)]  # of the model's own size: nothing is resized
    seen = ask(model, processor, *images)
    found = blank_patches(model, seen, batch_size=7, progress=None)
    _, intact = read_again(model, seen)
    torch.testing.assert_close(found.intact, intact, atol=1e-4, rtol=1e-4)
    assert found.tokens == seen.tokens and [maps.shape for maps in found.blanked] == [maps.shape for maps in seen.maps]
    for index, maps in enumerate(found.blanked):
        for row, column in np.ndindex(maps.shape[1:]):
            changed = [painted(image, row, column) if other == index else image for other, image in enumerate(images)]
            _, expected = read_again(model, seen, processor(images=changed)["pixel_values"])
            torch.testing.assert_close(maps[:, row, column], expected, atol=1e-4, rtol=1e-4)
    assert found.maps[0].abs().amax((1, 2)).min() > 1e-3  # no comparison of zeros
    torch.testing.assert_close(found.drop(1, image=1), found.intact[1] - found.blanked[1][1])
    torch.testing.assert_close(found.drop(1, image=1), found.maps[1][1])
    torch.testing.assert_close(found.drop(), found.maps[0].sum(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.drop(0, probability=True), found.intact[0].exp() - found.blanked[0][0].exp())
    torch.testing.assert_close(found.drop(probability=True), intact.sum().exp() - found.blanked[0].sum(0).exp())


@torch.no_grad()
def test_normalised_pixels_are_blanked_with_the_same_colour() -> None:
    model, processor = make_tiny()
    seen = ask(model, processor, noise(64, 24))
    expected = blank_patches(model, seen, progress=None).blanked[0]
    mean, std = (torch.tensor(values)[:, None] for values in (model.config.image_mean, model.config.image_std))
    pixels = ((seen.inputs["pixel_values"].unflatten(1, (3, -1)) / 255 - mean) / std).flatten(1)
    found = blank_patches(model, replace(seen, inputs=seen.inputs | {"pixel_values": pixels}), progress=None).blanked[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "experts"])
@torch.no_grad()
def test_intact_is_what_generation_gave_the_answer(kind: str) -> None:
    model, processor = make_tiny(kind=kind)
    seen = ask(model, processor, scene_image(0))
    output = model.generate(**seen.inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(output.sequences[0, -len(seen.token_ids) :], seen.token_ids)
    expected = [output.logits[step][0].log_softmax(-1)[seen.token_ids[step]] for step in seen.steps]
    found = ablate_heads(model, seen, [0], [0], progress=None).intact
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (64, 16), (24, 64), (90, 40), (37, 300)])
def test_the_only_patch_that_is_no_background_is_found_on_its_pixels(size: tuple[int, int]) -> None:
    model, processor = make_tiny()
    rows, columns = model.geometry.token_grids(*size)[0]
    row, column = rows // 2, columns - 1
    sides = zip((column, row, column + 1, row + 1), (0.35, 0.35, -0.35, -0.35), (columns, rows) * 2, size * 2, strict=True)
    box = [round((place + inset) / count * side) for place, inset, count, side in sides]  # resizing blurs it in its own cell
    image = Image.new("RGB", size, MEAN)
    image.paste((255, 0, 0), box)
    plain = Image.new("RGB", size, MEAN)
    first, second = blank_patches(model, ask(model, processor, plain, image), progress=None).maps
    assert first.abs().max() < 1e-5  # blank already
    fall = second.abs().sum(0)  # the sign is that of random weights
    assert fall[row, column] > 1e-4
    assert divmod(fall.argmax().item(), columns) == (row, column) and fall.sum() - fall.max() < fall.max() / 10
    brightness = np.asarray(overlay(image, fall, size=4 * max(size), opacity=1.0), float).sum(-1)
    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
    left, top, right, bottom = (4 * side for side in box)
    assert top <= y < bottom and (left <= x < right or columns == 1)  # of one column all pixels of a line are alike


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
@torch.no_grad()
def test_ablated_heads_are_zero_columns_of_the_output_projection(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    seen = ask(model, processor, scene_image(0), scene_image(1))
    found = ablate_heads(model, seen, batch_size=5, progress=None)
    assert found.ablated.shape == (len(seen.tokens), 3, 4) and (found.layers, found.heads) == ([0, 1, 2], [0, 1, 2, 3])
    for layer, head in np.ndindex(3, 4):
        weight = model.get_decoder().layers[layer].self_attn.o_proj.weight
        before = weight.clone()
        weight[:, 8 * head : 8 * head + 8] = 0
        _, expected = read_again(model, seen)
        weight.copy_(before)
        torch.testing.assert_close(found.ablated[:, layer, head], expected, atol=1e-4, rtol=1e-4)
    assert found.drop(0).abs().min() > 1e-5  # each head does something
    torch.testing.assert_close(found.drop(), found.intact.sum() - found.ablated.sum(0))
    torch.testing.assert_close(found.drop(-1, probability=True), found.intact[-1].exp() - found.ablated[-1].exp())
    few = ablate_heads(model, seen, layers=[-1, 0], heads=[2], batch_size=1, progress=None)
    assert (few.layers, few.heads) == ([2, 0], [2])
    torch.testing.assert_close(few.ablated, found.ablated[:, [2, 0]][:, :, [2]], atol=1e-5, rtol=1e-4)


def test_nothing_of_the_model_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny()
    seen = ask(model, processor, scene_image(0))
    pixels = seen.inputs["pixel_values"].clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blank_patches(model, seen, progress=None)
    ablate_heads(model, seen, progress=None)
    monkeypatch.setattr("lit_eve.interpretation.causal.ForcedAnswer.log_probabilities", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ablate_heads(model, seen, progress=None)
    assert torch.equal(pixels, seen.inputs["pixel_values"]) and not ALL_ATTENTION_FUNCTIONS._local_mapping
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny()
    seen = ask(model, processor, scene_image(0))
    with pytest.raises(LitEveError, match="there is no layer 3: there are 3"):
        ablate_heads(model, seen, layers=[3])
    with pytest.raises(LitEveError, match="there is no head 4: there are 4"):
        ablate_heads(model, seen, heads=[4])
    with pytest.raises(LitEveError, match="no layer is chosen; None chooses all of them"):
        ablate_heads(model, seen, layers=[])
    for way in (blank_patches, ablate_heads):
        with pytest.raises(LitEveError, match="batch_size must be at least 1, got 0"):
            way(model, seen, batch_size=0)
        with pytest.raises(LitEveError, match="the model is in training mode"):
            way(model.train(), seen)
        model.eval()
    blanked = blank_patches(model, seen, progress=None)
    with pytest.raises(LitEveError, match=f"there is no answer token {len(seen.tokens)}: there are"):
        blanked.drop(len(seen.tokens))
    with pytest.raises(LitEveError, match="there is no image 1: there are 1"):
        blanked.drop(0, image=1)
    block = model.get_decoder().layers[1]
    monkeypatch.setattr(block.self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(LitEveError, match="the attention of some layers was not seen"):
        ablate_heads(model, seen, progress=None)


def test_patches_of_any_decoder_can_be_blanked_but_not_the_heads_of_any_ablated() -> None:
    model, processor = make_tiny()
    seen = ask(model, processor, scene_image(0))
    other, _ = make_tiny("gpt2")
    assert blank_patches(other, seen, progress=None).maps[0].abs().max() > 0
    with pytest.raises(LitEveError, match="GPT2Model: its attention cannot be recorded, as its layers have no self_attn"):
        ablate_heads(other, seen, progress=None)
