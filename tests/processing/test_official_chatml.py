"""Prompts, ids and labels of the official code of NEO, VoRA and Mono-InternVL, by ``chatml`` and ``around_images``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_eve.errors import SampleError
from lit_eve.processing import EveProcessor, Sample
from tests.models import reference_mono

DATA = Path(__file__).parents[1] / "data"
AROUND = {"before": "<img>", "after": "</img>"}
TEMPLATES = {
    "neo": {"name": "chatml", "learn_after_turn": True},
    "vora": {"name": "chatml", "system": "You are a helpful assistant."},
    "mono_internvl": reference_mono.TEMPLATE,
}
VORA_SLOT = -200  # one id, expanded inside the model


@cache
def record(design: str) -> dict:
    return json.loads((DATA / design / "text" / "preprocess.json").read_text())


def cases_of(design: str) -> dict[str, dict]:
    given = record(design)
    found = {"neo": given.get("training"), "mono_internvl": given.get("cases")}.get(design, given)
    return {name: case for name, case in found.items() if "input_ids" in case}


@cache
def processor_of(design: str) -> EveProcessor:
    if design == "mono_internvl":
        return reference_mono.processor(template=TEMPLATES[design])
    tokenizer = AutoTokenizer.from_pretrained(DATA / design / "text" / "tokenizer")
    around, slot = (None, "<image>") if design == "vora" else (AROUND, "<IMG_CONTEXT>")
    return EveProcessor(tokenizer, template=TEMPLATES[design], image_token=slot, around_images=around)


def tokens_of(design: str, conversation: list[dict], lengths: list[int]) -> tuple[list[int], list[int]]:
    processor = processor_of(design)
    segments = processor._render(conversation, None, with_labels=True)
    (counted,) = processor.encoder.count([segments], [lengths], processor.template_of().add_bos)
    tokens = processor.encoder.encode(segments, lengths, processor.template_of().add_bos)
    assert len(tokens.input_ids) == counted
    ids = [VORA_SLOT if design == "vora" and id == processor.image_token_id else id for id in tokens.input_ids]
    return ids, tokens.labels


# Where the official code is wrong, or takes what lit_eve refuses.
REFUSED = {
    ("neo", "unknown_role"): "unknown role 'tool'",  # it is left out there
    ("neo", "more_tags_than_images"): "2 places for images .<image>., but there are 1",  # stays as text there
    ("neo", "more_images_than_tags"): "1 places for images .<image>., but there are 2",  # an image is lost there
    ("neo", "empty_answer"): "an empty answer",
    ("vora", "no_tag"): "0 places for images .<image>., but there are 1",  # put in front of the first question there
    ("vora", "two_frames_no_tag"): "0 places for images .<image>., but there are 2",  # as "1s: <image>; 2s: <image>; "
    ("vora", "tag_but_no_image"): "1 places for images .<image>., but there are 0",  # stays as text there
}
OTHERWISE = {
    ("neo", "literal_context_token"),  # becomes a place of an image there
    ("neo", "image_in_answer"),  # the placeholders and what is around them are supervised there
}
ALL = [(design, name) for design in TEMPLATES for name in cases_of(design)]


@pytest.mark.parametrize(("design", "name"), [case for case in ALL if case not in REFUSED and case not in OTHERWISE])
def test_ids_and_labels(design, name):
    case = cases_of(design)[name]
    lengths = [1] * case["images"] if design == "vora" else case["image_tokens"]
    ids, labels = tokens_of(design, case["conversations"], lengths)
    assert ids == case["input_ids"]
    assert labels == case["labels"]


@pytest.mark.parametrize(("design", "name"), REFUSED)
def test_what_the_official_code_takes_by_guesses_is_refused(design, name):
    case = cases_of(design)[name]
    lengths = [1] * case["images"] if design == "vora" else case["image_tokens"]
    with pytest.raises(SampleError, match=REFUSED[design, name]):
        tokens_of(design, case["conversations"], lengths)


def test_the_name_of_a_placeholder_stays_text():
    case = cases_of("neo")["literal_context_token"]
    ids, labels = tokens_of("neo", case["conversations"], [])
    slot = processor_of("neo").image_token_id
    assert slot in case["input_ids"] and slot not in ids
    assert processor_of("neo").tokenizer.decode(ids) == processor_of("neo").tokenizer.decode(case["input_ids"])
    assert [label for label in labels if label != -100] == [label for label in case["labels"] if label != -100]


def test_an_image_in_an_answer_is_not_supervised():
    case = cases_of("neo")["image_in_answer"]
    ids, labels = tokens_of("neo", case["conversations"], case["image_tokens"])
    assert ids == case["input_ids"]
    image = [processor_of("neo").tokenizer.convert_tokens_to_ids(token) for token in ("<img>", "<IMG_CONTEXT>", "</img>")]
    assert labels == [-100 if label in image else label for label in case["labels"]]


@pytest.mark.parametrize("name", ["one", "one|system", "multi", "multi|system"])
def test_prompts_of_neo(name):
    conversation = [("user", "<image>\nWhat?"), ("assistant", "A"), ("user", "Why?")][: 1 if "one" in name else 3]
    conversation = ([("system", "Be short.")] if "system" in name else []) + conversation
    written = processor_of("neo").apply_chat_template(
        [{"role": role, "content": content} for role, content in conversation], add_generation_prompt=True
    )
    assert written == record("neo")["inference_template_neo1_0"][name]


def test_prompts_of_vora():
    for name in ("one", "at_end", "system", "two_images", "unicode"):
        case = cases_of("vora")[name]
        question = case["conversations"][:-1]
        assert processor_of("vora").apply_chat_template(question, add_generation_prompt=True) == case["prompt"]


@pytest.mark.parametrize("design", TEMPLATES)
def test_answers_end_with_the_end_of_the_turn(design):
    processor = processor_of(design)
    assert processor.answer_end().token == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_long_answer_is_cut_at_its_end():
    """VoRA puts an end token behind an answer that was cut, which teaches to end in the middle of a word."""
    conversation = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y " * 300}]
    encoded = processor_of("vora").encode_sample(Sample("long", conversation), max_length=160)
    assert len(encoded["input_ids"]) == record("vora")["one_turn_over_160"]["length"] == 160
    assert encoded["labels"][-1] not in (-100, processor_of("vora").answer_end().token)
