"""What ``lit-eve plan`` counts is there: parameters exactly, the FLOPs of a training step as torch counts them, its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.decoders import blocks_of
from lit_eve.planning.flops import Flops, Workload, meta_model, total_flops, training_flops, window_of
from lit_eve.testing.kept import check_kept
from lit_eve.testing.samples import LAYOUTS, make_sample, packed
from lit_eve.training.stages import get_stage

BOUND = 0.02
"""Largest difference of the FLOPs, as a share of those that torch counts."""


def check_planned(model: EveForConditionalGeneration) -> None:
    """Parameters of each part, and the FLOPs and the memory of a step in which everything trains.

    Raises:
        ConfigError: the FLOPs of this decoder are not known.
    """
    teacher = None if model.teacher is None else model.teacher.backbone.config
    meta = meta_model(model.config, teacher)
    planned, there = _sizes(meta), _sizes(model)
    assert planned == there, f"lit-eve plan counts the parameters {planned}, the model has {there}"
    stage = get_stage("pretrain")
    stage.apply(model)
    stage.apply(meta)
    batch = packed([[make_sample(model, LAYOUTS["several images"])]])
    workload = Workload.of_batch(batch)
    flops = training_flops(model.config, workload, stage, teacher)
    # The plan counts pairs that see each other; eager attention computes all.
    images = None if model.image_attention.is_causal else model.geometry.num_tokens_of_grid(batch["image_grid_hw"]).numpy()
    blocks, length = blocks_of(model.get_decoder()), batch["input_ids"].shape[1]
    pairs = sum(workload.attended_pairs(window_of(block, model.config.text_config), images) for block in blocks)
    flops["attention"] = Flops(*(part * len(blocks) * length**2 / pairs for part in flops["attention"]))
    compare_flops(total_flops(flops), _seen_by_torch(model, batch))
    check_kept(model, meta)


def compare_flops(planned: float, seen: float) -> None:
    """FLOPs of a step as planned, and as torch sees them."""
    assert abs(planned - seen) <= BOUND * seen, (
        f"lit-eve plan counts {planned:.4g} FLOPs in a training step, torch {seen:.4g}: {planned / seen - 1:+.1%}, where "
        f"{BOUND:.0%} are allowed"
    )


def _sizes(model: EveForConditionalGeneration) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        sizes[name.split(".")[0]] += parameter.numel()
    return dict(sizes)


def _seen_by_torch(model: EveForConditionalGeneration, batch: dict[str, torch.Tensor]) -> int:
    with _products_alone(model), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()


@contextmanager
def _products_alone(model: EveForConditionalGeneration) -> Iterator[None]:
    """All that attends inside, also vision encoders, does so by plain products: torch does not count all kernels."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
