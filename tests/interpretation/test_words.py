from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_eve.errors import LitEveError
from lit_eve.interpretation import attend, attend_prompts, overlay
from lit_eve.interpretation.words import group_words, word_figure, word_maps
from tests.tiny_model import make_tiny, scene_image

QUESTION = "where is the red circle?"


def byte_processor() -> SimpleNamespace:
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def piece_processor(*pieces: str) -> SimpleNamespace:
    """A tokenizer as SentencePiece's, whose pieces say where a word begins."""
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=pieces[0]))
    tokenizer.decoder = decoders.Metaspace()
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_bytes_are_put_together_to_words() -> None:
    text = " Don't stop: two-door cafés,\n3.5 to 1,000 手机 ok. "
    words = ["Don't", "stop", ":", "two-door", "cafés", ",", "3.5", "to", "1,000", "手", "机", "ok", "."]
    processor = byte_processor()
    ids = processor.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    grouped = group_words(ids, processor)
    assert [word for word, _ in grouped] == words
    place = 0
    for word, tokens in grouped:  # the bytes of each word, none missing
        place = text.encode().index(word.encode(), place)
        assert tokens == list(range(place, place + len(word.encode())))
        place += len(tokens)


def test_pieces_are_put_together_to_words() -> None:
    pieces = ["▁", "▁the", "▁tri", "angle", ".", "▁of", "▁of▁red"]
    processor = piece_processor(*pieces)
    ids = [pieces.index(piece) for piece in ["▁the", "▁tri", "angle", "▁", "▁of▁red", "▁tri", "."]]
    assert group_words(ids, processor) == [("the", [0]), ("triangle", [1, 2]), ("of red", [4]), ("tri", [5]), (".", [6])]
    assert group_words([], processor) == [] and group_words([pieces.index("▁")], processor) == []


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_each_word_has_its_map_over_each_image(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    images = [scene_image(0), scene_image(3)]
    kept = attend(model, processor, images, QUESTION, reduce=None, max_new_tokens=4)
    mean = attend(model, processor, images, QUESTION, max_new_tokens=4)
    texts = [token.strip() for token in kept.tokens if token.strip()]
    choices = [(mean, {}), *((kept, choice) for choice in ({}, {"layer": 1}, {"head": -1}, {"layer": -1, "head": 2}))]
    for answer, choice in choices:
        words = word_maps(answer, processor, **choice)
        assert [word.word for word in words] == texts
        layers, heads = range(3), range(4)
        layers = [layers[choice["layer"]]] if "layer" in choice else layers
        heads = [heads[choice["head"]]] if "head" in choice else heads
        for word in words:
            (token,) = word.tokens
            for image, found in enumerate(word.maps):
                assert found.shape == model.geometry.token_grids(*images[image].size)[0]
                expected = sum(kept.maps[image][token, i, j] for i in layers for j in heads) / (len(layers) * len(heads))
                torch.testing.assert_close(found, expected)


def test_the_map_of_a_word_of_several_tokens_is_their_mean() -> None:
    answer = attend(*make_tiny(), [scene_image(0)], QUESTION, layers=[2, 0], heads=[3], reduce=None, max_new_tokens=1)
    processor = byte_processor()
    ids = torch.tensor(processor.tokenizer("red cat")["input_ids"])
    maps = torch.rand(7, 2, 1, 5, 3)
    answer = replace(answer, token_ids=ids, steps=list(range(7)), maps=[maps])
    red, cat = word_maps(answer, processor, layer=2)
    torch.testing.assert_close(red.maps[0], sum(maps[token, 0, 0] for token in (0, 1, 2)) / 3)
    torch.testing.assert_close(cat.maps[0], sum(maps[token, 0, 0] for token in (4, 5, 6)) / 3)
    assert torch.equal(word_maps(answer, processor, layer=-1)[0].maps[0], red.maps[0])  # the last of the recorded ones
    assert torch.equal(word_maps(answer, processor, head=3)[0].maps[0], word_maps(answer, processor)[0].maps[0])
    with pytest.raises(LitEveError, match="layer 1 is not recorded; recorded are 2, 0"):
        word_maps(answer, processor, layer=1)
    with pytest.raises(LitEveError, match="there is no recorded head -2: there are 1"):
        word_maps(answer, processor, head=-2)


def test_words_of_an_answer_without_images_have_no_maps() -> None:
    model, processor = make_tiny()
    (answer,) = attend_prompts(
        model, processor, processor(conversation=[{"role": "user", "content": "two?"}]), reduce=None, max_new_tokens=2
    )
    words = word_maps(answer, processor, layer=0)
    assert words and all(word.maps == [] for word in words)


def test_the_figure_has_a_panel_per_word() -> None:
    model, processor = make_tiny()
    images = [scene_image(0), scene_image(3)]
    answer = attend(model, processor, images, QUESTION, max_new_tokens=4)
    words = word_maps(answer, processor)
    figure = word_figure(images, words, -1, columns=3, panel=1)
    titles = [axis.get_title() for axis in figure.axes]
    shares = [f"{word.maps[1].sum():.0%}" for word in words]
    assert titles[: len(words) + 1] == ["image", *(f"{word.word}\n{share}" for word, share in zip(words, shares, strict=True))]
    assert len(titles) % 3 == 0
    shown = figure.axes[1].get_images()[0].get_array()
    assert np.array_equal(shown, np.asarray(overlay(images[1], words[0].maps[1], size=150)))
    with pytest.raises(LitEveError, match="there is no image 2: there are 2"):
        word_figure(images, words, 2)
    with pytest.raises(LitEveError, match="has maps over 2 images, but 1 are given"):
        word_figure(images[:1], words)
    with pytest.raises(LitEveError, match="no words"):
        word_figure(images, [])
    with pytest.raises(LitEveError, match="keeps the mean over layers and heads only"):
        word_maps(answer, processor, layer=0)
