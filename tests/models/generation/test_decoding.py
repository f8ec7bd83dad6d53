"""``generate``: every way of decoding, with images inside and outside of the vocabulary, against a loop of plain forwards."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache

from lit_eve.errors import LitEveError
from lit_eve.processing import EveProcessor
from tests.tiny_model import make_tiny, scene_image

LENGTH = 10
QUESTION = "how many red shapes are there?"


def ask(processor: EveProcessor, *counts: int, question: str = QUESTION) -> BatchFeature:
    """Prompts with so many images each."""
    return processor(
        conversation=[
            [{"role": "user", "content": [*({"type": "image", "image": scene_image(i)} for i in range(count)), question]}]
            for count in counts
        ]
    )


class World:
    """A model whose id of image slots is in the vocabulary, or not; and how it answers by plain forwards."""

    def __init__(self, outside: bool, layers: int = 3) -> None:
        self.model, self.processor = make_tiny(layers=layers)
        self.small, _ = make_tiny(seed=1)
        if outside:
            self.model.generation_config.suppress_tokens = [self.processor.image_token_id]  # so that both worlds are equal
            for model in (self.model, self.small):
                model.config.image_token_id = model.config.text_config.vocab_size + 3
            self.processor.image_token_id = self.model.config.image_token_id
        self.one, self.three = ask(self.processor, 1), ask(self.processor, 2, 0, 1)
        self.greedy = {id(inputs): self.by_hand(inputs) for inputs in (self.one, self.three)}

    @torch.no_grad()
    def by_hand(self, inputs: BatchFeature) -> Tensor:
        """The likeliest tokens (B, new), one whole forward each; the padding token behind an end."""
        model, ids, mask = self.model, inputs["input_ids"], inputs["attention_mask"]
        images = {key: inputs[key] for key in ("pixel_values", "image_grid_hw")}
        ended = torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(LENGTH):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **images).logits[:, 0]
            logits[:, model.generation_config.suppress_tokens] = -torch.inf
            new = torch.where(ended, model.generation_config.pad_token_id, logits.argmax(1))
            ended |= torch.isin(new, torch.as_tensor(model.generation_config.eos_token_id))
            ids, mask = torch.cat([ids, new[:, None]], 1), torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            if ended.all():
                break
        return ids[:, inputs["input_ids"].shape[1] :]

    def generate(self, inputs: BatchFeature | dict[str, Tensor], **options: Any) -> Tensor:
        torch.manual_seed(0)
        output = self.model.generate(**inputs, **{"max_new_tokens": LENGTH, "do_sample": False, **options})
        return output[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else output

    def check(self, inputs: BatchFeature, **options: Any) -> None:
        assert torch.equal(self.generate(inputs, **options), self.greedy[id(inputs)])


@pytest.fixture(scope="module", params=["inside", "outside"])
def world(request: pytest.FixtureRequest) -> World:
    return World(outside=request.param == "outside")


@pytest.fixture(scope="module")
def inside() -> World:
    return World(outside=False)


GREEDY = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "one beam": {"num_beams": 1},
    "only the likeliest": {"do_sample": True, "top_k": 1},
    "no penalty": {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_should_be_greedy_is(world: World, name: str) -> None:
    assert len(world.processor.batch_decode(world.greedy[id(world.three)])) == 3
    for inputs in (world.one, world.three):
        world.check(inputs, **GREEDY[name])
        cache = DynamicCache(config=world.model.config)
        world.check(inputs, past_key_values=cache) if name == "cache" else None


def test_assistants_change_nothing(world: World) -> None:
    for options in ({"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}, {"assistant_model": world.small}):
        world.check(world.one, **options)
    world.check(world.one, assistant_model=world.model)
    repeated = ask(world.processor, 1, question="USER: USER: " + QUESTION)  # "USER:" stands before the slots of the image
    copied = world.generate(repeated, prompt_lookup_num_tokens=4, max_matching_ngram_size=1)
    assert torch.equal(copied, world.by_hand(repeated))
    text = ask(world.processor, 0)
    assert torch.equal(world.generate(text, assistant_model=world.small.language_model), world.by_hand(text))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2},
        {"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "eta_cutoff": 1e-3, "epsilon_cutoff": 1e-3, "top_p": 0.8},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.3},
        {"encoder_no_repeat_ngram_size": 2},
        {"bad_words_ids": [[7, 8], [9]], "min_new_tokens": 4},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 2.0}},
    ],
    ids=lambda options: "+".join(options),
)
def test_the_id_of_slots_makes_no_difference(inside: World, options: dict[str, Any]) -> None:
    outside = World(outside=True)
    for ours, theirs in ((outside.one, inside.one), (outside.three, inside.three)):
        assert torch.equal(outside.generate(ours, **options), inside.generate(theirs, **options))


def test_embeddings_instead_of_ids(world: World) -> None:
    model = world.model
    for inputs in (world.one, world.three, ask(world.processor, 0)):
        expected = world.by_hand(inputs)
        embeds = model.embed_inputs(inputs["input_ids"], inputs["pixel_values"], inputs["image_grid_hw"])
        given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
        assert torch.equal(world.generate(given), expected)
        assert torch.equal(world.generate({**given, "input_ids": inputs["input_ids"]}), expected)
        assert torch.equal(world.generate(given, use_cache=False), expected)
        beams = world.generate(inputs, num_beams=3)
        assert torch.equal(world.generate(given, num_beams=3), beams)
        logits = model(**inputs).logits
        torch.testing.assert_close(model(**given).logits, logits)
    text = ask(world.processor, 0)
    words = model.get_input_embeddings()(text["input_ids"])
    assert torch.equal(words, model.embed_inputs(text["input_ids"]))
    prefix = torch.randn(1, 3, words.shape[2], generator=torch.Generator().manual_seed(0))  # as prompt tuning does
    learned = {"inputs_embeds": torch.cat([prefix, words], 1), "attention_mask": torch.ones(1, 3 + words.shape[1])}
    assert world.generate(learned, min_new_tokens=LENGTH).shape == (1, LENGTH)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_conversation_goes_on_from_its_cache(world: World, more: int) -> None:
    cache = DynamicCache(config=world.model.config)
    begun = world.model.generate(**world.three, max_new_tokens=4, do_sample=False, past_key_values=cache)
    turn = ask(world.processor, more, 0, more)
    answered = torch.ones_like(begun[:, world.three["input_ids"].shape[1] :])
    mask = torch.cat([world.three["attention_mask"], answered], 1)
    whole = {
        "input_ids": torch.cat([begun, turn["input_ids"]], 1),
        "attention_mask": torch.cat([mask, turn["attention_mask"]], 1),
        **_interleaved(world.three, turn, [2, 0, 1], [more, 0, more]),
    }
    expected = world.generate(whole)
    assert torch.equal(world.generate(whole, past_key_values=copy.deepcopy(cache)), expected)
    new = {**whole, **{key: turn[key] for key in ("pixel_values", "image_grid_hw")}}  # those of the new turn alone
    assert torch.equal(world.generate(new, past_key_values=copy.deepcopy(cache)), expected)
    assert torch.equal(world.generate(whole, past_key_values=copy.deepcopy(cache), num_beams=1), expected)


def _interleaved(first: BatchFeature, second: BatchFeature, *counts: list[int]) -> dict[str, Tensor]:
    """The images of two turns, row by row."""
    pieces: list[list[tuple[Tensor, Tensor]]] = []
    for turn, numbers in zip((first, second), counts, strict=True):
        grids = turn["image_grid_hw"]
        images = list(zip(turn["pixel_values"].split(grids.prod(1).tolist()), grids, strict=True))
        pieces.append([[images.pop(0) for _ in range(number)] for number in numbers])
    order = [image for rows in zip(*pieces, strict=True) for row in rows for image in row]
    return {"pixel_values": torch.cat([p for p, _ in order]), "image_grid_hw": torch.stack([g for _, g in order])}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"assistant_early_exit": 1}, "no EVE is trained to answer from an inner layer"),
        ({"stop_strings": ["red"]}, "stop_strings: transformers cannot take the vocabulary"),
        ({"assistant_model": "language_model"}, "assistant_model reads no images"),
        ({"assistant_model": "other geometry"}, "assistant_model has another geometry"),
        ({"inputs_embeds": True}, "inputs_embeds hold the images already"),
        ({"cut": True}, "the KV cache ends inside an image"),
    ],
)
def test_what_is_not_right_is_refused(inside: World, options: dict[str, Any], words: str) -> None:
    model, inputs, options = inside.model, dict(inside.one), dict(options)
    if options.get("stop_strings"):
        options["tokenizer"] = inside.processor.tokenizer
    if options.get("assistant_model") == "language_model":
        options["assistant_model"] = inside.small.language_model
    if options.get("assistant_model") == "other geometry":
        other = copy.copy(inside.small)
        other.geometry = dataclasses.replace(other.geometry, class_token=False)
        options["assistant_model"] = other
    if options.pop("inputs_embeds", None):
        inputs["inputs_embeds"] = model.embed_inputs(inputs.pop("input_ids"), inputs["pixel_values"], inputs["image_grid_hw"])
    if options.pop("cut", None):
        cache = options["past_key_values"] = DynamicCache(config=model.config)
        model(**ask(inside.processor, 1), past_key_values=cache)
        first = int((inputs["input_ids"] == model.config.image_token_id).nonzero()[0, 1])
        cache.crop(first + 2 - inputs["input_ids"].shape[1])
    with pytest.raises(LitEveError, match=words):
        model.generate(**inputs, max_new_tokens=2, **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="growing cache", marks=pytest.mark.slow),
        pytest.param({"cache_implementation": "static"}, id="static cache"),
    ],
)
def test_a_compiled_forward_gives_the_same(options: dict[str, Any]) -> None:
    world = World(outside=False, layers=1)
    compiled = torch.compile(world.model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**world.one).logits, world.model(**world.one).logits)
    try:
        world.model.forward = torch.compile(world.model.forward, backend="eager")
        world.check(world.three, **options)
    finally:
        torch.compiler.reset()
