"""Segments become token ids and labels.

Texts between two images (or special tokens) are tokenised in one piece, as upstream does between images, and the
tokenizer's own offsets say which token lies in a supervised part: no piece is ever tokenised twice.

Sentencepiece vocabularies (LLaMA, Vicuna) begin a text with a space that is not there. transformers 5 leaves it out when the
text has a space of its own; sentencepiece, and with it the tokenizers that these models were trained with, does not. Here it
is always put, as there. After a special token it is put for ``legacy=True`` only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.around_images import AroundImages
from lit_eve.processing.templates import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
_LONGEST_WORD = 40  # characters of an unknown word that are kept


@dataclass
class Chunk:
    """Segments that are tokenised together: a run of texts, one special token, or one image."""

    kind: str
    text: str = ""
    spans: list[tuple[int, bool]] = field(default_factory=list)  # (characters, supervised) of each text in the run


@dataclass(frozen=True)
class Tokens:
    """Token ids and labels of one sample; -100 where nothing is supervised. ``images`` are the (start, end) of slots."""

    input_ids: list[int]
    labels: list[int]
    images: list[tuple[int, int]]

    def truncate(self, max_length: int | None, with_labels: bool = True) -> Tokens:
        """The first ``max_length`` tokens.

        Raises:
            SampleError: an image would be cut, or (``with_labels``) nothing that is supervised is left.
        """
        total = len(self.input_ids)
        kept = total if max_length is None else min(total, max_length)
        for index, (_, end) in enumerate(self.images, 1):
            if end > kept:
                raise SampleError(f"image {index} of {len(self.images)} ends at token {end} and does not fit in {kept} tokens")
        labels = self.labels[:kept]
        if with_labels and all(label == IGNORE for label in labels[1:]):  # nothing predicts the first
            raise SampleError(f"nothing that is supervised lies in the first {kept} of its {total} tokens")
        return Tokens(self.input_ids[:kept], labels, self.images)


@dataclass
class UnknownWords:
    """What a tokenizer does not know of texts.

    Args:
        tokens: of all the texts.
        unknown: how many of them stand for what the vocabulary does not have (``<unk>``).
        words: those, and how often each.
    """

    tokens: int = 0
    unknown: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def add(self, other: UnknownWords) -> None:
        """Count the texts of another as well."""
        self.tokens += other.tokens
        self.unknown += other.unknown
        self.words.update(other.words)

    def __str__(self) -> str:
        named = ", ".join(f"{word!r} ({count})" for word, count in self.words.most_common(8))
        rest = f" and {len(self.words) - 8} more" if len(self.words) > 8 else ""
        return (
            f"{self.unknown / max(self.tokens, 1):.2%} of the tokens of its texts ({self.unknown}) stand for words that the "
            f"tokenizer does not know: {named}{rest}"
        )


class TextEncoder:
    """The tokenizer's vocabulary and rules for plain text: what looks like a special token is text like any other.

    Args:
        tokenizer: any fast tokenizer of transformers. It is copied, never changed.
        image_token_id: what fills the slots of images; no text can contain it.
        around_images: what stands before and after the slots of each image; no text can contain its tokens.

    Raises:
        ConfigError: the tokenizer is not backed by the ``tokenizers`` library, or lacks a token of ``around_images``.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_token_id: int, around_images: AroundImages | None = None
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"a fast tokenizer is needed, got {type(tokenizer).__name__}")
        state = json.loads(backend.to_str())
        state.update(truncation=None, padding=None, post_processor=None)
        scheme = _dummy_prefix(state)
        self._prefix_always = scheme == "always"
        self._prefix = scheme is not None
        if scheme is not None:
            state["pre_tokenizer"]["prepend_scheme"] = "never"
        self._around = (around_images or AroundImages()).segments(tokenizer, image_token_id)
        reserved = {segment.text for part in self._around for segment in part if segment.kind == "special"}
        for token in state["added_tokens"]:
            token["special"] |= token["id"] == image_token_id or token["content"] in reserved
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._tokenizer.encode_special_tokens = True
        self.image_token_id = image_token_id
        self._special_ids = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
        self.begin = _begin(tokenizer)
        self._unknown_id = _unknown_id(state, self._tokenizer)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer.encode_special_tokens = True  # which its pickles and copies forget

    def encode(self, segments: Iterable[Segment], image_lengths: Sequence[int], bos: bool) -> Tokens:
        """Ids and labels of a prompt.

        Args:
            segments: from a template.
            image_lengths: tokens of each image, in order.
            bos: put the tokenizer's own beginning in front.

        Raises:
            SampleError: there are more or fewer places than images.
        """
        chunks = self._chunks(segments)
        lengths = iter(_matched(chunks, image_lengths))
        input_ids: list[int] = list(self.begin) if bos else []
        labels = [IGNORE] * len(input_ids)
        images: list[tuple[int, int]] = []
        for chunk, previous in zip(chunks, ["image", *(chunk.kind for chunk in chunks)], strict=False):
            if chunk.kind == "image":
                length = next(lengths)
                images.append((len(input_ids), len(input_ids) + length))
                input_ids += [self.image_token_id] * length
                labels += [IGNORE] * length
            elif chunk.kind == "special":
                token = self._special_ids[chunk.text]
                input_ids.append(token)
                labels.append(token if chunk.spans[0][1] else IGNORE)
            else:
                ids, targets = self._encode_text(chunk, previous)
                input_ids += ids
                labels += targets
        return Tokens(input_ids, labels, images)

    def count(
        self,
        prompts: Sequence[Sequence[Segment]],
        image_lengths: Sequence[Sequence[int]],
        bos: bool,
        unknown: UnknownWords | None = None,
    ) -> list[int | SampleError]:
        """The lengths that ``encode`` would give, all prompts at once; a SampleError stands where it would be raised.

        Args:
            unknown: what the vocabulary does not have of these texts is added to it.
        """
        totals: list[int | SampleError] = []
        texts: list[str] = []
        owners: list[int] = []
        for index, (segments, lengths) in enumerate(zip(prompts, image_lengths, strict=True)):
            chunks = self._chunks(segments)
            try:
                total = sum(_matched(chunks, lengths)) + (len(self.begin) if bos else 0)
            except SampleError as error:
                totals.append(error)
                continue
            previous = "image"
            for chunk in chunks:
                if chunk.kind == "special":
                    total += 1
                elif chunk.kind == "text":
                    texts.append(self._prefix_of(previous) + chunk.text)
                    owners.append(index)
                previous = chunk.kind
            totals.append(total)
        for owner, text, encoding in zip(owners, texts, self._tokenizer.encode_batch_fast(texts), strict=True):
            totals[owner] += len(encoding)
            if unknown is not None:
                unknown.tokens += len(encoding)
                if self._unknown_id is not None and self._unknown_id in encoding.ids:
                    self._note_unknown(text, unknown)
        return totals

    def _chunks(self, segments: Iterable[Segment]) -> list[Chunk]:
        chunks: list[Chunk] = []
        before, after = self._around
        for segment in segments:
            for piece in (*before, segment, *after) if segment.kind == "image" else (segment,):
                if not piece.text:
                    continue
                if piece.kind != "text" or not chunks or chunks[-1].kind != "text":
                    chunks.append(Chunk(piece.kind))
                chunks[-1].text += piece.text
                chunks[-1].spans.append((len(piece.text), piece.supervised))
        return chunks

    def _note_unknown(self, text: str, unknown: UnknownWords) -> None:
        encoding = self._tokenizer.encode(text)
        for id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id == self._unknown_id:
                unknown.unknown += 1
                unknown.words[text[start:end].strip()[:_LONGEST_WORD]] += 1

    def _prefix_of(self, previous: str) -> str:
        """The space that is not there, in front of a text that follows a chunk of kind ``previous``."""
        return " " if self._prefix and (previous == "image" or self._prefix_always) else ""

    def _encode_text(self, chunk: Chunk, previous: str) -> tuple[list[int], list[int]]:
        prefix = self._prefix_of(previous)
        encoding = self._tokenizer.encode(prefix + chunk.text)
        supervised = np.repeat([flag for _, flag in chunk.spans], [length for length, _ in chunk.spans])
        if supervised.all() or not supervised.any():
            return encoding.ids, encoding.ids if supervised[0] else [IGNORE] * len(encoding.ids)
        offsets = np.array(encoding.offsets, dtype=int).reshape(-1, 2)  # (tokens, start and end), in characters
        # A token belongs to the part in which its last character lies; the prefix to that of the first character.
        last = np.maximum(offsets[:, 1] - 1, offsets[:, 0]) - len(prefix)
        ids = np.array(encoding.ids, dtype=int)
        labels = np.where(supervised[last.clip(0, len(supervised) - 1)], ids, IGNORE)
        return encoding.ids, labels.tolist()


def _dummy_prefix(state: dict[str, Any]) -> str | None:
    """When a sentencepiece vocabulary puts its prefix ("first", "always"); None for other tokenizers."""
    rule = state.get("pre_tokenizer") or {}
    if rule.get("type") != "Metaspace" or rule.get("split", True) or rule.get("prepend_scheme") == "never":
        return None
    return rule["prepend_scheme"]


def _unknown_id(state: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """The id that stands for what a vocabulary does not have; None where it has everything, byte by byte."""
    model = state["model"]
    if model.get("byte_fallback") or "ByteLevel" in json.dumps([state.get("pre_tokenizer"), state.get("normalizer")]):
        return None
    if model["type"] == "Unigram":
        return model.get("unk_id")
    return None if model.get("unk_token") is None else tokenizer.token_to_id(model["unk_token"])


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts in front of a text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    text = next((i for i, special in enumerate(encoding["special_tokens_mask"]) if not special), None)
    return encoding["input_ids"][:text]


def _matched(chunks: Sequence[Chunk], image_lengths: Sequence[int]) -> Sequence[int]:
    places = sum(chunk.kind == "image" for chunk in chunks)
    if places != len(image_lengths):
        raise SampleError(f"the text has {places} places for images (<image>), but there are {len(image_lengths)} images")
    return image_lengths
