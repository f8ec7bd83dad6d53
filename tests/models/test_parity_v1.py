"""lit_eve computes what the official EVE v1 code computes, on the same weights and inputs (float32, CPU)."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from lit_eve.models.splice import ImageLayout, TeacherCells, splice
from lit_eve.processing import TeacherGrid
from lit_eve.processing.images import normalize_pixels
from tests.models import reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
BATCHES = ["b1_image", "b1_text", "b4_mixed", "b4_plain", "b2_equal"]


def ids(model) -> tuple:
    return model.geometry, model.config.image_token_id


def test_normalised_pixels(model):
    lut = reference.tensors("pixels")["lut"]  # (3, 256): the official value of each uint8 value
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256)
    ours = normalize_pixels(pixels, model.config.image_mean, model.config.image_std, torch.float32)
    assert_close(ours[0], lut, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image", ["wide", "tall", "square", "extreme"])
def test_patch_tokens_and_projector(model, image):
    patches, grid = reference.patches_of(image)
    expected = reference.tensors("vision")
    assert (grid // 2).tolist() == expected[f"{image}.patch_hw"].tolist()
    height, width = (grid // 2).tolist()
    image_of_token = torch.zeros(height * width, dtype=torch.long)

    def in_order(tokens):
        rows = rearrange(tokens.tokens, "(h w) d -> h w d", h=height)
        rows = torch.cat([rows, tokens.split.expand(height, 1, -1)], dim=1)
        return torch.cat([tokens.classes, rows.flatten(0, 1)])

    pixels = patches.unflatten(1, (3, -1))
    pixels = normalize_pixels(pixels, model.config.image_mean, model.config.image_std, torch.float32).flatten(1)
    before = in_order(model.patch_embedding(pixels, image_of_token, 1))
    assert_close(before, expected[f"{image}.before_projector"], rtol=0, atol=1e-5)
    assert_close(
        in_order(model.embed_images(patches, image_of_token, 1)), expected[f"{image}.after_projector"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", BATCHES)
def test_spliced_embeddings(model, name):
    batch, expected = reference.padded_batch(name, *ids(model)), reference.tensors(name)
    layout = ImageLayout.of(batch["input_ids"], batch["image_grid_hw"], len(batch["pixel_values"]), *ids(model))
    tokens = model.embed_images(batch["pixel_values"], layout.image_of_token, len(batch["image_grid_hw"]))
    embeds = splice(model._embed_text(batch["input_ids"]), layout, *tokens)
    real = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"], expected["labels"])
    assert_close(embeds[real], expected["inputs_embeds"][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [reference.padded_batch, reference.packed_batch], ids=["padded", "packed"])
@pytest.mark.parametrize("name", BATCHES)
def test_losses(model, name, make):
    output = model(**make(name, *ids(model)))
    expected = reference.results()["batches"][name]
    assert output.language_loss.item() == pytest.approx(expected["llm_loss"]["value"], abs=LOSS)
    assert output.alignment_loss.item() == pytest.approx(expected["clip_loss"]["value"], abs=LOSS)
    assert output.loss.item() == pytest.approx(expected["total_loss"]["value"], abs=LOSS)
    assert output.logits is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["b1_image", "b1_text", "b4_mixed", "b4_plain"])
def test_logits_and_hidden_states(model, name, attention):
    model.set_attn_implementation(attention)
    batch, expected = reference.padded_batch(name, *ids(model)), reference.tensors(name)
    output = model(**batch, logits_to_keep=0, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert_close(output.hidden_states[-1][real], expected["hidden_last"][real], rtol=0, atol=LOGITS)
    if "hidden_4" in expected:
        assert_close(output.hidden_states[4][real], expected["hidden_4"][real], rtol=0, atol=LOGITS)
    if "logits" in expected:
        assert_close(output.logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
    else:
        rows, columns = expected["logits_supervised_pos"].unbind(1)
        assert_close(output.logits[rows, columns], expected["logits_supervised"], rtol=0, atol=LOGITS)
        assert_close(output.logits.logsumexp(-1)[real], expected["logits_logsumexp"][real], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("name", ["b1_image", "b4_mixed", "b4_plain"])
def test_teacher_targets_and_predictions(model, name, monkeypatch):
    seen = {}
    from lit_eve.models.supervision import patch_alignment as eve

    original = eve.patch_alignment_loss
    monkeypatch.setattr(
        eve, "patch_alignment_loss", lambda *a: seen.update(zip(["pred", "target", "image"], a, strict=False)) or original(*a)
    )
    model(**reference.padded_batch(name, *ids(model)))
    expected, images = reference.tensors(name), [i for i, image in enumerate(reference.SAMPLES[name]) if image]
    for count, index in enumerate(images):
        mine = seen["image"] == count
        assert_close(seen["pred"][mine], expected[f"clip_pred.{index}"], rtol=0, atol=LOGITS)
        assert_close(seen["target"][mine], expected[f"clip_target.{index}"], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("make", [reference.padded_batch, reference.packed_batch], ids=["padded", "packed"])
@pytest.mark.parametrize("name", ["b1_image", "b1_text", "b4_mixed", "b4_plain", "b2_equal"])
def test_gradients(model, name, make):
    model(**make(name, *ids(model))).loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    expected = reference.results()["batches"][name]["grad_norms"]
    text_only = name == "b1_text"
    checked = set()
    for key, norm in expected.items():
        ours = reference.LAYOUT.import_name(key)
        if ours is None:
            continue
        # Upstream runs a text-only sample's tokens through the aligner against themselves: gradients of rounding error.
        if text_only and not ours.startswith("language_model"):
            assert ours not in gradients or gradients[ours].norm() == 0
        else:
            assert gradients[ours].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-7), ours
        checked.add(ours)
    assert checked == set(gradients)
    for key, value in reference.tensors(name).items():
        if key.startswith("grad."):
            key, rows = key.removeprefix("grad.").split("[:") if "[" in key else (key.removeprefix("grad."), None)
            ours = gradients[reference.LAYOUT.import_name(key)]
            ours = ours.view(-1, *value.shape[1:]) if value.dim() == 4 else ours
            ours = ours[: int(rows[:-1])] if rows else ours
            assert (ours - value).norm() <= GRADIENT * value.norm(), key


@pytest.mark.parametrize("image", ["wide", "tall", "square", "extreme"])
def test_greedy_tokens(model, image):
    model.eval()
    case, expected = reference.results()["generate"][image], reference.tensors("generate")
    fields = reference.image_fields([image])
    del fields["teacher_pixel_values"]
    count = int(model.geometry.num_tokens_of_grid(fields["image_grid_hw"])[0])
    prompt = torch.tensor(case["input_ids"])
    prompt, _ = reference.expand(prompt, prompt, count, model.config.image_token_id)
    for use_cache in (True, False):
        output = model.generate(
            prompt[None],
            **fields,
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert output.sequences[0, len(prompt) :].tolist() == case["new_tokens"]
        assert_close(torch.cat(output.logits), expected[f"{image}.scores"], rtol=0, atol=LOGITS)


def test_generation_of_a_left_padded_batch_equals_one_by_one(model):
    model.eval()
    images, prompts = ["wide", "tall", "square", "extreme"], []
    fields = reference.image_fields(images)
    del fields["teacher_pixel_values"]
    for count, image in zip(model.geometry.num_tokens_of_grid(fields["image_grid_hw"]).tolist(), images, strict=True):
        prompt = torch.tensor(reference.results()["generate"][image]["input_ids"])
        prompts.append(reference.expand(prompt, prompt, count, model.config.image_token_id)[0])
    length = max(map(len, prompts))
    pad = lambda x: torch.nn.functional.pad(x, (length - len(x), 0))  # noqa: E731
    tokens = model.generate(
        torch.stack([pad(p) for p in prompts]),
        attention_mask=torch.stack([pad(torch.ones_like(p)) for p in prompts]),
        **fields,
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=False,
    )
    for row, image in zip(tokens, images, strict=True):
        assert row[length:].tolist() == reference.results()["generate"][image]["new_tokens"]


def test_teacher_cells_stand_in_the_middle_of_the_canvas(model):
    batch = reference.padded_batch("b4_plain", *ids(model))
    layout = ImageLayout.of(batch["input_ids"], batch["image_grid_hw"], len(batch["pixel_values"]), *ids(model))
    cells = TeacherCells.of(layout, batch["image_grid_hw"], model.geometry, TeacherGrid(84, 14))
    mask = reference.tensors("pixels")["clip_mask"][:, 0, ::14, ::14].bool()  # (4, 6, 6) teacher patches with image
    assert cells.teacher_index.tolist() == mask.flatten().nonzero().flatten().tolist()


# ---- on a GPU, and in bfloat16

HALF_LOSS, HALF_GRADIENT = 0.005, 0.1  # relative: what rounding to 8 bits may move
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ATTENTIONS = {"packed": reference.packed_batch, "packed_sdpa": reference.packed_batch, "sdpa": reference.padded_batch}


@pytest.fixture
def exact_products():
    """Float32 means float32: no TF32, which convolutions on a GPU use by default."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def differences(model, name: str, attention: str) -> dict[str, float]:
    """How far losses (absolute) and gradients (relative to the norm of the official ones) are from the official ones."""
    model.set_attn_implementation(attention)
    batch = ATTENTIONS[attention](name, *ids(model))
    output = model(**{key: value.to(model.device) for key, value in batch.items()})
    output.loss.backward()
    expected, gradients = reference.results()["batches"][name], {}
    for key, value in reference.tensors(name).items():
        if key.startswith("grad.") and "[:" not in key:
            ours = model.get_parameter(reference.LAYOUT.import_name(key.removeprefix("grad."))).grad.cpu().float()
            gradients[key] = float((ours.view_as(value) - value).norm() / value.norm())
    return {
        "language_loss": abs(output.language_loss.item() - expected["llm_loss"]["value"]),
        "alignment_loss": abs(output.alignment_loss.item() - expected["clip_loss"]["value"]),
        "gradient": max(gradients.values()),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["b1_image", "b4_mixed"])
def test_a_gpu_computes_the_official_numbers(model, name, attention, exact_products, record_property):
    found = differences(model.cuda(), name, attention)
    for key, value in found.items():
        record_property(key, value)
    assert found["language_loss"] < 5 * LOSS and found["alignment_loss"] < 5 * LOSS and found["gradient"] < 10 * GRADIENT


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["b1_image", "b4_mixed"])
def test_bfloat16_stays_near_the_official_numbers(model, name, device, record_property):
    found = differences(model.to(device, torch.bfloat16), name, "packed")
    for key, value in found.items():
        record_property(key, value)
    expected = reference.results()["batches"][name]
    assert found["language_loss"] < HALF_LOSS * expected["llm_loss"]["value"]
    assert found["alignment_loss"] < HALF_LOSS * expected["clip_loss"]["value"]
    assert found["gradient"] < HALF_GRADIENT


@pytest.mark.gpu
@pytest.mark.parametrize("image", ["wide", "extreme"])
def test_a_gpu_answers_as_the_official_code(model, image, exact_products):
    model.cuda().eval()
    case = reference.results()["generate"][image]
    fields = reference.image_fields([image])
    del fields["teacher_pixel_values"]
    count = int(model.geometry.num_tokens_of_grid(fields["image_grid_hw"])[0])
    prompt, _ = reference.expand(*[torch.tensor(case["input_ids"])] * 2, count, model.config.image_token_id)
    inputs = {key: value.cuda() for key, value in fields.items()}
    tokens = model.generate(prompt[None].cuda(), **inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    assert tokens[0, len(prompt) :].tolist() == case["new_tokens"]
