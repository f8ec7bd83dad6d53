"""Prompts, ids and labels of the official preprocessing, and where lit_eve does better.

The official code ran with three tokenizers (transformers 4.31). transformers 5 knows only two of their rules: ``legacy=False``
is the slow tokenizer with ``legacy=False``; ``legacy=True`` equals both the slow one with ``legacy=True`` and the fast one,
which never looked at ``legacy``.
"""

from __future__ import annotations

import json

import pytest

from lit_eve.errors import SampleError
from lit_eve.processing import EveProcessor, EveV1Geometry, Sample, parse_conversation
from lit_eve.processing.templates import split_prompt, templates
from tests.processing.conftest import REFERENCE, SMALL, load_tokenizer, picture

SLOT = -200  # the official code's image slot: one id, expanded inside the model
CASES = json.loads((REFERENCE / "text" / "preprocess_tf4.31.0.json").read_text())
PROMPTS = json.loads((REFERENCE / "text" / "tokenize_collate_tf4.31.0.json").read_text())
LEGACY = {"slow_legacy_false": False, "slow_legacy_true": True, "fast_legacy_false": True, "slow_legacy_false_maxlen24": False}
PROCESSORS = {legacy: EveProcessor(load_tokenizer(legacy), geometry=SMALL) for legacy in (False, True)}

# Odd inputs in which the official code drops labels, trains on the wrong thing, or crashes: one test each, below.
DIFFERENT = {"x0", "x3", "x4", "x6", "x7", "x8", "p4", "p5"}
TRUNCATED = {"c2", "c3", "x7", "x8"}  # text-only cases in the runs with model_max_length 24

SAME = [
    pytest.param(run, case, id=f"{run}-{case['name']}")
    for run, cases in CASES.items()
    for case in cases
    if (short := case["name"].split("_")[0]) not in DIFFERENT
    and not (run.startswith("slow_legacy_false_maxlen") and short in TRUNCATED)
]


def render(run: str, conversation: list) -> tuple[str, list[int], list[int]]:
    """(prompt, ids, labels) in the official form: one slot per image."""
    setting, template = run.split("/")
    processor = PROCESSORS[LEGACY[setting]]
    segments = templates.build({"name": template}).render(parse_conversation(conversation), processor.tokenizer)
    slots = sum(segment.kind == "image" for segment in segments)
    tokens = processor.encoder.encode(segments, [1] * slots, bos=True)
    ids = [SLOT if token == processor.image_token_id else token for token in tokens.input_ids]
    return "".join(segment.text for segment in segments), ids, tokens.labels


def official(name: str, run: str = "slow_legacy_false/vicuna_v1") -> dict:
    return next(case for case in CASES[run] if case["name"].startswith(name))


def supervised(conversation: list, images: int = 0, legacy: bool = False, **options) -> list[str]:
    """The tokens that lit_eve supervises in a sample."""
    processor = PROCESSORS[legacy]
    sample = Sample("s", conversation, [picture(30, 20)] * images)
    labels = processor.encode_sample(sample, **options)["labels"]
    return processor.tokenizer.convert_ids_to_tokens([label for label in labels.tolist() if label != -100])


def test_every_case_is_compared():
    names = {case["name"].split("_")[0] for cases in CASES.values() for case in cases}
    assert names == {f"{kind}{number}" for kind, count in (("c", 6), ("x", 9), ("p", 6)) for number in range(count)}
    dialogues, cut, captions = 4 * 9, 9 - 2, 4 * 4
    assert len(SAME) == dialogues + cut + captions


@pytest.mark.parametrize(("run", "case"), SAME)
def test_prompt_ids_and_labels(run, case):
    prompt, ids, labels = render(run, case["conversation"])
    assert prompt == case["prompt"]
    assert ids == case["input_ids"]
    assert labels == case["labels"]
    assert any(label != -100 for label in labels)


@pytest.mark.parametrize("setting", PROMPTS["tokenizer_image_token"])
def test_raw_prompts(setting):
    processor = PROCESSORS[LEGACY[setting]]
    for case in PROMPTS["tokenizer_image_token"][setting]:
        if setting == "slow_legacy_false" and case["prompt"] == "x</s> USER: y":
            continue  # 4.31 put the prefix in front of a space there, transformers 5 does not
        segments = split_prompt(case["prompt"], processor.tokenizer)
        slots = sum(segment.kind == "image" for segment in segments)
        ids = processor.encoder.encode(segments, [1] * slots, bos=True).input_ids
        assert [SLOT if token == processor.image_token_id else token for token in ids] == case["tokenizer_image_token"]


@pytest.mark.parametrize("case", PROMPTS["generation_prompts"], ids=lambda case: case["template"])
def test_generation_prompts(case):
    processor = PROCESSORS[False]
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown in the image?"}]}]
    assert processor.apply_chat_template(question, template=case["template"], add_generation_prompt=True) == case["prompt"]
    features = processor(images=picture(9, 9), conversation=question, template=case["template"])
    ids = features["input_ids"][0].tolist()
    start, count = ids.index(processor.image_token_id), ids.count(processor.image_token_id)
    assert ids[:start] + [SLOT] + ids[start + count :] == case["input_ids"]


def test_prompts_of_the_generation_reference():
    cases = json.loads((REFERENCE / "a672" / "results.json").read_text())["generate"]
    for name, case in cases.items():
        processor = PROCESSORS[False]
        ids = processor(images=str(REFERENCE / "images" / f"{name}.png"), text=case["prompt"])["input_ids"][0].tolist()
        start, count = ids.index(processor.image_token_id), ids.count(processor.image_token_id)
        assert ids[:start] + [SLOT] + ids[start + count :] == case["input_ids"]


def test_image_slots_are_expanded_in_place():
    case = official("c0")
    image = picture(640, 480)
    encoded = PROCESSORS[False].encode_sample(Sample("s", case["conversation"], [image]))
    start, count = case["input_ids"].index(SLOT), SMALL.num_tokens(640, 480)
    expanded = case["input_ids"][:start] + [512] * count + case["input_ids"][start + 1 :]
    labels = case["labels"][:start] + [-100] * count + case["labels"][start + 1 :]
    assert encoded["input_ids"].tolist() == expanded
    assert encoded["labels"].tolist() == labels


# ---- the odd inputs


@pytest.mark.parametrize("run", ["slow_legacy_false/vicuna_v1", "slow_legacy_false/eve_v1", "slow_legacy_true/vicuna_v1"])
def test_x0_an_empty_answer_is_refused_instead_of_ignored(run):
    case = official("x0", run)
    assert set(case["labels"]) == {-100}
    with pytest.raises(SampleError, match="^s: the conversation has an empty answer"):
        supervised(case["conversation"], images=1, template=run.split("/")[1])


@pytest.mark.parametrize("run", ["slow_legacy_false/vicuna_v1", "slow_legacy_false/eve_v1", "slow_legacy_true/vicuna_v1"])
def test_x3_the_separator_in_a_question_does_not_drop_the_answer(run):
    case = official("x3", run)
    assert set(case["labels"]) == {-100}
    prompt, ids, labels = render(run, case["conversation"])
    assert prompt == case["prompt"] and ids == case["input_ids"]
    tokenizer = PROCESSORS[LEGACY[run.split("/")[0]]].tokenizer
    assert tokenizer.decode([label for label in labels if label != -100]) == "Yes.</s>"


@pytest.mark.parametrize("run", ["slow_legacy_false/vicuna_v1", "slow_legacy_false/eve_v1", "slow_legacy_true/vicuna_v1"])
def test_x4_the_end_token_in_an_answer_is_text_and_the_whole_answer_is_supervised(run):
    case = official("x4", run)
    assert set(case["labels"]) == {-100} and case["input_ids"].count(2) == 2
    prompt, ids, labels = render(run, case["conversation"])
    assert prompt == case["prompt"]
    assert ids.count(2) == 1 and ids[-1] == labels[-1] == 2
    tokenizer = PROCESSORS[LEGACY[run.split("/")[0]]].tokenizer
    assert tokenizer.decode([label for label in labels if label != -100][:-1]).strip() == "one</s> two"


def test_x6_two_images_have_two_slots():
    case = official("x6")
    assert case["input_ids"].count(SLOT) == 1  # the official code keeps one of them
    prompt, ids, labels = render("slow_legacy_false/vicuna_v1", case["conversation"])
    assert "USER: <image><image>\nCompare. ASSISTANT:" in prompt
    start = case["input_ids"].index(SLOT)
    assert ids == [*case["input_ids"][:start], SLOT, *case["input_ids"][start:]]
    assert labels == [*case["labels"][:start], -100, *case["labels"][start:]]
    assert supervised(case["conversation"], images=2) == case["supervised_tokens"]
    with pytest.raises(SampleError, match=r"^s: the text has 2 places for images \(<image>\), but there are 1 images"):
        supervised(case["conversation"], images=1)


@pytest.mark.parametrize("run", ["slow_legacy_false/vicuna_v1", "slow_legacy_false/eve_v1", "slow_legacy_true/vicuna_v1"])
def test_x7_the_unknown_token_in_a_question_is_text_and_does_not_drop_the_answer(run):
    case = official("x7", run)
    assert set(case["labels"]) == {-100} and 0 in case["input_ids"]
    prompt, ids, labels = render(run, case["conversation"])
    assert prompt == case["prompt"]
    assert 0 not in ids
    tokenizer = PROCESSORS[LEGACY[run.split("/")[0]]].tokenizer
    assert "Is <unk> a word?" in tokenizer.decode(ids)
    assert tokenizer.decode([label for label in labels if label != -100]) == "No.</s>"


def test_x8_a_place_without_an_image_is_refused_instead_of_trained_as_text():
    case = official("x8")
    assert SLOT not in case["input_ids"] and not case["has_image"]
    with pytest.raises(SampleError, match=r"^s: the text has 1 places for images \(<image>\), but there are 0 images"):
        supervised(case["conversation"])
    assert supervised(case["conversation"], images=1) == case["supervised_tokens"]


@pytest.mark.parametrize("name", sorted(TRUNCATED - {"x7", "x8"}))
def test_maxlen24_a_cut_answer_is_refused_instead_of_ignored(name):
    case = official(name, "slow_legacy_false_maxlen24/vicuna_v1")
    assert len(case["labels"]) == 24 and set(case["labels"]) == {-100}
    with pytest.raises(SampleError, match="^s: nothing that is supervised lies in the first 24 of its"):
        supervised(case["conversation"], max_length=24)
    assert supervised(case["conversation"]) == official(name)["supervised_tokens"]


def test_maxlen24_an_image_that_does_not_fit_is_refused():
    case = official("c0", "slow_legacy_false_maxlen24/vicuna_v1")
    assert len(case["input_ids"]) > 24  # the official code cuts after expansion, inside the model
    with pytest.raises(SampleError, match="^s: image 1 of 1 ends at token 96 and does not fit in 24 tokens"):
        supervised(case["conversation"], images=1, max_length=24)


def test_p2_an_empty_caption_is_written_as_upstream_but_refused_in_training():
    case = official("p2", "slow_legacy_false/plain")
    assert render("slow_legacy_false/plain", case["conversation"])[1] == case["input_ids"]
    with pytest.raises(SampleError, match="^s: the conversation has an empty answer"):
        supervised(case["conversation"], images=1, template="plain")


def test_p4_a_caption_without_image():
    case = official("p4", "slow_legacy_false/plain")
    assert case["error"] == "AssertionError: "
    processor = PROCESSORS[False]
    encoded = processor.encode_sample(Sample("s", case["conversation"]), template="plain")
    assert processor.tokenizer.decode(encoded["input_ids"]) == "<s> Hi\n"
    assert encoded["labels"].tolist() == [-100, *encoded["input_ids"].tolist()[1:]]
    assert encoded["pixel_values"].shape == (0, 588) and encoded["image_grid_hw"].shape == (0, 2)


def test_p5_two_captions_in_one_sample():
    case = official("p5", "slow_legacy_false/plain")
    assert case["error"] == "AssertionError: "
    assert supervised(case["conversation"], images=1, template="plain") == ["▁a", "<0x0A>", "c", "<0x0A>"]


def test_official_geometry_is_the_default():
    assert EveProcessor(load_tokenizer()).geometry == EveV1Geometry()
