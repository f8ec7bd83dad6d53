"""Images that are not read like text: the masks, and that every way of computing them gives the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_mask
from torch.testing import assert_close
from transformers import DynamicCache

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.models import IMAGE_ATTENTIONS, PACKED, EveForConditionalGeneration, ImageAttention, Tokens
from lit_eve.models.attention import ImageMask, PackedRows, number_images
from tests.models import tiny
from tests.models.attention.images import (
    BIDIRECTIONAL,
    both_ways,
    logits_under,
    numbers,
    sample,
    samples,
    without_labels,
)

DATA = Path(__file__).parents[2] / "data"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WINDOW = {"mistral_window": {"model_type": "mistral", **tiny.COMMON, "num_key_value_heads": 2, "sliding_window": 6}}
decoders = pytest.mark.parametrize("decoder", ["llama_gqa", "mistral_window"])


@pytest.fixture(autouse=True)
def decoder_with_a_window(monkeypatch):
    """A window that is shorter than most images."""
    monkeypatch.setattr(tiny, "DECODERS", tiny.DECODERS | WINDOW)


@IMAGE_ATTENTIONS.register("last_image")
class LastImage(ImageAttention):
    """Text sees the text before it and no image but the last ones; images see themselves and what is before them."""

    def __init__(self, images: int = 1) -> None:
        self.images = images

    def sees(self, query: Tokens, key: Tokens) -> torch.Tensor:
        near = key.place > query.place - 20
        return (key.image < 0) | (query.image >= 0) | near


EXPERTS = BIDIRECTIONAL | {"decoder_kind": {"name": "experts"}}
HIDES = {"image_attention": {"name": "last_image", "images": 2}}


def whole(mask: ImageMask, window: int | None = None) -> torch.Tensor:
    return mask.seen(lambda x: x[:, :, None], lambda x: x[:, None], window)


# ---- the masks


@pytest.mark.parametrize("name", ["b_image", "b_two", "b_pack", "b_pack3"])
def test_neos_masks(name):
    data = {key.split(".")[1]: x for key, x in load_file(DATA / "neo/masks.safetensors").items() if key.split(".")[0] == name}
    is_image = (data["modality_indicators"] >= 0)[None]
    slots = (data["image_grid_hw"].long() // 2).prod(1)
    cu_seqlens = data["seq_boundaries"].int()
    image = number_images(is_image, slots, cu_seqlens)
    mask = ImageMask.of_packed(ImageAttention(), image, cu_seqlens)
    assert torch.equal(whole(mask)[0], data["attention_mask"].bool())
    packed = PackedRows(cu_seqlens, 200, 1, is_image.shape[1], "mask", images=mask)
    assert torch.equal(packed.mask()[0, 0], data["attention_mask"].bool())
    theirs = torch.where(data["modality_indicators"] < 0, -1, data["modality_indicators"].long())
    for document in data["document_ids"].unique():  # they number images over the whole row, from 1
        inside = data["document_ids"] == document
        first = theirs[inside & (theirs > 0)].min() if (inside & (theirs > 0)).any() else 0
        assert torch.equal(image[0, inside], torch.where(theirs[inside] < 0, -1, theirs[inside] - first))


@pytest.mark.parametrize("name", ["b_image", "b_two", "b_mixed"])
def test_voras_masks_where_images_do_not_touch(name):
    data = {key.split(".")[1]: x for key, x in load_file(DATA / "vora/masks.safetensors").items() if key.split(".")[0] == name}
    image = number_images(data["vision_mask"].bool(), torch.full((int(data["n_frames"].sum()),), 16))
    real = data["padding_mask"].bool()
    mask = whole(ImageMask.of_rows(ImageAttention(), image, data["padding_mask"])) & real[:, None]
    assert torch.equal(mask[real], data["attention_mask"].bool()[real])


def test_images_that_touch_are_two():
    image = number_images(torch.tensor([[0, 1, 1, 1, 1, 0]]).bool(), torch.tensor([2, 2]))
    assert image.tolist() == [[-1, 0, 0, 1, 1, -1]]
    expected = [[1, 0, 0, 0, 0, 0], *[[1, 1, 1, 0, 0, 0]] * 2, *[[1, 1, 1, 1, 1, 0]] * 2, [1] * 6]
    assert whole(ImageMask.of_rows(ImageAttention(), image))[0].int().tolist() == expected


def test_one_image_in_front_is_a_prefix():
    """The mask of a prefix language model."""
    image = number_images(torch.tensor([[1, 1, 1, 0, 0]]).bool(), torch.tensor([3]))
    place = torch.arange(5)
    prefix = (place[None] < 3) | (place[None] <= place[:, None])
    assert torch.equal(whole(ImageMask.of_rows(ImageAttention(), image))[0], prefix)


def test_numbers_begin_anew_in_each_row_and_sample():
    is_image = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0]]).bool()
    slots = torch.tensor([2, 1, 1, 1, 2])
    assert number_images(is_image, slots).tolist() == [[0, 0, -1, 1, -1, 2], [-1, 0, 1, 1, -1, -1]]
    cu_seqlens = torch.tensor([0, 3, 6, 6, 8, 12], dtype=torch.int32)
    assert number_images(is_image, slots, cu_seqlens).tolist() == [[0, 0, -1, 0, -1, 1], [-1, 0, 0, 0, -1, -1]]


# ---- losses and gradients


@pytest.fixture(params=["samples", "mask", "sdpa", "eager"])
def implementation(request, monkeypatch) -> str:
    """An ``attn_implementation``."""
    if request.param in ("sdpa", "eager"):
        return request.param
    monkeypatch.setattr("lit_eve.models.attention.packed.sdpa_kernel", lambda device: request.param)
    return PACKED


WAYS = [(BIDIRECTIONAL, False), (BIDIRECTIONAL, True), (HIDES, False), (EXPERTS, False)]


@decoders
@pytest.mark.parametrize(
    ("implementation", "kind", "checkpointing"),
    [
        *((name, *way) for name in ("samples", "mask") for way in WAYS),
        *((name, *WAYS[0]) for name in ("sdpa", "eager")),
        *(pytest.param(name, *way, marks=pytest.mark.slow) for name in ("sdpa", "eager") for way in WAYS[1:]),
    ],
    indirect=["implementation"],
)
def test_packed_rows_give_the_losses_and_gradients_of_their_samples_alone(decoder, implementation, checkpointing, kind):
    model = tiny.model(decoder, with_teacher=True, **kind)
    tiny.assert_packed_like_alone(model, samples(model), implementation, checkpointing)


@decoders
def test_a_sample_alone_is_what_the_mask_says(decoder):
    model = tiny.model(decoder, **BIDIRECTIONAL).eval()
    window = getattr(model.config.text_config, "sliding_window", None)
    causal = tiny.model(decoder).eval()
    for row in samples(model):
        expected = logits_under(model, row, both_ways(numbers(model, row), window))
        for name in ("packed", "sdpa", "eager"):
            model.language_model.set_attn_implementation(name)
            with torch.no_grad():
                found = model(**without_labels(tiny.padded([row]))).logits[0]
            assert_close(found, expected, **CLOSE)
        with torch.no_grad():
            same = torch.allclose(causal(**without_labels(tiny.padded([row]))).logits[0], expected, **CLOSE)
        assert same == (len(row["image_grid_hw"]) == 0)


@decoders
@pytest.mark.parametrize("name", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("kind", [BIDIRECTIONAL, HIDES])
def test_rows_of_a_left_padded_batch_are_what_they_are_alone(decoder, name, kind):
    model = tiny.model(decoder, **kind).eval()
    model.language_model.set_attn_implementation(name)
    rows = samples(model)
    batch = without_labels(tiny.padded(rows, "left"))
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        for row, found in zip(rows, model(**batch, position_ids=positions).logits, strict=True):
            expected = model(**without_labels(tiny.padded([row]))).logits[0]
            assert_close(found[-len(expected) :], expected, **CLOSE)


def test_an_image_that_is_interrupted_is_still_one():
    """No processor makes such a thing; whoever does gets what the mask says."""
    model = tiny.model(**BIDIRECTIONAL).eval()
    row = sample(model, [2, (2, 2), 4])
    ids = row["input_ids"].tolist()
    row["input_ids"] = torch.tensor([*ids[:5], 7, *ids[5:]])
    expected = logits_under(model, row, both_ways(numbers(model, row)))
    row["labels"] = torch.full_like(row["input_ids"], -100)
    with torch.no_grad():
        assert_close(model(**without_labels(tiny.padded([row]))).logits[0], expected, **CLOSE)
        assert_close(model(**without_labels(tiny.packed([[row]]))).logits[0], expected, **CLOSE)


def test_the_mask_of_flex_attention():
    """Its kernel runs on GPUs; what it is told to compute is checked here."""
    model = tiny.model("llama_gqa", **BIDIRECTIONAL)
    model.language_model.set_attn_implementation("flex_attention")
    rows = samples(model)
    batch = tiny.packed([rows[:2], rows[2:]])
    image = model.number_images(batch["input_ids"], batch["image_grid_hw"], batch["cu_seqlens"])
    mask = ImageMask.of_packed(model.image_attention, image, batch["cu_seqlens"])
    with torch.compiler.set_stance("force_eager"):  # transformers would compile the counting of its blocks
        block_mask = mask.for_decoder(model.get_decoder().config, torch.zeros(*image.shape, 8))
    size = image.shape[1]
    assert torch.equal(create_mask(block_mask.mask_mod, len(image), 1, size, size, device="cpu")[:, 0], whole(mask))


@decoders
@pytest.mark.parametrize("kind", [BIDIRECTIONAL, HIDES, EXPERTS])
def test_flex_attention_computes_what_sdpa_computes(decoder, kind, monkeypatch):
    """Its own code without a compiled kernel, which is not there on CPUs for the backward pass; so torch would refuse it."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    model = tiny.model(decoder, **kind)
    rows = samples(model)
    batch, padded = tiny.packed([rows[:2], rows[2:]]), without_labels(tiny.padded(rows, "left"))
    found = {}
    for name in ("packed_sdpa", "flex_attention"):
        model.language_model.set_attn_implementation(name)
        with torch.compiler.set_stance("force_eager"):
            (output,), gradients = tiny.gradients(model, batch)
            with torch.no_grad():
                found[name] = output.loss, gradients, model(**padded).logits[padded["attention_mask"].bool()]
    for ours, theirs in zip(*found.values(), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---- generation


def greedy(model, row, steps=6, **kwargs):
    """The tokens that plain forwards without a cache choose."""
    inputs = without_labels(tiny.padded([row])) | kwargs
    for _ in range(steps):
        with torch.no_grad():
            new = model(**inputs).logits[:, -1].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new[:, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][0, -steps:].tolist()


OPTIONS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@decoders
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("packed", kind) for kind in (BIDIRECTIONAL, HIDES, EXPERTS)],
        *[("sdpa", BIDIRECTIONAL), ("eager", BIDIRECTIONAL)],
        *[pytest.param(name, kind, marks=pytest.mark.slow) for name in ("sdpa", "eager") for kind in (HIDES, EXPERTS)],
    ],
)
def test_answers_with_a_cache_are_those_without(decoder, name, kind):
    model = tiny.model(decoder, **kind).eval()
    model.language_model.set_attn_implementation(name)
    rows = samples(model)
    expected = [greedy(model, row) for row in rows]
    batch = without_labels(tiny.padded(rows, "left"))
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        found = model.generate(**batch, **OPTIONS, **options)[:, batch["input_ids"].shape[1] :]
        assert found.tolist() == expected, options


@decoders
@pytest.mark.parametrize("kind", [BIDIRECTIONAL, HIDES])
def test_beams_assistants_and_embeddings(decoder, kind):
    model, small = tiny.model(decoder, **kind).eval(), tiny.model(decoder, seed=1, **kind).eval()
    for row in samples(model):
        inputs, expected = without_labels(tiny.padded([row])), greedy(model, row)
        length = len(row["input_ids"])
        ends_in_image = row["input_ids"][-1] == model.config.image_token_id  # an assistant would begin inside of it
        if decoder not in WINDOW and not ends_in_image:  # sliding caches cannot be cut back
            assert model.generate(**inputs, **OPTIONS, assistant_model=small)[0, length:].tolist() == expected
        beams = model.generate(**inputs, **OPTIONS, num_beams=3)
        assert torch.equal(beams, model.generate(**inputs, **OPTIONS, num_beams=3, use_cache=False))
        embeds = {
            "inputs_embeds": model.embed_inputs(*(inputs[key] for key in ("input_ids", "pixel_values", "image_grid_hw"))),
            "attention_mask": inputs["attention_mask"],
        }
        with pytest.raises(LitEveError, match="give image_numbers"):
            model.generate(**embeds, **OPTIONS)
        embeds["image_numbers"] = model.number_images(inputs["input_ids"], inputs["image_grid_hw"])
        assert model.generate(**embeds, **OPTIONS)[0].tolist() == expected
        assert torch.equal(model.generate(**embeds, **OPTIONS, num_beams=3)[0], beams[0, length:])


@decoders
@pytest.mark.parametrize("kind", [BIDIRECTIONAL, HIDES])
def test_a_prompt_may_be_read_in_pieces_between_images(decoder, kind):
    model = tiny.model(decoder, **kind).eval()
    pieces = [[3, (2, 2)], [(1, 3), 2], [4], [2, (1, 2), 1]]
    parts = [sample(model, piece, seed) for seed, piece in enumerate(pieces)]
    row = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    numbered = model.number_images(row["input_ids"][None], row["image_grid_hw"])
    with torch.no_grad():
        expected = model(**without_labels(tiny.padded([row]))).logits[0]
        cache, found = DynamicCache(config=model.config.text_config), []
        for part in parts:
            inputs = {key: part[key] for key in ("pixel_values", "image_grid_hw")} | {"input_ids": part["input_ids"][None]}
            end = sum(map(len, found)) + len(part["input_ids"])
            if kind is HIDES:
                if found:
                    with pytest.raises(LitEveError, match="which tokens of the KV cache"):
                        model(**inputs, past_key_values=cache)
                inputs["image_numbers"] = numbered[:, :end]
            found.append(model(**inputs, past_key_values=cache, use_cache=True).logits[0])
    assert_close(torch.cat(found), expected, **CLOSE)


def test_a_conversation_goes_on_from_its_cache():
    for kind in (BIDIRECTIONAL, HIDES):
        model = tiny.model(**kind).eval()
        first, more = sample(model, [3, (2, 2), 2]), sample(model, [2, (1, 2), 3], seed=1)
        inputs = without_labels(tiny.padded([first]))
        out = model.generate(**inputs, **OPTIONS, return_dict_in_generate=True)
        row = {key: torch.cat([first[key], more[key]]) for key in first}
        row["input_ids"] = torch.cat([out.sequences[0], more["input_ids"]])
        row["labels"] = row["input_ids"]
        inputs = without_labels(tiny.padded([row]))
        found = model.generate(**inputs, **OPTIONS, past_key_values=out.past_key_values)
        assert found[0, len(row["input_ids"]) :].tolist() == greedy(model, row)


# ---- architecture


def test_it_is_saved_and_loaded(tmp_path):
    for kind in (BIDIRECTIONAL, HIDES):
        model = tiny.model(**kind).eval()
        model.save_pretrained(tmp_path)
        again = EveForConditionalGeneration.from_pretrained(tmp_path).eval()
        assert again.config.image_attention == kind["image_attention"] and type(again.image_attention) is type(
            model.image_attention
        )
        inputs = without_labels(tiny.padded([sample(model, [2, (2, 2), 3])]))
        with torch.no_grad():
            assert_close(again(**inputs).logits, model(**inputs).logits)
    assert again.image_attention.images == 2
    assert again.config.imports == {"image_attention": __name__}


def test_a_config_without_it_means_causal():
    assert tiny.config().image_attention == {"name": "causal"}
    assert tiny.model().image_attention.is_causal


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "both"}, "unknown image attention 'both'; known: bidirectional, causal"),
        ({"name": "bidirectional", "width": 3}, "has no argument 'width'"),
    ],
)
def test_a_typo_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model(image_attention=spec)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2", "qwen3_next"])
def test_decoders_with_an_attention_of_their_own_are_refused(family, monkeypatch):
    monkeypatch.setattr(tiny, "DECODERS", {"other": {"model_type": family}})
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=f"'bidirectional' is not for decoders of the family '{family}'"),
    ):
        EveForConditionalGeneration(tiny.config("other", **BIDIRECTIONAL))


def test_attentions_that_take_no_mask_are_refused():
    model = tiny.model(**BIDIRECTIONAL)
    row = sample(model, [2, (2, 2), 3])
    model.language_model.config._attn_implementation = "flash_attention_2"
    for batch in (tiny.padded([row]), tiny.packed([[row]])):
        with pytest.raises(LitEveError, match="'flash_attention_2' cannot let the tokens of an image see each other"):
            model(**batch)
    model.language_model.config._attn_implementation = "packed_varlen"
    with pytest.raises(LitEveError, match="packed_varlen"):
        model(**tiny.packed([[row]]))


def test_masks_and_positions_that_say_too_much_are_refused():
    model = tiny.model(**BIDIRECTIONAL)
    batch = without_labels(tiny.packed([[sample(model, [2, (2, 2), 3]), sample(model, [4])]]))
    length = batch["input_ids"].shape[1]
    inputs = {key: batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")}
    with pytest.raises(LitEveError, match="position_ids restart inside a row"):
        model(**inputs, position_ids=batch["position_ids"])
    with pytest.raises(LitEveError, match="attention_mask"):
        model(**inputs, attention_mask=torch.ones(1, 1, length, length))
    with pytest.raises(LitEveError, match="image_numbers has the shape"):
        model(**inputs, image_numbers=torch.zeros(1, 3, dtype=torch.long))


def test_masks_need_no_vmap(monkeypatch):
    """It takes 60 ms a mask, in each step of a generation."""
    monkeypatch.setattr("transformers.masking_utils._vmap_expansion_sdpa", lambda *_: pytest.fail("token by token"))
    model = tiny.model(**HIDES).eval()
    model.generate(**without_labels(tiny.padded(samples(model), "left")), **OPTIONS)


def test_text_alone_costs_no_mask(monkeypatch):
    model = tiny.model(**BIDIRECTIONAL).eval()
    monkeypatch.setattr("lit_eve.models.reading.mask_of_batch", lambda *_: pytest.fail("there is nothing to see"))
    row = sample(model, [7])
    with torch.no_grad():
        model(**without_labels(tiny.padded([row])))
        model(**without_labels(tiny.packed([[row, row]])))
