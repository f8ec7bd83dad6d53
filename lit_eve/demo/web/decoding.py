"""One model writes many answers at once; new ones join while others are being written, finished ones leave.

Notation: B answers, T positions of the longest, V vocabulary, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from lit_eve.demo.session import check_room
from lit_eve.demo.web.words import AnswerText
from lit_eve.models.generation.answer_ends import stop_arguments

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Args:
        max_new_tokens: of the longest answer.
        temperature: flattens (above 1) or sharpens the distribution; 0: the likeliest token.
        top_p: only from the likeliest tokens that share this probability.
        seed: same seed, same answer, whoever else is answered at the same time.
        stop: texts that end the answer as well, and are no part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Writing:
    """An answer that is being written.

    Args:
        decoder: writes it.
        messages: the conversation.
        sampling: how tokens are drawn.

    Raises:
        LitEveError: the conversation cannot be used, or does not fit the decoder's context.
    """

    def __init__(self, decoder: Decoder, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> None:
        model, processor = decoder.model, decoder.processor
        self.inputs = processor(conversation=messages)
        prompt = self.inputs["input_ids"]  # (1, T)
        self.prompt_length = prompt.shape[1]
        room = check_room(model, self.prompt_length, "clear it, or ask with fewer images or words")
        self.most = sampling.max_new_tokens if room is None else min(sampling.max_new_tokens, room)
        self.fills_context = self.most < sampling.max_new_tokens
        end = processor.answer_end().text
        self.text = AnswerText(processor.tokenizer, [*sampling.stop, *([] if end is None else [end])])
        self.ended = self.finished = False  # by a token or text that ends answers; for any reason
        config = copy.deepcopy(model.generation_config)
        config.update(do_sample=sampling.temperature > 0)
        if config.do_sample:
            config.update(temperature=sampling.temperature, top_p=sampling.top_p)
        model._prepare_special_tokens(config, device=model.device)
        # What `generate` does to scores, with the settings that the checkpoint brings.
        self._processors = model._get_logits_processor(
            config, input_ids_seq_length=self.prompt_length, encoder_input_ids=prompt, device=model.device
        )
        self._random = torch.Generator().manual_seed(sampling.seed) if config.do_sample else None
        self._ids = prompt.to(model.device)
        self._ends = decoder.ends

    def choose(self, scores: Tensor) -> int:
        """Draw the next token from the scores (V,), and write it down."""
        scores = self._processors(self._ids, scores[None].float())[0]
        if self._random is None:
            token = int(scores.argmax())
        else:  # on the CPU, so that a seed gives the same on all devices
            token = int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self._random))
        self._ids = F.pad(self._ids, (0, 1), value=token)
        self.text.push(token)
        self.ended = token in self._ends or self.text.ended
        self.finished = self.ended or len(self.text.ids) >= self.most
        return token


class Decoder:
    """A model, and the answers that it is writing.

    Args:
        model: in eval mode.
        processor: the model's.
    """

    def __init__(self, model: EveForConditionalGeneration, processor: EveProcessor) -> None:
        self.model, self.processor = model, processor
        ends = stop_arguments(model, processor, 0)["eos_token_id"]
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.rows: list[Writing] = []
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0, 0, dtype=torch.int64)  # (B, T)
        self._next = torch.empty(0, 1, dtype=torch.int64)  # (B, 1)
        self._positions: Tensor | None = None  # (B, 1, 4) of the next tokens, unless they are counted

    @property
    def takes_more(self) -> bool:
        """Whether an answer can be added now: caches with windows or recurrent states cannot be joined."""
        return not self.rows or all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def clear(self) -> None:
        """Forget all answers."""
        self.rows, self._cache = [], None

    @torch.inference_mode()
    def add(self, rows: Sequence[Writing]) -> None:
        """Read the prompts of new answers, and draw their first tokens."""
        device, pad = self.model.device, self.processor.tokenizer.pad_token_id or 0
        longest = max(row.inputs["input_ids"].shape[1] for row in rows)
        padded = {
            key: torch.cat([_widen(row.inputs[key], longest, dim=1, value=value) for row in rows])
            for key, value in (("input_ids", pad), ("attention_mask", 0))
        }
        images = {key: torch.cat([row.inputs[key] for row in rows]) for key in ("pixel_values", "image_grid_hw")}
        inputs = {key: value.to(device) for key, value in (padded | images).items()}
        mask = inputs["attention_mask"]
        output = self.model(**inputs, position_ids=_positions(mask), use_cache=True, logits_to_keep=1)
        positions = self.model.position_tokens(inputs["input_ids"], inputs["image_grid_hw"], mask)
        if positions is not None:
            positions = self.model.positions.following(positions, 1)
        for row in rows:
            row.inputs = None  # pixels are of no further use
        tokens = [row.choose(scores) for row, scores in zip(rows, output.logits[:, -1], strict=True)]
        following = torch.tensor(tokens, device=device)[:, None]  # (B, 1)
        if self.rows:
            self._cache, self._mask = _joined(self._cache, self._mask, output.past_key_values, mask)
            self._next = torch.cat([self._next, following])
            if positions is not None:
                positions = torch.cat([self._positions, positions])
        else:
            self._cache, self._mask, self._next = output.past_key_values, mask, following
        self._positions = positions
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> None:
        """One token for each answer."""
        self._mask = F.pad(self._mask, (0, 1), value=1)  # (B, T + 1)
        output = self.model(
            input_ids=self._next,
            attention_mask=self._mask,
            position_ids=_positions(self._mask)[:, -1:],
            token_positions=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if self._positions is not None:
            self._positions = self.model.positions.following(self._positions, 1)
        scores = output.logits[:, -1]  # (B, V)
        tokens = [0 if row.finished else row.choose(scores[i]) for i, row in enumerate(self.rows)]
        self._next = torch.tensor(tokens, device=scores.device)[:, None]

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take the answers out that are finished, where the cache can be cut; the others leave with the last of their round."""
        left = [i for i, row in enumerate(self.rows) if not row.finished]
        if not left:
            self.clear()
        elif len(left) < len(self.rows) and self.takes_more:
            kept = torch.tensor(left, device=self._mask.device)
            self.rows = [self.rows[i] for i in left]
            self._next, mask = self._next[kept], self._mask[kept]
            if self._positions is not None:
                self._positions = self._positions[kept]
            padding = int(mask.argmax(1).min())  # in front of every prompt
            self._mask = mask[:, padding:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[kept, :, padding:], layer.values[kept, :, padding:]


def _positions(mask: Tensor) -> Tensor:
    """(B, T) positions that count from the first token behind the padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _widen(tensor: Tensor, size: int, dim: int, value: float = 0) -> Tensor:
    """The tensor with padding in front along a dimension."""
    missing = size - tensor.shape[dim]
    return F.pad(tensor, (0, 0) * (tensor.ndim - dim - 1) + (missing, 0), value=value) if missing else tensor


def _joined(one: DynamicCache, one_mask: Tensor, other: DynamicCache, other_mask: Tensor) -> tuple[DynamicCache, Tensor]:
    """Two caches and their masks below each other, padded in front to one length."""
    length = max(one_mask.shape[1], other_mask.shape[1])
    for layer, added in zip(one.layers, other.layers, strict=True):
        for name in ("keys", "values"):  # (B, heads, T, d)
            both = [_widen(getattr(part, name), length, dim=2) for part in (layer, added)]
            setattr(layer, name, torch.cat(both))
    return one, torch.cat([_widen(mask, length, dim=1) for mask in (one_mask, other_mask)])
