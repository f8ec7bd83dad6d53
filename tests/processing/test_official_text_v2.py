"""Prompts, ids and labels of the official EVE v2 code: its version ``qwen2`` is the template ``vicuna_v1``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_eve.processing import EveProcessor, parse_conversation, templates

FOLDER = Path(__file__).parents[1] / "data" / "eve_v2" / "text"
SLOT = -200  # the official code's image slot: one id, expanded inside the model
RECORDS = json.loads((FOLDER / "preprocess.json").read_text())["records"]
PROCESSOR = EveProcessor(AutoTokenizer.from_pretrained(FOLDER / "tokenizer"), geometry={"name": "eve_v2"})

# Odd inputs that the official code refuses, cuts, leaves unsupervised or reads otherwise than they are written.
DIFFERENT = {
    "c4": "a system message in the conversation is a KeyError there",
    "x1": "of two images in a turn, it keeps one",
    "x3": "an empty answer is cut off with the end token; lit_eve refuses it in training",
    "x6": "a separator in the question: nothing is supervised",
    "x7": "a special token's name in an answer becomes the token",
    "x8": "a special token's name in a question: nothing is supervised",
    "x9": "a special token's name in a question: nothing is supervised",
    "x10": "a special token's name in a question becomes the token",
    "x11": "<image> without an image stays as text; lit_eve refuses the sample",
    "x13": "a question at the end: nothing is supervised",
    "x15": "two questions in a row; lit_eve refuses the sample",
    "x16": "an image in an answer is supervised",
    "p1": "spaces around a caption are cut off",
    "p4": "captions in several turns are an AssertionError",
}
SAME = [
    pytest.param(run, case, id=f"{run}-{case['name']}")
    for run, cases in RECORDS.items()
    for case in cases
    if (case["name"].split("_")[0] not in DIFFERENT or (run.startswith("qwen2/system=A") and "prompt" in case))
    and "max_length" not in run
    and "(empty)" not in run  # an empty system message leaves a space in front there
]


def test_every_case_is_compared():
    names = {case["name"].split("_")[0] for cases in RECORDS.values() for case in cases}
    assert names >= DIFFERENT.keys()
    assert {param.values[1]["name"].split("_")[0] for param in SAME} >= names - DIFFERENT.keys()


@pytest.mark.parametrize(("run", "case"), SAME)
def test_prompt_ids_and_labels(run, case):
    spec = {"name": "plain"} if run.startswith("plain") else {"name": "vicuna_v1"}
    if "system=" in run:
        spec["system"] = run.partition("=")[2]
    segments = templates.build(spec).render(parse_conversation(case["conversation"]), PROCESSOR.tokenizer)
    slots = sum(segment.kind == "image" for segment in segments)
    tokens = PROCESSOR.encoder.encode(segments, [1] * slots, bos=True)
    if case["prompt"] is not None:
        assert "".join(segment.text for segment in segments) == case["prompt"]
    assert [SLOT if token == PROCESSOR.image_token_id else token for token in tokens.input_ids] == case["input_ids"]
    assert tokens.labels == case["labels"]
    assert any(label != -100 for label in tokens.labels)
