from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_eve.demo.web.words import AnswerText, Word
from lit_eve.nano.world.tokenizer import make_tokenizer


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, as in the worst case of a byte-level vocabulary."""
    letters = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def words(text: AnswerText) -> list[Word]:
    return text.words(SimpleNamespace(tokenizer=text.tokenizer))


def pushed(text: AnswerText, ids: list[int]) -> list[str]:
    """What can be shown after each token."""
    shown = []
    for token in ids:
        text.push(token)
        shown.append(text.text)
    return shown


def test_words_know_their_tokens() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    text = AnswerText(tokenizer)
    assert pushed(text, ids) == ["a", "a red", "a red circle"]
    assert [(word.text, word.steps) for word in words(text)] == [("a", (0,)), ("red", (1,)), ("circle", (2,))]


def test_characters_of_several_tokens_are_shown_when_they_are_whole() -> None:
    text = AnswerText(bytes_tokenizer())
    shown = pushed(text, list("é 🙂\nשלום".encode()))
    assert "\ufffd" not in "".join(shown) and shown[0] == "" and shown[1] == "é" and shown[-1] == "é 🙂\nשלום"
    assert [(word.before, word.text) for word in words(text)] == [("", "é"), (" ", "🙂"), ("\n", "שלום")]
    assert [word.steps for word in words(text)] == [(0, 1), (3, 4, 5, 6), tuple(range(8, 16))]


def test_what_ends_an_answer_is_never_shown() -> None:
    text = AnswerText(bytes_tokenizer(), ["###"])
    shown = pushed(text, list(b"a #1 b##"))
    assert shown == ["a", "a", "a", "a #1", "a #1", "a #1 b", "a #1 b", "a #1 b"] and not text.ended
    text.push(ord("#"))
    assert text.ended and text.text == "a #1 b" and [word.text for word in words(text)] == ["a", "#", "1", "b"]


@pytest.mark.parametrize("ids", [[], list(b"  \n ")])
def test_an_empty_answer_has_no_words(ids: list[int]) -> None:
    text = AnswerText(bytes_tokenizer())
    pushed(text, ids)
    assert text.text == "" and words(text) == []


def test_special_tokens_are_counted_and_not_shown() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    text = AnswerText(tokenizer)
    pushed(text, [tokenizer.bos_token_id, ids[0], tokenizer.bos_token_id, *ids[1:], tokenizer.eos_token_id])
    assert [(word.text, word.steps) for word in words(text)] == [("a", (1,)), ("red", (3,)), ("circle", (4,))]
