from __future__ import annotations

import pytest
import torch

from lit_eve.demo.web import render
from lit_eve.demo.web.looking import attention_of, causes_of, written_word
from lit_eve.errors import LitEveError
from lit_eve.interpretation import attend, blank_patches
from tests.demo.web.asking import QUESTIONS, messages
from tests.tiny_model import make_tiny, scene_image


@pytest.mark.parametrize("decoder", ["llama", "mistral"])
def test_the_attention_is_that_with_which_the_answer_was_written(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    images = [scene_image(0), scene_image(1)]
    seen = attend(model, processor, images, QUESTIONS[0], reduce=None, max_new_tokens=6)  # maps (A, L, h, H, W)
    ids = seen.token_ids.tolist()
    for steps in ([0], [3], [2, 4]):
        word = written_word(model, processor, messages(QUESTIONS[0], *images), ids, steps)
        attention = attention_of(model, word)
        for found, recorded in zip(attention.maps, seen.maps, strict=True):
            torch.testing.assert_close(found, recorded[steps].mean(0))
    assert (attention.layers, attention.heads) == (3, 4)
    for layer, head, expected in (
        (None, None, recorded[steps].mean((0, 1, 2))),
        (2, None, recorded[steps].mean((0, 2))[1]),
        (1, 4, recorded[steps].mean(0)[0, 3]),
    ):
        torch.testing.assert_close(attention.of(layer, head)[1], expected)


def test_what_does_not_exist_is_refused() -> None:
    model, processor = make_tiny()
    asked = messages(QUESTIONS[0], scene_image(0))
    attention = attention_of(model, written_word(model, processor, asked, [5, 6], [1]))
    for layer, head, sentence in (
        (4, None, "there is no layer 4: this model has 3"),
        (0, None, "there is no layer 0"),
        (None, 5, "there is no head 5: this model has 4"),
        (None, -1, "there is no head -1"),
    ):
        with pytest.raises(LitEveError, match=sentence):
            attention.of(layer, head)
    for steps in ([], [2], [-1]):
        with pytest.raises(LitEveError, match="this word was not generated"):
            written_word(model, processor, asked, [5, 6], steps)
    with pytest.raises(LitEveError, match="there is no image to look at"):
        written_word(model, processor, messages(QUESTIONS[0]), [5, 6], [1])
    model, processor = make_tiny(geometry={"name": "tiles", "patch_size": 4, "pool_size": 2, "image_size": 16})
    with pytest.raises(LitEveError, match="there is no map over image 1: the geometry 'tiles' shows it in"):
        written_word(model, processor, asked, [5, 6], [1])


def test_what_a_word_rests_on_is_the_sum_over_its_tokens() -> None:
    model, processor = make_tiny()
    images = [scene_image(0), scene_image(1)]
    seen = attend(model, processor, images, QUESTIONS[0], max_new_tokens=6)
    whole = blank_patches(model, seen, progress=None)
    calls = []
    word = written_word(model, processor, messages(QUESTIONS[0], *images), seen.token_ids.tolist(), [1, 3])
    causes = causes_of(model, word, lambda: calls.append(1))
    for image, cause in enumerate(causes):
        expected = whole.drop(1, image) + whole.drop(3, image)
        torch.testing.assert_close(cause, expected, atol=1e-4, rtol=1e-4)
    assert len(calls) > 1


def test_reading_again_can_be_ended() -> None:
    model, processor = make_tiny()
    word = written_word(model, processor, messages(QUESTIONS[0], scene_image(0)), [5, 6], [1])
    with pytest.raises(ZeroDivisionError):
        causes_of(model, word, lambda: 1 // 0)


@pytest.mark.parametrize(
    ("nats", "times"), [(0.5, "1.65"), (3.2, "24.5"), (0.0, "1.00"), (9.2591, "10,500"), (800.0, "over 1,000,000")]
)
def test_a_fall_in_words(nats: float, times: str) -> None:
    assert render._times(nats) == times
