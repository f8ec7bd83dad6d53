"""Answers that are written together stand where they would alone, where tokens are not counted."""

from __future__ import annotations

import pytest
import torch

from lit_eve.demo.web.decoding import Decoder, Sampling, Writing
from tests.demo.web.asking import LENGTH, QUESTIONS, messages
from tests.tiny_model import make_tiny, scene_image


@pytest.mark.parametrize("positions", ["thw", "neo"])
def test_answers_that_join_later(positions: str) -> None:
    model, processor = make_tiny(positions={"name": positions})
    for name, parameter in model.named_parameters():
        if "k_norm_" in name:  # they begin at 0
            torch.nn.init.ones_(parameter)
    asked = [messages(QUESTIONS[i], scene_image(i)) for i in range(3)]
    decoder = Decoder(model, processor)
    first, second, third = (Writing(decoder, one, Sampling(LENGTH)) for one in asked)
    decoder.add([first, second])
    decoder.step()
    decoder.drop_finished()
    decoder.add([third])
    while decoder.rows:
        decoder.step()
        decoder.drop_finished()
    for conversation, writing in zip(asked, (first, second, third), strict=True):
        inputs = processor(conversation=conversation)
        answer = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        assert writing.text.ids[: len(answer)] == answer[: len(writing.text.ids)]
