"""``pipeline("image-text-to-text")`` with the processor, on the official weights."""

from __future__ import annotations

import json

import pytest
from transformers import pipeline

import lit_eve
from tests.processing.conftest import IMAGES, REFERENCE

GREEDY = {"do_sample": False}  # copied for each call: the pipeline writes into it
QUESTION = [
    {
        "role": "user",
        "content": [{"type": "image", "path": str(IMAGES / "wide.png")}, {"type": "text", "text": "What is shown?"}],
    }
]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model, processor = lit_eve.load(REFERENCE / "a672" / "weights", tokenizer=REFERENCE / "tokenizer")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return pipeline("image-text-to-text", model=str(folder))


def test_a_prompt_gives_the_official_tokens(pipe):
    case = json.loads((REFERENCE / "a672" / "results.json").read_text())["generate"]["wide"]
    options = {"max_new_tokens": 16, "generate_kwargs": {**GREEDY}, "return_tensors": True}
    (answer,) = pipe(images=str(IMAGES / "wide.png"), text=case["prompt"], **options)
    assert answer["generated_token_ids"][-16:].tolist() == case["new_tokens"]


def test_a_conversation(pipe):
    (answer,) = pipe(text=QUESTION, max_new_tokens=3, generate_kwargs={**GREEDY})
    assert answer["generated_text"][:-1] == QUESTION
    assert answer["generated_text"][-1]["role"] == "assistant"
    (new,) = pipe(text=QUESTION, max_new_tokens=3, generate_kwargs={**GREEDY}, return_full_text=False)
    assert new["generated_text"] == answer["generated_text"][-1]["content"]
    assert "ASSISTANT" not in new["generated_text"]
    both = pipe(text=[QUESTION, QUESTION], max_new_tokens=3, generate_kwargs={**GREEDY}, return_full_text=False)
    assert [one[0]["generated_text"] for one in both] == [new["generated_text"]] * 2


def test_an_answer_is_continued(pipe):
    begun = [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    (answer,) = pipe(text=begun, max_new_tokens=3, generate_kwargs={**GREEDY})
    assert answer["generated_text"][-1]["content"][-1]["text"].startswith("It is")
    assert len(answer["generated_text"]) == 2
