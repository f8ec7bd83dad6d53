"""transformers' own ``pipeline`` on an exported model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from PIL import Image
from transformers import Pipeline, TextStreamer, pipeline

import lit_eve.models  # noqa: F401 - registers the model
from lit_eve.errors import LitEveError
from lit_eve.evaluation import answer_all
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.processing import EveProcessor
from lit_eve.processing.inputs import images_of
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


@pytest.fixture(scope="module")
def answer(model_folder: Path) -> Pipeline:
    return pipeline("image-text-to-text", model=str(model_folder))


@pytest.fixture(scope="module")
def chats(model_folder: Path) -> list[list[dict[str, Any]]]:
    """Conversations of different length, with one image, none, and two."""
    images = [{"type": "image", "path": str(model_folder.parent / f"{i}.png")} for i in range(2)]
    asked = [(images[:1], QUESTION), ([], "is there a cross?"), (images, QUESTION), (images[1:], "where is the red cross?")]
    return [[{"role": "user", "content": [*shown, {"type": "text", "text": text}]}] for shown, text in asked]


def texts(results: Iterable[list[dict[str, Any]]]) -> list[list[str]]:
    return [[one["generated_text"] for one in result] for result in results]


pairs_answers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="before transformers 5.23 a pipeline loses answers where a prompt has several; that is refused",
)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, pytest.param({"num_beams": 3, "num_return_sequences": 2}, marks=pairs_answers)]
)
def test_a_batch_gives_the_answers_of_its_members(answer: Pipeline, chats: list, options: dict) -> None:
    def ask(text: list, **kwargs: Any) -> list[list[str]]:
        return texts(answer(text=text, max_new_tokens=8, return_full_text=False, generate_kwargs={**options}, **kwargs))

    alone = [
        texts([answer(text=chat, max_new_tokens=8, return_full_text=False, generate_kwargs={**options})])[0] for chat in chats
    ]
    assert len({result[0] for result in alone}) == len(chats)
    for size in (1, 2, 3, 4):
        assert ask(chats, batch_size=size) == alone
    if not options:
        right = answer_all(*make_tiny(), [(images_of(chat), chat) for chat in chats], max_new_tokens=8, progress=None)
        assert [result[0].strip() for result in alone] == right


def test_several_answers_of_a_pipeline_that_loses_them_are_refused(
    answer: Pipeline, chats: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "__version__", "5.22.2")
    several = {"num_beams": 3, "num_return_sequences": 2}
    for text, size in ((chats[0], 1), (chats, 2)):
        with pytest.raises(LitEveError, match="num_return_sequences: the pipeline of transformers 5.22.2 gives one answer"):
            answer(text=text, batch_size=size, max_new_tokens=2, generate_kwargs={**several})
    inputs = answer.processor(text="is there a cross?")
    assert len(answer.model.generate(**inputs, max_new_tokens=2, **several)) == 2


def test_generators_datasets_and_lists_of_prompts_in_batches(answer: Pipeline, chats: list) -> None:
    options = {"max_new_tokens": 8, "return_full_text": False}
    alone = [answer(text=chat, **options)[0]["generated_text"] for chat in chats]
    assert [one for (one,) in texts(answer((chat for chat in chats), batch_size=3, **options))] == alone
    prompts = [answer.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    rows = [{"images": images_of(chat), "text": prompt} for chat, prompt in zip(chats, prompts, strict=True)]
    assert [one for (one,) in texts(answer((row for row in rows if row["images"]), batch_size=2, **options))] == [
        alone[index] for index in (0, 2, 3)
    ]
    assert [one for (one,) in texts(answer(text=[prompts[1]] * 3, batch_size=2, **options))] == [alone[1]] * 3
    images = [images_of(chat) for chat in chats]
    assert [one["generated_text"] for one in answer(images=images, text=prompts, **options)] == alone
    full = answer(text=chats, batch_size=2, max_new_tokens=8)
    for (result,), chat, text in zip(full, chats, alone, strict=True):
        assert result["generated_text"] == [*chat, {"role": "assistant", "content": text}]


def test_streams(answer: Pipeline, chats: list, capsys: pytest.CaptureFixture) -> None:
    for tool in (answer.processor, answer.tokenizer):
        for skip_prompt in (True, False):
            streamer = TextStreamer(tool, skip_prompt=skip_prompt, skip_special_tokens=True)
            (result,) = answer(text=chats[0], max_new_tokens=8, generate_kwargs={"streamer": streamer}, return_full_text=False)
            out = capsys.readouterr().out
            assert out.split()[-1:] == result["generated_text"].split()[-1:] and (QUESTION in out) != skip_prompt


def test_a_saved_pipeline_is_whole(answer: Pipeline, chats: list, tmp_path: Path) -> None:
    answer.save_pretrained(tmp_path)
    again = pipeline("image-text-to-text", model=str(tmp_path))
    assert again.tokenizer.padding_side == "left" and again.processor.to_dict() == answer.processor.to_dict()
    assert texts(again(text=chats, batch_size=4, max_new_tokens=8)) == texts(answer(text=chats, batch_size=4, max_new_tokens=8))


def test_a_tokenizer_made_for_training_is_turned_round() -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    processor = EveProcessor(tokenizer)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", tokenizer.eos_token)
    assert processor.image_processor is processor


def test_arguments_of_generate_are_sent_where_they_belong(answer: Pipeline, chats: list) -> None:
    with pytest.raises(TypeError, match="takes no argument do_sample: .* generate_kwargs="):
        answer(text=chats[0], do_sample=True)
