"""Tokens become text while they are generated, and words that know their tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"  # what the tokenizer decodes bytes to that are not yet a character


@dataclass(frozen=True)
class Word:
    """A word of an answer.

    Attributes:
        text: without blanks.
        before: the blanks in front of it.
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
        end: a text that ends the answer, and is no part of it; None: a token does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: str | None = None) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.ids: list[int] = []
        self.ended = False
        self._text = ""
        self._pieces: list[tuple[str, tuple[int, ...]]] = []
        self._context = self._written = 0  # where the tokens begin that are decoded again, and those with no text so far

    def push(self, token: int) -> None:
        """Add a token."""
        self.ids.append(token)
        known = self._decode(self.ids[self._context : self._written])
        text = self._decode(self.ids[self._context :])
        if len(text) <= len(known) or text.endswith(_UNFINISHED):
            return
        piece, steps = text[len(known) :], tuple(range(self._written, len(self.ids)))
        self._context, self._written = self._written, len(self.ids)
        self._pieces.append((piece, steps))
        self._text += piece
        self.ended = self.end is not None and self.end in self._text

    @property
    def text(self) -> str:
        """What can be shown: without what ends the answer, or may become its end."""
        text = self._text
        if self.end is not None:
            text = text.partition(self.end)[0]
            if not self.ended:
                beginnings = (size for size in range(len(self.end) - 1, 0, -1) if text.endswith(self.end[:size]))
                text = text[: len(text) - next(beginnings, 0)]
        return text.strip()

    def words(self) -> list[Word]:
        """The words of :attr:`text`, in order."""
        begin = len(self._text) - len(self._text.lstrip())
        return split_words(self._pieces, begin, begin + len(self.text))

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


def split_words(pieces: Sequence[tuple[str, tuple[int, ...]]], begin: int, end: int) -> list[Word]:
    """What stands between blanks in pieces of text, each with its steps, of which the characters begin..end count."""
    text = "".join(piece for piece, _ in pieces)[:end]
    spans, place = [], 0
    for piece, steps in pieces:
        spans.append((place, place + len(piece), steps))
        place += len(piece)
    words, last = [], begin
    for match in re.compile(r"\S+").finditer(text, begin):
        steps = {step for start, stop, steps in spans if start < match.end() and stop > match.start() for step in steps}
        words.append(Word(match[0], text[last : match.start()], tuple(sorted(steps))))
        last = match.end()
    return words
