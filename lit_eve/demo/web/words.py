"""Tokens become text while they are generated, and words that know their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_eve.interpretation.words import group_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_eve.processing import EveProcessor

_UNFINISHED = "\ufffd"  # what the tokenizer decodes bytes to that are not yet a character


@dataclass(frozen=True)
class Word:
    """A word of an answer.

    Attributes:
        text: without blanks.
        before: what stands between it and the word before, mostly blanks.
        steps: which of the generated tokens it is made of.
    """

    text: str
    before: str
    steps: tuple[int, ...]


class AnswerText:
    """The text of one answer, which grows token by token.

    A token is decoded with those just before it, since tokenizers write the first word of a text without its blank.

    Args:
        tokenizer: of the model.
        ends: texts that end the answer, and are no part of it, beside tokens that do.

    Attributes:
        ended: whether one of the texts did.
        closed: nothing follows, so that what looks like the beginning of an end is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[str] = ()) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self.ids: list[int] = []
        self.ended = self.closed = False
        self._text = ""
        self._context = self._written = 0  # where the tokens begin that are decoded again, and those with no text so far

    def push(self, token: int) -> None:
        """Add a token."""
        self.ids.append(token)
        known = self._decode(self.ids[self._context : self._written])
        text = self._decode(self.ids[self._context :])
        if len(text) <= len(known) or text.endswith(_UNFINISHED):
            return
        self._context, self._written = self._written, len(self.ids)
        self._text += text[len(known) :]
        self.ended = any(end in self._text for end in self.ends)

    @property
    def text(self) -> str:
        """What can be shown: without what ends the answer, or may become its end."""
        text = self._text
        if self.ended:
            text = text[: min(place for end in self.ends if (place := text.find(end)) >= 0)]
        elif not self.closed:
            begun = (size for end in self.ends for size in range(1, len(end)) if text.endswith(end[:size]))
            text = text[: len(text) - max(begun, default=0)]
        return text.strip()

    def words(self, processor: EveProcessor) -> list[Word]:
        """The words of :attr:`text`, in order."""
        special, text, place = set(self.tokenizer.all_special_ids), self.text, 0
        steps = [step for step, token in enumerate(self.ids) if token not in special]
        words = []
        for word, tokens in group_words([self.ids[step] for step in steps], processor):
            found = text.find(word, place)
            if found < 0:  # behind the text's end
                break
            words.append(Word(word, text[place:found], tuple(steps[token] for token in tokens)))
            place = found + len(word)
        return words

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
