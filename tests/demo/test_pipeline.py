"""transformers' own ``pipeline`` on an exported model."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

import lit_eve.models  # noqa: F401 - registers the model
from lit_eve.evaluation import answer_all
from tests.tiny_model import make_tiny

QUESTION = "how many red shapes are there?"


def test_two_lines(model_folder: Path) -> None:
    answer = pipeline("image-text-to-text", model=str(model_folder))
    image = model_folder.parent / "0.png"
    (right,) = answer_all(*make_tiny(), [([image], QUESTION)], max_new_tokens=8, progress=None)
    for form in ({"url": str(image)}, {"path": str(image)}, {"image": Image.open(image)}):
        messages = [{"role": "user", "content": [{"type": "image", **form}, {"type": "text", "text": QUESTION}]}]
        (result,) = answer(text=messages, max_new_tokens=8, return_full_text=False)
        assert result["generated_text"].strip() == right


@pytest.mark.parametrize("as_path", [True, False])
def test_prompt_with_images_beside_it(model_folder: Path, as_path: bool) -> None:
    answer = pipeline("image-text-to-text", model=str(model_folder))
    path = str(model_folder.parent / "1.png")
    prompt = answer.processor.apply_chat_template(
        [{"role": "user", "content": "<image>\n" + QUESTION}], add_generation_prompt=True
    )
    (right,) = answer_all(*make_tiny(), [([path], QUESTION)], max_new_tokens=8, progress=None)
    image = path if as_path else Image.open(path)
    (result,) = answer(images=[image], text=prompt, max_new_tokens=8, return_full_text=False)
    assert result["generated_text"].strip() == right


def test_several_conversations(model_folder: Path) -> None:
    answer = pipeline("image-text-to-text", model=str(model_folder))
    paths = [str(model_folder.parent / f"{i}.png") for i in range(2)]
    conversations = [
        [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": QUESTION}]}] for path in paths
    ]
    results = answer(text=conversations, max_new_tokens=8, return_full_text=False)
    right = answer_all(*make_tiny(), [([path], QUESTION) for path in paths], max_new_tokens=8, progress=None)
    assert [result[0]["generated_text"].strip() for result in results] == right
