from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from lit_eve.errors import ConfigError, SampleError
from lit_eve.evaluation.lmms_eval.requests import MAX_NEW_TOKENS, chat_query, cut, generation_arguments, logger, simple_query
from tests.tiny_model import make_tiny, scene_image

NAME = "scenes, document 3"


def prompt_of(query: Any) -> str:
    _, processor = make_tiny()
    return processor.apply_chat_template(query.conversation, template="vicuna_v1")


def test_both_protocols_give_the_same_prompt() -> None:
    image = scene_image()
    for count in (0, 1, 2):
        parts = [{"type": "image", "url": image}] * count + [{"type": "text", "text": "is there a cross?"}]
        chat = chat_query([{"role": "user", "content": parts}], NAME)
        simple = simple_query("is there a cross?", [image] * count, NAME)
        assert prompt_of(simple) == prompt_of(chat) and prompt_of(chat).count("<image>") == count
        assert [x.tobytes() for x in chat.images] == [x.tobytes() for x in simple.images] == [image.tobytes()] * count


def test_images_stand_where_the_text_names_them() -> None:
    query = simple_query("first <image> then <image> which?", [scene_image(0), scene_image(1)], NAME)
    assert "first <image> then <image> which?" in prompt_of(query)
    with pytest.raises(SampleError, match=r"^scenes, document 3: the text has 1 places .* but there are 2 images"):
        simple_query("which <image>?", [scene_image(0), scene_image(1)], NAME)


def test_without_images_the_placeholder_is_a_word() -> None:
    _, processor = make_tiny()
    for query in (
        simple_query("what does <image> mean?", None, NAME),
        chat_query([{"role": "user", "content": "what does <image> mean?"}], NAME),
    ):
        ids = processor(images=[[]], conversation=[query.conversation])["input_ids"]
        assert processor.image_token_id not in ids


def test_system_messages_and_turns_stay() -> None:
    text = lambda role, words: {"role": role, "content": [{"type": "text", "text": words}]}  # noqa: E731
    query = chat_query([text("system", "Be short."), text("user", "a?"), text("assistant", "b"), text("user", "c?")], NAME)
    assert prompt_of(query) == "Be short. USER: a? ASSISTANT: b</s>USER: c? "  # what the model writes then is not yet begun


def test_images_may_be_files_or_data(tmp_path) -> None:
    image, file, memory = scene_image(), tmp_path / "scene.png", BytesIO()
    image.save(file)
    image.save(memory, "PNG")
    data = "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()
    for source in (image, str(file), file, data, {"type": "image", "url": str(file)}, {"type": "image", "path": str(file)}):
        (loaded,) = simple_query("?", [source], NAME).images
        assert loaded.tobytes() == image.tobytes()
    with pytest.raises(SampleError, match=r"^scenes, document 3, image 2 of 2.*absent\.png"):
        simple_query("?", [image, str(tmp_path / "absent.png")], NAME)


@pytest.mark.parametrize(
    ("visual", "word"),
    [
        ("clip.MP4", r"video \(clip.MP4\)"),
        ("speech.wav", r"audio \(speech.wav\)"),
        ({"type": "video", "url": "clip.mp4"}, "video"),
        ({"array": np.zeros(3), "sampling_rate": 16000}, "audio"),
        (np.zeros((8, 4, 4, 3)), "ndarray"),
    ],
)
def test_other_media_are_refused(visual: Any, word: str) -> None:
    with pytest.raises(SampleError, match=f"^scenes, document 3: lit_eve reads texts and images, but the task brings {word}$"):
        simple_query("what happens?", [visual], NAME)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_other_media_are_refused_in_messages(kind: str) -> None:
    with pytest.raises(SampleError, match=f"^scenes, document 3: .* but the task brings {kind}$"):
        chat_query([{"role": "user", "content": [{"type": kind, "url": "file"}]}], NAME)


def test_generation_kwargs() -> None:
    greedy = {"max_new_tokens": 16, "do_sample": False}
    for settings in (
        {},
        {"temperature": 0, "top_p": 1.0, "num_beams": None},
        {"temperature": 0.0, "do_sample": True},
        {"temperature": 0.2, "do_sample": False},
    ):
        assert generation_arguments({"max_new_tokens": 16, **settings}) == ((), greedy)
    sampled = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.2, "top_p": 0.9}
    assert generation_arguments({"max_new_tokens": 16, "temperature": 0.2, "top_p": 0.9}) == ((), sampled)
    assert generation_arguments({"do_sample": True})[1] == {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": True}
    assert generation_arguments({"num_beams": 3})[1]["num_beams"] == 3


def test_stop_strings() -> None:
    assert generation_arguments({"until": None})[0] == ()
    assert generation_arguments({"until": "\n\n"})[0] == ("\n\n",)
    assert generation_arguments({"until": ["\n\n", "", "USER:"]})[0] == ("\n\n", "USER:")
    with pytest.raises(ConfigError, match="generation_kwargs.until must be a text or a list of texts"):
        generation_arguments({"until": [1]})
    assert cut("yes USER: and\n\nno", ("\n\n", "USER:")) == "yes"
    assert cut(" yes ", ()) == "yes"


def test_what_generate_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    given = {"image_aspect_ratio": "pad", "max_new_tokens": 4}
    assert generation_arguments(given)[1] == {"max_new_tokens": 4, "do_sample": False}
    assert len(said) == 1 and "generation_kwargs.image_aspect_ratio='pad'" in said[0]
    assert given == {"image_aspect_ratio": "pad", "max_new_tokens": 4}  # the task keeps its settings
