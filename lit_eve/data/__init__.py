"""Samples become batches: WebDataset shards, their index, packing as a pure plan, exact resume, a datamodule per stage."""

from __future__ import annotations

from lit_eve.data.datamodules import EveDataModule, FinetuneDataModule, PrealignDataModule, PretrainDataModule, Source
from lit_eve.data.dataset import model_inputs, read_samples
from lit_eve.data.prompts import PromptBatch, prompt_loader, share_prompts
from lit_eve.data.shards import ShardReader, ShardWriter

__all__ = [
    "EveDataModule",
    "FinetuneDataModule",
    "PrealignDataModule",
    "PretrainDataModule",
    "PromptBatch",
    "ShardReader",
    "ShardWriter",
    "Source",
    "model_inputs",
    "prompt_loader",
    "read_samples",
    "share_prompts",
]
