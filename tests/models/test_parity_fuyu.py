"""lit_eve computes what ``FuyuForCausalLM`` of transformers computes, from checkpoint, photo and question on (float32, CPU)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

import lit_eve
from lit_eve.errors import ConfigError, SampleError
from lit_eve.models.checkpoints.official import FuyuLayout
from lit_eve.processing import EveProcessor, Sample
from tests.models import reference as reference_v1
from tests.models import reference_fuyu as reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
SIZES = [(20, 13), (96, 54), (120, 30), (7, 5)]  # padded, exact, shrunk, one token
QUESTION, ANSWER = "What is at the cat?", "A blue cat, the cat."


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Their model and processor, and ours."""
    folder = tmp_path_factory.mktemp("fuyu")
    theirs = reference.write_checkpoint(folder)
    return theirs, reference.processor(folder), *lit_eve.load(folder)


def conversation(*turns: str) -> list[dict]:
    question = [{"type": "image"}, {"type": "text", "text": turns[0]}]
    answers = [{"role": "assistant", "content": text} for text in turns[1:]]
    return [{"role": "user", "content": question}, *answers]


def as_theirs(ids: torch.Tensor, columns: int, slot: int) -> torch.Tensor:
    """Our ids (T,) with the words that transformers has in the slots of an image."""
    slots = (ids == slot).nonzero().flatten()
    words = torch.full_like(slots, reference.SPEAKER)
    words[columns :: columns + 1] = reference.NEWLINE
    return ids.clone().index_put((slots,), words)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ids_and_pixels_of_a_prompt(both, size):
    _, theirs, model, ours = both
    photo = reference.photo(*size)
    expected = theirs(text=f"{QUESTION}\n", images=photo, return_tensors="pt", return_legacy_image_output=False)
    found = ours(conversation=conversation(QUESTION), images=[photo])
    columns = int(found["image_grid_hw"][0, 1])
    assert torch.equal(as_theirs(found["input_ids"][0], columns, ours.image_token_id), expected["input_ids"][0])
    pixels = model._normalized(found["pixel_values"], torch.float32).unflatten(1, (3, 36)).transpose(1, 2).flatten(1)
    assert_close(pixels, expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_losses_and_gradients(both, size):
    theirs, processor, model, ours = both
    photo = reference.photo(*size)
    batch = ours.encode_sample(Sample("a", conversation(QUESTION, ANSWER), [photo]))
    inputs = processor(text=f"{QUESTION}\n", images=photo, return_tensors="pt", return_legacy_image_output=False)
    columns = int(batch["image_grid_hw"][0, 1])
    ids = as_theirs(batch["input_ids"], columns, ours.image_token_id)
    prompt = inputs["input_ids"].shape[1]
    assert torch.equal(ids[:prompt], inputs["input_ids"][0]) and ids[prompt - 1] == reference.ANSWER
    assert torch.equal(ids[prompt:-1], torch.tensor(processor.tokenizer(ANSWER, add_special_tokens=False).input_ids))
    assert ids[-1] == reference.END and torch.equal(batch["labels"], ids.where(torch.arange(len(ids)) >= prompt, -100))

    for one in (theirs, model):
        one.zero_grad()
    expected = theirs(input_ids=ids[None], pixel_values=inputs["pixel_values"], labels=batch["labels"][None])
    rows = {key: batch[key][None] for key in ("input_ids", "labels")}
    found = model(**rows, pixel_values=batch["pixel_values"], image_grid_hw=batch["image_grid_hw"], logits_to_keep=0)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=LOSS)
    assert_close(found.logits, expected.logits, rtol=0, atol=LOGITS)

    expected.loss.backward()
    found.loss.backward()
    layout, gradients = FuyuLayout(reference.NEWLINE), {name: one.grad for name, one in model.named_parameters()}
    named = {name: one.grad for key, one in theirs.named_parameters() for name, _ in layout.import_weight(key, one)}
    assert named.keys() == gradients.keys()
    words = named["language_model.model.embed_tokens.weight"].clone()
    named["patch_embedding.split_embedding"] = words[reference.NEWLINE].clone()
    words[reference.NEWLINE] = 0  # what is a word to them is a part of its own to us
    named["language_model.model.embed_tokens.weight"] = words
    for name, gradient in named.items():
        gradient = layout.import_value(name, gradient) if "projection.weight" in name else gradient
        assert (gradients[name] - gradient).norm() <= GRADIENT * gradient.norm() + 1e-9, name


@pytest.mark.parametrize(("size", "use_cache"), [*((size, True) for size in SIZES[:3]), (SIZES[0], False)])
def test_greedy_answers(both, size, use_cache):
    theirs, processor, model, ours = both
    photo, settings = reference.photo(*size), {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    inputs = processor(text=f"{QUESTION}\n", images=photo, return_tensors="pt", return_legacy_image_output=False)
    # They do not forbid end tokens that they do not know: their config says </s>, answers end with |ENDOFTEXT|.
    expected = theirs.generate(**inputs, **settings, eos_token_id=model.generation_config.eos_token_id)
    found = model.generate(**ours(conversation=conversation(QUESTION), images=[photo]), **settings, use_cache=use_cache)
    assert torch.equal(found[:, -12:], expected[:, -12:])
    assert len(set(found[0, -12:].tolist())) > 3


def test_answers_end_with_the_end_of_text(both):
    _, _, model, processor = both
    assert model.generation_config.eos_token_id == [2, reference.END]
    assert processor.answer_end().token == reference.END and processor.template == "fuyu"
    assert processor.tokenizer.decode([reference.ANSWER, 30, reference.END], skip_special_tokens=True) == "g"


def test_a_question_without_an_image(both):
    _, _, model, processor = both
    ids = processor(conversation=[{"role": "user", "content": "a cat?"}])["input_ids"][0].tolist()
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["<s>", "▁a", "▁", "c", "at", "?", "\n", "<0x04>"]
    assert model(input_ids=torch.tensor([ids])).logits.shape == (1, len(ids), 96)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (
            [*conversation("a", "b"), *conversation("c", "d")],
            "one question and its answer; .* user, assistant, user, assistant",
        ),
        ([{"role": "system", "content": "a"}, *conversation("b", "c")], "this conversation is system, user, assistant"),
        ([{"role": "user", "content": "<image><image>a"}], "at most one image, in the question; this conversation has 2"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "<image>"}], "at most one image, in the question"),
    ],
)
def test_conversations_that_it_has_no_form_for(both, messages, words):
    with pytest.raises(SampleError, match=words):
        both[-1]._render(messages, None, with_labels=False)


def test_a_tokenizer_without_its_words(both):
    tokenizer = AutoTokenizer.from_pretrained(reference_v1.TOKENIZER)
    processor = EveProcessor(tokenizer, template="fuyu")
    with pytest.raises(
        ConfigError, match="the template 'fuyu' needs a tokenizer with the special token <0x04>; this one has none"
    ):
        processor(conversation=[{"role": "user", "content": "a"}])
