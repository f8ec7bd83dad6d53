"""A training step never asks the device for a number: the meta device, which has none to give, can run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from lit_eve.models import EveConfig
from lit_eve.planning.flops import meta_model
from lit_eve.training.stages import STAGES, Stage
from tests.models import tiny


class Calls(TorchDispatchMode):
    """Counts the operations that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def to_meta(batch: dict) -> dict:
    return {key: x.to("meta") if isinstance(x, Tensor) else x for key, x in batch.items()}


def step(model, stage: Stage, batch: dict) -> Counter[str]:
    rates = stage.rates(name for name, _ in model.named_parameters() if not name.startswith("teacher."))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates.get(name) is not None)
    with Calls() as calls:
        model(**batch).loss.backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {name for name, rate in rates.items() if rate is not None}
    return calls.count


def steps() -> Iterator[Any]:
    """Each stage with each dtype, kind of model, and with checkpointing; what changes more than one thing at once is slow."""
    parts = {"sd": (tiny.GEOMETRY, "dense"), "hd": (tiny.HD_GEOMETRY, "dense"), "experts": (tiny.GEOMETRY, "experts")}
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    for part, dtype, checkpointing, stage in product(parts, dtypes, (True, False), STAGES.values()):
        changes = (part != "sd") + (dtype != "bfloat16") + (not checkpointing) + (stage.name != "prealign")
        marks = () if changes < 2 else pytest.mark.slow
        key = f"{part}-{dtype}-{'checkpointing' if checkpointing else 'kept'}-{stage.name}"
        yield pytest.param(stage, dtypes[dtype], checkpointing, *parts[part], marks=marks, id=key)


@pytest.mark.parametrize(("stage", "dtype", "checkpointing", "geometry", "kind"), list(steps()))
def test_a_step_runs_on_the_meta_device(stage, dtype, checkpointing, geometry, kind):
    model = tiny.model("llama_gqa", with_teacher=True, geometry=geometry, decoder_kind={"name": kind})
    batch = tiny.packed([tiny.samples(model, [1, 0, 2]), tiny.samples(model, [0, 1], 1)])
    batch["image_positions"] = (batch["input_ids"].flatten() == model.config.image_token_id).nonzero().flatten()
    batch = to_meta(batch)
    model.to("meta", dtype)
    if checkpointing:
        model.recompute_blocks()
    calls = step(model, stage, batch | {"num_targets": torch.empty((), device="meta"), "num_images": 3})
    assert calls["_varlen_attn_backward"] == (4 if dtype == torch.bfloat16 else 0), "one per layer, where a GPU has that kernel"
    assert not calls.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "unique"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_images_that_see_both_ways_ask_nothing(dtype):
    """They are computed under a mask, which is made once for all layers."""
    model = tiny.model("llama_gqa", with_teacher=True, image_attention={"name": "bidirectional"})
    batch = to_meta(tiny.packed([tiny.samples(model, [1, 0, 2]), tiny.samples(model, [0, 1], 1)]))
    model.to("meta", dtype)
    counts = {"num_targets": torch.empty((), device="meta"), "num_images": 3}
    calls = step(model, STAGES["pretrain"], batch | counts)
    assert not calls.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_varlen_attn"}


@pytest.mark.parametrize("image_attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("positions", ["thw", "neo"])
def test_positions_ask_nothing(positions, image_attention):
    parts = {"positions": {"name": positions}, "image_attention": {"name": image_attention}}
    model = tiny.model("llama_gqa", with_teacher=True, decoder_kind={"name": "pre_buffer", "layers": 1}, **parts)
    batch = to_meta(tiny.packed([tiny.samples(model, [1, 0, 2]), tiny.samples(model, [0, 1], 1)]))
    model.to("meta", torch.bfloat16)
    calls = step(model, STAGES["pretrain"], batch | {"num_targets": torch.empty((), device="meta"), "num_images": 3})
    assert not calls.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "unique"}
    assert calls["_varlen_attn_backward"] == (4 if image_attention == "causal" else 0)


def test_the_meta_device_notices_a_question():
    """Without the positions that the collate function found, the labels must be looked at."""
    model = tiny.model()
    batch = to_meta(tiny.packed([tiny.samples(model, [1])]))
    del batch["target_positions"]
    with pytest.raises(NotImplementedError, match="nonzero"):
        model.to("meta")(**batch)


def test_eve_7b_attends_without_a_mask():
    """At full width: no tensor of T x T tokens, in any layer or direction."""
    text = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=8)
    model = meta_model(EveConfig(text_config=text.to_dict())).to(torch.bfloat16).train()
    length, lengths = 16384, torch.tensor([0, *[650, 700, 698] * 8])
    batch = {
        "input_ids": torch.zeros(1, length, dtype=torch.long),
        "labels": torch.zeros(1, length, dtype=torch.long),
        "position_ids": torch.zeros(1, length, dtype=torch.long),
        "cu_seqlens": lengths.cumsum(0).int(),
        "max_seqlen": 700,
        "target_positions": torch.zeros(100, dtype=torch.long),
        "pixel_values": torch.zeros(48 * 48, 588, dtype=torch.uint8),
        "image_grid_hw": torch.tensor([[48, 48]]),
    }
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not isinstance(out, torch.nn.Parameter):
                largest = max(largest, out.numel())
            return out

    model.requires_grad_(False)
    model.patch_embedding.requires_grad_(True)
    with Sizes():
        model(**to_meta(batch)).loss.backward()
    assert largest == length * 11008, "the inner activations of the MLP are the largest tensors"
