from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AttentionRecorder, attend, attend_prompts, image_maps, logit_lens, overlay, teacher_cosine
from tests.tiny_model import make_tiny, scene_image

QUESTION = "where is the red circle?"
LOOKS = [logit_lens, teacher_cosine, lambda *given: attend(*given, QUESTION)]


def test_maps_are_the_attention_at_the_slots_of_each_image() -> None:
    model, processor = make_tiny()
    inputs = processor(
        images=[[scene_image(0), scene_image(1)], [], [scene_image(2)]],
        conversation=[[{"role": "user", "content": "<image>" * count + QUESTION}] for count in (2, 0, 1)],
    )
    ids = inputs["input_ids"]
    places = torch.arange(ids.numel()).view(ids.shape).float()  # "attention" that tells where it stands
    behind = torch.cat([places, torch.full((3, 2), -1.0)], 1)  # keys of tokens that were generated
    slot = (ids == model.config.image_token_id).flatten().nonzero().flatten().tolist()
    maps = image_maps(behind, ids, inputs["image_grid_hw"], model.geometry, model.config.image_token_id)
    assert len(maps) == 3
    for found, grid in zip(maps, inputs["image_grid_hw"].tolist(), strict=True):
        rows, columns = grid[0] // 2, grid[1] // 2
        slot.pop(0)  # the class token
        expected = [[slot.pop(0) for _ in range(columns + 1)][:-1] for _ in range(rows)]  # every row ends with a split token
        assert found.tolist() == expected
    assert not slot


@pytest.mark.parametrize("decoder", ["llama", "qwen2", "qwen3"])
def test_attention_of_an_answer(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    model.generation_config.suppress_tokens += processor.tokenizer.all_special_ids  # they get no map
    image = scene_image(3)
    result = attend(model, processor, [image], QUESTION, max_new_tokens=4)
    rows, columns = model.geometry.token_grids(*image.size)[0]
    assert len(result.maps) == 1 and result.maps[0].shape == (len(result.tokens), rows, columns)
    assert result.total().shape == (rows, columns) and 0 < result.total().sum() < 1
    assert result.answer.split() == " ".join(result.tokens).split()
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    inputs = processor(conversation=[{"role": "user", "content": content}])
    with AttentionRecorder(model) as recorder:
        model(**inputs)
    (expected,) = image_maps(
        recorder.mean()[:, 0], inputs["input_ids"], inputs["image_grid_hw"], model.geometry, model.config.image_token_id
    )
    torch.testing.assert_close(result.maps[0][0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("geometry", "seen"),
    [
        ({"name": "square", "image_size": 32, "fit": "pad"}, r"padded or cropped: look at geometry.frame\(photo\)"),
        ({"name": "square", "image_size": 32, "fit": "crop"}, "padded or cropped"),
        ({"name": "tiles", "image_size": 16}, "in 3 views"),
    ],
)
def test_there_is_no_map_over_a_photo_that_is_not_seen_whole(look: Callable, geometry: dict, seen: str) -> None:
    model, processor = make_tiny(geometry={"patch_size": 4, "pool_size": 2, **geometry})
    square, wide = scene_image(0).resize((16, 16)), scene_image(0).resize((32, 16))
    with pytest.raises(LitEveError, match=f"there is no map over image 2: the geometry '{geometry['name']}' shows it {seen}"):
        look(model, processor, [square, wide])


def test_a_map_lies_on_the_frame_that_is_seen() -> None:
    model, processor = make_tiny(geometry={"name": "square", "patch_size": 4, "pool_size": 2, "image_size": 32})
    photo = scene_image(0).resize((48, 24))
    seen = attend(model, processor, [model.geometry.frame(photo)], QUESTION)
    torch.testing.assert_close(seen.inputs["pixel_values"], processor(images=[photo])["pixel_values"])
    assert seen.maps[0].shape[1:] == (4, 4)


@pytest.mark.parametrize("look", LOOKS)
def test_images_are_a_list_with_an_image_at_least(look: Callable) -> None:
    with pytest.raises(LitEveError, match="no image"):
        look(*make_tiny(), [])
    for one, kind in (("scene.png", "str"), (b"...", "bytes"), (scene_image(0), "Image"), (np.zeros((3, 8, 8)), "ndarray")):
        with pytest.raises(LitEveError, match=f"images is a list of images, not a {kind}: put one image into a list"):
            look(*make_tiny(), one)


def test_a_model_in_training_mode_is_refused() -> None:
    model, processor = make_tiny()
    model.train()
    for look in (
        lambda: attend(model, processor, [scene_image(0)], QUESTION),
        lambda: logit_lens(model, processor, [scene_image(0)]),
    ):
        with pytest.raises(LitEveError, match="the model is in training mode"):
            look()


def test_layers_and_heads_that_are_chosen_twice_or_not_at_all_are_refused() -> None:
    model, processor = make_tiny()
    for chosen, message in (([], "no head is chosen"), ([1, 0, 1], "head 1 is chosen twice")):
        with pytest.raises(LitEveError, match=message):
            attend(model, processor, [scene_image(0)], QUESTION, heads=chosen)
    with AttentionRecorder(model, rows=[0, -1]) as recorder:  # rows of a call may be the same
        model(input_ids=torch.tensor([[10]]))
    assert recorder.calls(0)[0].shape[2] == 2


def test_what_is_no_heat_map_is_refused() -> None:
    for heat in (torch.ones(2, 3, 4), torch.ones(4)):
        with pytest.raises(LitEveError, match=r"the heat map is \(H, W\), but this one has the shape"):
            overlay(scene_image(0), heat)
    for number in (-1.0, torch.nan, torch.inf):
        with pytest.raises(LitEveError, match="negative or not finite"):
            overlay(scene_image(0), torch.tensor([[1.0, number]]))


def test_the_brightest_spot_of_an_overlay_is_where_the_attention_is() -> None:
    image = scene_image(0)
    rows, columns = image.height // 8, image.width // 8
    heat = torch.full((rows, columns), 0.01)
    heat[rows - 1, 1] = 0.2
    picture = overlay(image, heat, size=4 * max(image.size), opacity=1.0)
    assert picture.mode == "RGB" and picture.size == (4 * image.width, 4 * image.height)
    brightness = np.asarray(picture, float).sum(-1)
    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (y // 32, x // 32) == (rows - 1, 1)
    assert overlay(image, torch.zeros(rows, columns)).size == image.size


def test_layers_and_heads_are_kept_when_nothing_is_reduced() -> None:
    model, processor = make_tiny()
    images = [scene_image(0), scene_image(1)]
    kept = attend(model, processor, images, QUESTION, layers=[-1, 0], heads=[1], reduce=None, max_new_tokens=3)
    mean = attend(model, processor, images, QUESTION, layers=[-1, 0], heads=[1], max_new_tokens=3)
    assert sorted(kept.layers) == [0, len(model.get_decoder().layers) - 1] and kept.heads == [1]
    for found, expected, image in zip(kept.maps, mean.maps, images, strict=True):
        grid = model.geometry.token_grids(*image.size)[0]
        assert found.shape == (len(kept.tokens), 2, 1, *grid)
        torch.testing.assert_close(found.mean((1, 2)), expected)
    assert kept.image_share.shape == kept.entropy.shape == (len(kept.tokens), 2, 1)
    with pytest.raises(LitEveError, match="there is no image 2: there are 2"):
        kept.total(2)


def test_share_and_entropy_are_those_of_the_probabilities() -> None:
    model, processor = make_tiny()
    result = attend(model, processor, [scene_image(0)], QUESTION, max_new_tokens=1)
    with AttentionRecorder(model) as recorder:
        model(**result.inputs)
    slots = (result.inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    for layer in result.layers:
        row = recorder.calls(layer)[0][0, :, 0]  # (h, K)
        for head in result.heads:
            share = sum(row[head, slot].item() for slot in slots)
            entropy = -sum(p * np.log(p) for p in row[head].tolist() if p > 0)
            assert result.image_share[0, layer, head].item() == pytest.approx(share, abs=1e-5)
            assert result.entropy[0, layer, head].item() == pytest.approx(entropy, abs=1e-4)


def test_a_word_that_was_not_generated_is_refused() -> None:
    result = attend(*make_tiny(), [scene_image(0)], QUESTION, max_new_tokens=3)
    assert result.tokens[result.step_of(result.tokens[0].upper())] == result.tokens[0]
    with pytest.raises(LitEveError, match="the word 'zebra' was not generated; the tokens are"):
        result.step_of("zebra")
    with pytest.raises(LitEveError, match="reduce is 'mean' or None, not 'max'"):
        attend(*make_tiny(), [scene_image(0)], QUESTION, reduce="max")
    with pytest.raises(LitEveError, match="there is no head 9"):
        attend(*make_tiny(), [scene_image(0)], QUESTION, heads=[9])


@pytest.mark.parametrize("reduce", ["mean", None])
def test_a_batch_of_prompts_is_attended_as_each_of_them_alone(reduce: str | None) -> None:
    model, processor = make_tiny()
    images = [[scene_image(0), scene_image(1)], [], [scene_image(2)]]
    words = [QUESTION, "how many red circles are there, and how many blue squares?", "where?"]
    asked = [[{"role": "user", "content": "<image>" * len(of) + text}] for of, text in zip(images, words, strict=True)]
    alone = [
        attend_prompts(model, processor, processor(images=[of], conversation=[one]), reduce=reduce, max_new_tokens=12)[0]
        for of, one in zip(images, asked, strict=True)
    ]
    first = [one.token_ids.tolist() for one in alone]
    model.generation_config.eos_token_id = first[0][3]  # the first answer ends early, the others go on
    alone[0] = attend_prompts(
        model, processor, processor(images=[images[0]], conversation=[asked[0]]), reduce=reduce, max_new_tokens=12
    )[0]
    assert len(alone[0].token_ids) == 4 and first[0][3] not in first[1] + first[2]
    prompts = processor(images=images, conversation=asked)
    together = attend_prompts(model, processor, prompts, reduce=reduce, max_new_tokens=12)
    for found, expected in zip(together, alone, strict=True):
        assert (found.answer, found.tokens) == (expected.answer, expected.tokens)
        assert found.token_ids.tolist() == expected.token_ids.tolist() and found.steps == expected.steps
        for key in ("input_ids", "pixel_values", "image_grid_hw"):
            assert torch.equal(found.inputs[key], expected.inputs[key])
        for name in ("image_share", "entropy"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
        assert len(found.maps) == len(expected.maps)
        for ours, theirs in zip(found.maps, expected.maps, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
