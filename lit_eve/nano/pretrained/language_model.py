"""The miniature world's decoder: a LLaMA of a third of a million weights, trained on text alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_eve.errors import ConfigError
from lit_eve.nano.pretrained.fit import MUON, LitPretrained, train
from lit_eve.nano.world.datasets import DOCUMENTS
from lit_eve.nano.world.language import ASSISTANT, glyph
from lit_eve.nano.world.scenes import COLOURS, SHAPES, SIZES
from lit_eve.training.optimizers import check_optimizer

SORTED_DOCUMENTS = 600  # are sorted by length together: little padding, yet any length at any time


@dataclass(frozen=True)
class LanguageModelSettings:
    """The language model and its training.

    Args:
        width, layers, heads, feed_forward: its size.
        init: standard deviation of the initial weights.
        steps, tokens, lr: length of the training, tokens per step with padding, peak learning rate.
        optimizer: by name, with its arguments, as in {name: muon, weight_decay: 0.1}.
        tied: whether one matrix is both embedding and head.
        words_of_glyphs: whether the first vector of a word that is made of others is the sum of theirs: the model then knows
            that a small-red-circle is small, red and a circle before it has read anything.
        matching_heads: heads of each layer that begin by looking for what is like themselves and by copying what they find
            (keys like queries, output like values), as induction heads end up.
        chats_from: fraction of the steps before which no chat is read.
        seed: of the initial weights and of the order of the documents.
        checkpoint_every: steps between checkpoints.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    init: float = 0.08
    steps: int = 1700
    tokens: int = 600
    lr: float = 5e-3
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(MUON))
    tied: bool = True
    words_of_glyphs: bool = True
    matching_heads: int = 2
    chats_from: float = 0.35
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)
        if self.width % self.heads:
            raise ConfigError(f"width: {self.width} is no multiple of heads: {self.heads}")
        if self.matching_heads > self.heads:
            raise ConfigError(f"matching_heads: {self.matching_heads} are more than heads: {self.heads}")


class LitLanguageModel(LitPretrained):
    """Next-token prediction on all tokens of each document."""

    def __init__(self, settings: LanguageModelSettings, tokenizer: Any) -> None:
        super().__init__(settings, tokenizer)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.width,
                intermediate_size=settings.feed_forward,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                initializer_range=settings.init,
                max_position_embeddings=512,
                use_cache=False,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                tie_word_embeddings=settings.tied,
            )
        )
        if settings.words_of_glyphs:
            compose_embeddings(self.model.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids)
        for layer in self.model.model.layers:
            match_heads(layer.self_attn, settings.matching_heads * settings.width // settings.heads)

    def batches(self, data: Path) -> Documents:
        settings = self.settings
        return Documents(data / "text", self.tokenizer, settings.tokens, settings.seed, settings.steps, settings.chats_from)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def evaluate(self, data: Path) -> dict[str, float]:
        documents = Documents(data / "validation_text", self.tokenizer, tokens=4096)
        return {"answer_accuracy": answer_accuracy(self.model, documents, self.tokenizer)}

    def save(self, folder: Path) -> None:
        self.model.config.use_cache = True
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@torch.no_grad()
def compose_embeddings(table: Tensor, id_of: Callable[[str], int]) -> None:
    """Give words that are made of others the sum of their vectors, in the length of one.

    Args:
        table: (V, D), changed in place.
        id_of: the row of a word.
    """
    for words in product(SIZES, COLOURS, SHAPES):
        table[id_of(glyph(*words))] = sum(table[id_of(word)] for word in words) / len(words) ** 0.5


@torch.no_grad()
def match_heads(attention: nn.Module, size: int) -> None:
    """Let the first ``size`` of the (width) channels of an attention's heads look for what is like themselves, and copy it."""
    attention.k_proj.weight[:size] = attention.q_proj.weight[:size]
    attention.o_proj.weight[:, :size] = attention.v_proj.weight[:size].T


class Documents:
    """Tokenised documents in padded batches; training batch number i is a pure function of i.

    Args:
        folder: holds a JSONL file with ``{"kind": ..., "text": ...}`` per line.
        tokenizer: turns texts into ids.
        tokens: of a batch at most, padding included.
        seed: of the order of the documents.
        steps: how many batches there shall be; None: each document once.
        chats_from: no chats before this fraction of the steps, and as many of them in all as without, if there is room for
            them: a model that knows what belongs to what learns questions faster.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, tokens: int, seed: int = 0, steps: int | None = None, chats_from: float = 0.0
    ) -> None:
        documents = [json.loads(line) for line in (folder / DOCUMENTS).read_text().splitlines()]
        self.tokens: list[list[int]] = tokenizer([document["text"] for document in documents]).input_ids
        self.pad_token_id = tokenizer.pad_token_id
        rng = random.Random(seed)
        chats, others = (
            self._cut([i for i, document in enumerate(documents) if (document["kind"] == "chat") == chat], tokens, rng)
            for chat in (True, False)
        )
        self.batches = chats + others
        if steps is not None:
            self.batches = _scheduled(chats, others, steps, int(chats_from * steps), rng)

    def _cut(self, documents: list[int], tokens: int, rng: random.Random) -> list[list[int]]:
        """Batches of documents of like lengths."""
        rng.shuffle(documents)
        batches: list[list[int]] = []
        for start in range(0, len(documents), SORTED_DOCUMENTS):
            window = sorted(documents[start : start + SORTED_DOCUMENTS], key=lambda index: len(self.tokens[index]))
            cut: list[list[int]] = [[]]
            for index in window:
                if cut[-1] and (len(cut[-1]) + 1) * len(self.tokens[index]) > tokens:
                    cut.append([])
                cut[-1].append(index)
            rng.shuffle(cut)
            batches += cut
        return batches

    def __call__(self, index: int) -> dict[str, Tensor]:
        """``input_ids`` and ``labels`` (B, T), the latter -100 on padding."""
        tokens = [self.tokens[i] for i in self.batches[index]]
        shape = len(tokens), max(map(len, tokens))
        input_ids, labels = torch.full(shape, self.pad_token_id), torch.full(shape, -100)
        for row, document in enumerate(tokens):
            input_ids[row, : len(document)] = labels[row, : len(document)] = torch.tensor(document)
        return {"input_ids": input_ids, "labels": labels}


def _scheduled(
    chats: list[list[int]], others: list[list[int]], steps: int, before_chats: int, rng: random.Random
) -> list[list[int]]:
    """So many batches, each kind's in its order, again and again: the others alone first, then both in any order."""
    if not others or not chats:
        return list(islice(cycle(chats + others), steps))
    share = len(chats) / len(chats + others)
    number = min(round(share * steps), steps - before_chats)  # of batches of chats
    kinds = [True] * number + [False] * (steps - before_chats - number)
    rng.shuffle(kinds)
    sources = {True: cycle(chats), False: cycle(others)}
    return [next(sources[kind]) for kind in [False] * before_chats + kinds]


def answer_accuracy(model: LlamaForCausalLM, documents: Documents, tokenizer: Any) -> float:
    """How many of the last answers of the documents the model gives, word by word and to their end, 0 to 1."""
    colon = tokenizer.convert_tokens_to_ids(ASSISTANT)
    right = total = 0
    for index in range(len(documents.batches)):
        batch = documents(index)
        guessed = model(batch["input_ids"]).logits[:, :-1].argmax(-1)
        wanted = batch["labels"][:, 1:]
        position = torch.arange(wanted.shape[1])
        start = (batch["input_ids"][:, :-1].eq(colon) * position).amax(1, keepdim=True)
        right += ((guessed == wanted) | (position < start) | (wanted == -100)).all(1).sum().item()
        total += len(wanted)
    return right / total


def train_language_model(run_dir: str | Path, settings: LanguageModelSettings = LanguageModelSettings()) -> Path:
    """Train on ``run_dir/data/text`` and save model and tokenizer to ``run_dir/language_model``; see `train`.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds a model made with other settings.
    """
    return train(LitLanguageModel, settings, Path(run_dir) / "data", Path(run_dir) / "language_model")
