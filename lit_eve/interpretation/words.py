"""Where a model looked when it wrote each word of an answer.

Notation: N images, H x W token grid of an image, A answer tokens.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from os.path import commonprefix
from typing import TYPE_CHECKING

from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.answers import AnswerAttention
from lit_eve.interpretation.overlay import overlay, picture_below
from lit_eve.interpretation.recording.intercept import indices
from lit_eve.plotting import SOFT, drawing
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_eve.processing import EveProcessor

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Chinese and Japanese have no blanks: one word each
_LETTER = rf"[^\s{_IDEOGRAPHS}{re.escape(string.punctuation)}’“”«»…、。，！？：；]"
_WORD = re.compile(rf"{_LETTER}+(?:(?:['’.-]|,(?=\d)){_LETTER}+)*|\S")


@dataclass(frozen=True)
class WordMap:
    """A word of an answer, and where the model looked when it wrote it."""

    word: str
    tokens: list[int]
    """Which of the answer's A tokens the word is made of."""
    maps: list[Tensor]
    """For each of the N images (H, W): attention, the mean over the word's tokens. Its sum is what falls on patches."""


def word_maps(
    answer: AnswerAttention, processor: EveProcessor, layer: int | None = None, head: int | None = None
) -> list[WordMap]:
    """A map over each image for every word that was generated. Punctuation stands alone, blanks are left out.

    Args:
        answer: what :func:`~lit_eve.interpretation.attend` returned; with ``reduce=None`` for a layer or head.
        processor: whose tokenizer split the words.
        layer: of the decoder, from 0; negative ones from the end of those that were recorded; None: the mean over them.
        head: the same.

    Raises:
        LitEveError: that layer or head is not recorded, or was reduced to the mean.
    """
    places = _place(answer.layers, layer, "layer"), _place(answer.heads, head, "head")
    maps = answer.maps
    if maps and maps[0].ndim == 3 and (layer, head) != (None, None):
        raise LitEveError("the answer keeps the mean over layers and heads only: attend(..., reduce=None) keeps each of them")
    if maps and maps[0].ndim > 3:
        for place in places:  # (A, L, h, H, W) -> (A, h, H, W) -> (A, H, W)
            maps = [one.mean(1) if place is None else one[:, place] for one in maps]
    return [
        WordMap(word, tokens, [one[tokens].mean(0) for one in maps])
        for word, tokens in group_words(answer.token_ids[answer.steps].tolist(), processor)
    ]


def _place(kept: Sequence[int], index: int | None, what: str) -> int | None:
    """Where in ``kept`` a layer or head is."""
    if index is None:
        return None
    if index < 0:
        index = sorted(kept)[indices([index], len(kept), f"recorded {what}")[0]]
    if index not in kept:
        raise LitEveError(f"{what} {index} is not recorded; recorded are {', '.join(map(str, kept))}")
    return kept.index(index)


def group_words(token_ids: Sequence[int], processor: EveProcessor) -> list[tuple[str, list[int]]]:
    """The words that tokens spell, and the places of the tokens of each.

    A token that holds several words counts for the first of them; one that holds a part of a character, for that character.
    """
    decode = lambda ids: processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # noqa: E731
    text = decode(token_ids)
    # Decoded alone, a token would lose the blank before it, or be half a character.
    agreed = (len(commonprefix([text, decode(token_ids[: count + 1])])) for count in range(len(token_ids)))
    ends = list(accumulate(agreed, max))
    word_at = {place: number for number, match in enumerate(_WORD.finditer(text)) for place in range(*match.span())}
    spans = list(zip([0, *ends], ends, strict=False))
    owners = [next((word_at[i] for i in range(start, max(end, start + 1)) if i in word_at), None) for start, end in spans]
    words = []
    for owner, places in groupby(range(len(owners)), key=owners.__getitem__):
        if owner is not None:
            tokens = list(places)
            words.append((text[spans[tokens[0]][0] : spans[tokens[-1]][1]].strip(), tokens))
    return words


def share_of(map: Tensor) -> str:
    """How much of the attention is on the patches of an image, in words."""
    share = map.sum().item()
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def word_figure(
    images: Sequence[ImageSource], words: Sequence[WordMap], image: int = 0, *, columns: int = 8, panel: float = 1.5
) -> Figure:
    """A strip: the image, then one overlay per word with the word as title, and the part of the attention on its patches.

    Every overlay has a scale of its own: its brightest spot is where the word looked most, however little that is.

    Args:
        images: what the model saw.
        words: of :func:`word_maps`.
        image: which of the images.
        columns: panels in a row.
        panel: longest side of a panel in inches.

    Raises:
        LitEveError: there are no words, or no such image.
    """
    if not words:
        raise LitEveError("there are no words to draw")
    picture, image = picture_below(images, image, {f"the word {word.word!r}": word.maps for word in words})
    columns = min(columns, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    width, height = (panel * side / max(picture.size) for side in picture.size)
    with drawing(rows, columns, (columns * max(width, 0.8), rows * (height + 0.45))) as (drawn, axes):
        for axis in axes.flat:
            axis.axis("off")
        axes.flat[0].imshow(picture)
        axes.flat[0].set_title("image", color=SOFT, loc="center")
        for axis, word in zip(axes.flat[1:], words, strict=False):
            axis.imshow(overlay(picture, word.maps[image], size=round(panel * 150)))
            axis.set_title(f"{word.word}\n{share_of(word.maps[image])}", loc="center", parse_math=False)
    return drawn
