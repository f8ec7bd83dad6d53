"""Layers in 4 bits: what bitsandbytes computes, gradients of what trains beside them, state dicts that need no bitsandbytes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.quantized import QuantizedLinear, quantize, unpacked_sizes
from lit_eve.training.stages import Lora
from tests.models import tiny

pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_bitsandbytes_does(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(128, 32).to(dtype)
    theirs = bitsandbytes.nn.Linear4bit(128, 32, quant_type="nf4", compute_dtype=dtype, compress_statistics=False)
    theirs.load_state_dict(linear.state_dict())
    theirs, ours = theirs.to("cpu"), QuantizedLinear(linear)
    tokens = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True)
    again = tokens.detach().clone().requires_grad_()
    expected, found = theirs(again), ours(tokens)
    assert_close(found, expected.to(dtype))
    (expected * expected).sum().backward()
    (found * found).sum().backward()
    assert_close(tokens.grad, again.grad)
    assert ours.weight.nbytes == 128 * 32 // 2 and not ours.weight.requires_grad


def test_every_weight_is_near_what_it_was():
    """On CPUs, bitsandbytes 0.50 unpacks rows wrongly that are not made of whole blocks of 64."""
    for rows, columns in ((32, 128), (32, 96), (7, 50)):
        weight = torch.randn(rows, columns)
        linear = nn.Linear(columns, rows)
        linear.weight.data.copy_(weight)
        error = QuantizedLinear(linear).unpacked() - weight
        assert error.abs().max() < 0.16 * weight.abs().max() and error.std() < 0.12  # half of NF4's widest gap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_saved_is_packed_into_the_same_bits(dtype):
    torch.manual_seed(1)
    ours, other = (QuantizedLinear(nn.Linear(96, 33).to(dtype)) for _ in range(2))
    saved = ours.state_dict()
    assert saved["weight"].dtype == dtype and saved["weight"].shape == (33, 96)
    linear = nn.Linear(96, 33).to(dtype)
    linear.load_state_dict(saved)
    tokens = torch.randn(4, 96, dtype=dtype)
    assert torch.equal(linear(tokens), ours(tokens))
    other.load_state_dict(saved)
    assert torch.equal(other.weight, ours.weight) and torch.equal(other.scales, ours.scales)
    assert torch.equal(other.state_dict()["weight"], saved["weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"bias": saved["bias"]})


def test_under_autocast_the_products_are_in_its_type():
    layer, tokens = QuantizedLinear(nn.Linear(64, 8)), torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(tokens)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16 and tokens.grad.dtype == torch.float32


def test_a_model_trains_beside_packed_weights():
    model = tiny.model(lora=Lora(rank=4).architecture).train()
    names, sizes = set(model.state_dict()), {name: p.numel() for name, p in model.named_parameters()}
    quantize(model.language_model)
    packed = unpacked_sizes(model)
    assert set(model.state_dict()) == names and sizes == {name: p.numel() for name, p in model.named_parameters()} | packed
    assert len(packed) == 4 * 7
    _, gradients = tiny.gradients(model, tiny.packed([tiny.samples(model, [1, 0])]))
    assert all(gradients[name].any() for name in names if ".lora_" in name)
    model.to(torch.bfloat16)
    layer = model.get_decoder().layers[0].mlp.up_proj.base_layer
    assert layer.scales.dtype == torch.float32, "a cast does not round the scales"


def test_without_bitsandbytes_it_is_said_what_is_needed(monkeypatch):
    model = tiny.model(lora=Lora(rank=4).architecture)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="lora.quantization needs the package bitsandbytes"):
        quantize(model.language_model)
