"""Packing, generation and saving, the same for every decoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText

from lit_eve.errors import LitEveError
from tests.models import tiny

decoders = pytest.mark.parametrize("decoder", tiny.DECODERS)


@decoders
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": False, "num_beams": 3}], ids=["greedy", "beams"])
def test_a_left_padded_batch_is_answered_as_one_by_one(decoder, options):
    model = tiny.model(decoder).eval()
    rows = tiny.samples(model, [1, 2, 0, 1])
    inputs = [
        {k: v for k, v in b.items() if k not in ("labels", "teacher_pixel_values")}
        for b in (tiny.padded(rows, "left"), *(tiny.padded([row]) for row in rows))
    ]
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0, **options}
    together, *alone = [model.generate(**i, **settings)[:, i["input_ids"].shape[1] :] for i in inputs]
    assert together.tolist() == torch.cat(alone).tolist()


def test_several_sampled_answers_see_the_images_of_their_own_prompt():
    model = tiny.model().eval()
    rows = tiny.samples(model, [2, 0, 1])
    inputs = tiny.padded(rows, "left")
    del inputs["labels"], inputs["teacher_pixel_values"]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "do_sample": True, "temperature": 1e-4}
    one = model.generate(**inputs, **settings)
    three = model.generate(**inputs, **settings, num_return_sequences=3)
    assert three.tolist() == one.repeat_interleave(3, 0).tolist()


def test_images_are_embedded_once_per_generation(monkeypatch):
    model, calls = tiny.model().eval(), []
    embed = model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda *args: calls.append(1) or embed(*args))
    inputs = tiny.padded(tiny.samples(model, [1]))
    del inputs["labels"], inputs["teacher_pixel_values"]
    model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    assert len(calls) == 1


@decoders
def test_saved_and_loaded_it_is_the_same_model(decoder, tmp_path):
    model = tiny.model(decoder, with_teacher=True).eval()
    batch = tiny.packed([tiny.samples(model, [1, 0, 2])])
    expected = model(**batch, logits_to_keep=0)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert_close(again(**batch, logits_to_keep=0).logits, expected.logits)
    again.attach_teacher(model.teacher)
    assert again.load_heads(tmp_path) == []
    assert_close(again(**batch).alignment_loss, expected.alignment_loss)
    assert again.config.patch_embedding == model.config.patch_embedding
    assert again.config.aligner == model.config.aligner


@decoders
def test_activation_checkpointing_changes_nothing(decoder):
    model = tiny.model(decoder, with_teacher=True).train()
    batch = tiny.packed([tiny.samples(model, [1, 0, 2])])
    _, expected = tiny.gradients(model, batch)
    model.recompute_blocks()
    _, got = tiny.gradients(model, batch)
    for key, value in expected.items():
        assert_close(got[key], value, rtol=1e-4, atol=1e-6)


def test_a_frozen_decoder_still_carries_gradients_to_the_patch_embedding():
    model = tiny.model(with_teacher=True)
    model.language_model.requires_grad_(False)
    _, got = tiny.gradients(model, tiny.packed([tiny.samples(model, [1, 1])]))
    assert got["patch_embedding.patch_projection.weight"].abs().sum() > 0
    assert not any(key.startswith("language_model") for key in got)


def test_a_batch_without_images_skips_the_teacher_and_touches_every_trained_module(monkeypatch):
    model = tiny.model(with_teacher=True)
    monkeypatch.setattr(model.teacher, "forward", lambda *_: pytest.fail("the teacher ran"))
    (output,), got = tiny.gradients(model, tiny.packed([tiny.samples(model, [0, 0])]))
    assert output.alignment_loss == 0
    assert output.loss == output.language_loss
    assert set(got) == {key for key, p in model.named_parameters() if p.requires_grad}


def test_no_supervised_token_is_a_loss_of_zero_and_no_nan():
    model = tiny.model(with_teacher=True)
    batch = tiny.packed([tiny.samples(model, [1])])
    batch["labels"].fill_(-100)
    batch.pop("target_positions")
    (output,), got = tiny.gradients(model, batch)
    assert output.language_loss == 0
    assert all(value.isfinite().all() for value in got.values())


def test_wrong_number_of_image_slots():
    model = tiny.model()
    batch = tiny.packed([tiny.samples(model, [1])])
    batch["input_ids"][0, (batch["input_ids"][0] == model.config.image_token_id).nonzero()[0]] = 5
    with pytest.raises(LitEveError, match="number of image slots"):
        model(**batch)


@pytest.mark.parametrize("change", [{"pixel_values": None, "image_grid_hw": None}, {"image_grid_hw": None}])
def test_image_slots_without_images_are_refused(change):
    model = tiny.model()
    with pytest.raises(LitEveError, match="image"):
        model(**tiny.packed([tiny.samples(model, [1])]) | change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_losses_are_computed_in_float32(dtype):
    model = tiny.model(with_teacher=True)
    batch = tiny.packed([tiny.samples(model, [1, 2, 0])])
    expected = model(**batch)
    output = model.to(dtype)(**batch)
    assert output.loss.dtype == output.language_loss.dtype == output.alignment_loss.dtype == torch.float32
    assert_close(output.loss, expected.loss, rtol=0.03, atol=0.03)


def test_validation_counts_what_was_predicted_right():
    model = tiny.model().eval()
    batch = tiny.packed([tiny.samples(model, [1, 0])])
    output = model(**batch, logits_to_keep=0)
    right = output.logits.flatten(0, 1).argmax(-1)[batch["target_positions"]]
    assert output.num_correct == (right == batch["labels"].flatten()[batch["target_positions"] + 1]).sum()
    assert model.train()(**batch).num_correct == output.num_correct


def test_a_geometry_without_class_and_split_tokens():
    geometry = tiny.GEOMETRY | {"class_token": False, "split_token": False}
    model = tiny.model(with_teacher=True, geometry=geometry)
    output = model(**tiny.packed([tiny.samples(model, [1, 2])]))
    assert output.loss.isfinite()


@decoders
def test_casts_leave_the_rotary_frequencies_exact(decoder):
    model = tiny.model(decoder)
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    assert exact
    model.bfloat16().to("cpu")
    for name, buffer in exact.items():
        found = model.get_buffer(name)
        assert found.dtype == torch.float32 and torch.equal(found, buffer), name
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_the_head_is_that_of_the_model_after_it_was_replaced_copied_or_frozen():
    model = tiny.model("qwen3").eval()
    batch = tiny.padded(tiny.samples(model, [1, 0]))
    hidden = model(**batch, logits_to_keep=0, output_hidden_states=True).hidden_states[-1]
    again = copy.deepcopy(model)
    model.resize_token_embeddings(70)
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    for one in (model, again):
        assert_close(one(**batch, logits_to_keep=0).logits, one.get_output_embeddings()(hidden))
