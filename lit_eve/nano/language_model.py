"""The miniature world's decoder: a LLaMA of a third of a million weights, trained on text alone."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lit_eve.nano.fit import ADAMW, fit, optimize
from lit_eve.nano.language import ASSISTANT
from lit_eve.nano.progress import is_done, mark_done
from lit_eve.nano.tokenizer import make_tokenizer
from lit_eve.nano.world import DOCUMENTS
from lit_eve.training.optimizers import check_optimizer

SORTED_BATCHES = 50  # documents are sorted by length within so many batches: little padding, yet any length at any time


@dataclass(frozen=True)
class LanguageModelSettings:
    """The language model and its training.

    Args:
        width, layers, heads, feed_forward: its size.
        init: standard deviation of the initial weights.
        steps, batch, lr: length of the training, documents per step, peak learning rate.
        optimizer: by name, with its arguments, as in {name: muon, weight_decay: 0.1}.
        seed: of the initial weights and of the order of the documents.
        checkpoint_every: steps between checkpoints.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    init: float = 0.08
    steps: int = 2000
    batch: int = 10
    lr: float = 2e-3
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(ADAMW))
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)


class LitLanguageModel(LightningModule):
    """Next-token prediction on all tokens of each document."""

    def __init__(self, settings: LanguageModelSettings, tokenizer: Any) -> None:
        super().__init__()
        self.settings = settings
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
            )
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(**batch).loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        return optimize(self, self.settings.optimizer, self.settings.lr, self.settings.steps)


class Documents:
    """Tokenised documents in padded batches; training batch number i is a pure function of i.

    Args:
        folder: holds a JSONL file with ``{"text": ...}`` per line.
    """

    def __init__(self, folder: Path, tokenizer: Any, batch: int, seed: int = 0) -> None:
        texts = [json.loads(line)["text"] for line in (folder / DOCUMENTS).read_text().splitlines()]
        self.tokens: list[list[int]] = tokenizer(texts).input_ids
        self.pad_token_id = tokenizer.pad_token_id
        order = list(range(len(self.tokens)))
        rng = random.Random(seed)
        rng.shuffle(order)
        self.batches: list[list[int]] = []
        for start in range(0, len(order), batch * SORTED_BATCHES):
            window = sorted(order[start : start + batch * SORTED_BATCHES], key=lambda index: len(self.tokens[index]))
            batches = [window[i : i + batch] for i in range(0, len(window), batch)]
            rng.shuffle(batches)
            self.batches += batches

    def __call__(self, index: int) -> dict[str, Tensor]:
        """``input_ids`` and ``labels`` (B, T), the latter -100 on padding."""
        tokens = [self.tokens[i] for i in self.batches[index % len(self.batches)]]
        shape = len(tokens), max(map(len, tokens))
        input_ids, labels = torch.full(shape, self.pad_token_id), torch.full(shape, -100)
        for row, document in enumerate(tokens):
            input_ids[row, : len(document)] = labels[row, : len(document)] = torch.tensor(document)
        return {"input_ids": input_ids, "labels": labels}


@torch.no_grad()
def answer_accuracy(module: LitLanguageModel, documents: Documents, tokenizer: Any) -> float:
    """How many of the last answers of the documents the model gives, word by word and to their end, 0 to 1."""
    module.eval()
    colon = tokenizer.convert_tokens_to_ids(ASSISTANT)
    right = total = 0
    for index in range(len(documents.batches)):
        batch = documents(index)
        guessed = module.model(batch["input_ids"]).logits[:, :-1].argmax(-1)
        wanted = batch["labels"][:, 1:]
        position = torch.arange(wanted.shape[1])
        start = (batch["input_ids"][:, :-1].eq(colon) * position).amax(1, keepdim=True)
        right += ((guessed == wanted) | (position < start) | (wanted == -100)).all(1).sum().item()
        total += len(wanted)
    return right / total


def train_language_model(run_dir: str | Path, settings: LanguageModelSettings = LanguageModelSettings()) -> Path:
    """Train on ``run_dir/data/text`` and save model and tokenizer to ``run_dir/language_model``, transformers' way.

    Goes on from its last checkpoint; does nothing when it is done.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds a model made with other settings.
    """
    folder, data = Path(run_dir) / "language_model", Path(run_dir) / "data"
    if is_done(folder, settings):
        return folder
    seed_everything(settings.seed, verbose=False)
    tokenizer = make_tokenizer()
    module = LitLanguageModel(settings, tokenizer)
    documents = Documents(data / "text", tokenizer, settings.batch, settings.seed)
    fit(module, documents, settings.steps, folder, settings.checkpoint_every)
    accuracy = answer_accuracy(module.cpu(), Documents(data / "validation_text", tokenizer, batch=64), tokenizer)
    module.model.config.use_cache = True
    module.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark_done(folder, settings, {"answer_accuracy": accuracy})
    return folder
