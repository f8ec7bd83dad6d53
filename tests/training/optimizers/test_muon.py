"""Muon against `torch.optim.Muon` and `torch.optim.AdamW`, each over its own parameters."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from lit_eve.errors import ConfigError
from lit_eve.training.optimizers import build_optimizer, muon, trained_parameters, warmup_then_cosine
from lit_eve.training.optimizers.newton_schulz import orthogonalize
from lit_eve.training.optimizers.shards import RowShards
from tests.models import tiny
from tests.two_processes import PROCESSES, in_two_processes

LR = 1e-2


class Model(nn.Module):
    """Matrices of several shapes, and all kinds of parameters that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.square = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.tall = nn.Linear(8, 24)
        self.wide = nn.Linear(24, 8, bias=False)
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.gate = nn.Linear(8, 1)
        self.kernel = nn.Conv2d(1, 2, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(tokens) + self.queries[tokens % 3])
        x = x + self.other(self.square(x)).tanh() + self.wide(self.tall(x).relu())
        return x.square().mean() + self.gate(x).mean() + self.kernel(x[None, None]).square().mean()


class Odd(nn.Module):
    """Matrices whose rows cannot be shared out to two processes evenly, one of two rows, and five of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.alike = nn.ModuleList(nn.Linear(7, 7) for _ in range(5))
        self.last = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.alike:
            x = x + layer(x).tanh()
        return self.last(x).square().mean()


def trained(model: nn.Module, lr: float = LR):
    return trained_parameters(model, {name: lr for name, _ in model.named_parameters()})


def names_of_muon(model: nn.Module) -> set[str]:
    return {one.name for one in trained(model) if one.is_matrix}


def descend(model: Model, *optimizers: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randint(7, (6,), generator=generator)).backward()
        for optimizer in optimizers:
            optimizer.step()


# ---- which parameters


def test_muon_takes_the_weights_of_linear_layers():
    assert names_of_muon(Model()) == {"square.weight", "other.weight", "tall.weight", "wide.weight"}


@pytest.mark.parametrize("decoder", ["llama", "qwen2_tied"])
def test_neither_embedding_nor_head_nor_learned_token(decoder):
    model = tiny.model(decoder, with_teacher=True)
    found = names_of_muon(model)
    assert not {name for name in found if "lm_head" in name or "embed_tokens" in name}
    assert {
        *("patch_embedding.patch_projection.weight", "projector.0.weight", "projector.2.weight"),
        *(f"language_model.model.layers.0.self_attn.{x}_proj.weight" for x in "qkvo"),
        *(f"language_model.model.layers.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    } <= found
    assert all(parameter.ndim == 2 for name, parameter in model.named_parameters() if name in found)


def test_other_architectures():
    """GPT-2 has linear layers of its own kind, CLIP a convolution, tables of positions and no head."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    found = {name.removeprefix("transformer.h.0.") for name in names_of_muon(gpt2)}
    assert found == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"image_size": 8, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(text_config=shape | {"vocab_size": 9}, vision_config=shape | vision, projection_dim=6))
    assert not {name for name in names_of_muon(clip) if "embedding" in name}
    assert {"visual_projection.weight", "text_projection.weight"} <= names_of_muon(clip)


# ---- the update


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"momentum": 0.8, "nesterov": False, "ns_steps": 3, "weight_decay": 0.1},
        {"adjust_lr_fn": "original", "adamw_lr_factor": 0.1, "betas": [0.8, 0.9], "eps": 1e-3},
    ],
    ids=str,
)
def test_a_step_is_that_of_torch(arguments, monkeypatch):
    """In float32, where rounding hides nothing; torch's own Muon iterates in bfloat16 only."""
    rounded = []
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: rounded.append(tensor) or tensor.clone())
    torch.manual_seed(0)
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer({"name": "muon", "ns_dtype": "float32", **arguments}, trained(ours))

    of_muon = names_of_muon(theirs)
    decays = {one.name for one in trained(theirs) if one.decays}
    weight_decay = arguments.get("weight_decay", 0.0)
    settings = {"adjust_lr_fn": "match_rms_adamw", "weight_decay": weight_decay}
    settings |= {key: arguments[key] for key in ("momentum", "nesterov", "ns_steps", "adjust_lr_fn") if key in arguments}
    named = dict(theirs.named_parameters())
    rest = [
        {"params": [p for n, p in named.items() if n not in of_muon and (n in decays) is on], "weight_decay": weight_decay * on}
        for on in (True, False)
    ]
    reference = torch.optim.Muon([named[name] for name in of_muon], lr=LR, **settings)
    adamw = torch.optim.AdamW(
        rest,
        lr=LR * arguments.get("adamw_lr_factor", 1.0),
        betas=tuple(arguments.get("betas", (0.9, 0.999))),
        eps=arguments.get("eps", 1e-8),
    )
    descend(ours, optimizer)
    descend(theirs, reference, adamw)
    assert rounded, "torch's Muon makes its bfloat16 in another way now"
    for name, value in ours.state_dict().items():
        assert_close(value, named[name].data, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("shape", [(12, 12), (7, 20), (20, 7)])
def test_many_matrices_at_a_time_are_each_that_of_torch(shape):
    torch.manual_seed(0)
    matrices = torch.randn(5, *shape)
    matrices[3] = 0
    ours = orthogonalize(matrices.bfloat16())
    assert ours.dtype == torch.bfloat16 and not ours[3].any()
    for matrix, found in zip(matrices, ours.float(), strict=True):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = matrix.clone()
        torch.optim.Muon([weight], lr=1.0, momentum=0.0, weight_decay=0.0).step()
        expected = -weight.detach() / math.sqrt(max(1, shape[0] / shape[1]))
        assert_close(found, expected, rtol=0.05, atol=0.02)
    singular_values = torch.linalg.svdvals(ours[:3].float())
    assert (singular_values > 0.5).all() and (singular_values < 1.3).all()


def test_the_work_is_cut_where_memory_would_grow(monkeypatch):
    torch.manual_seed(0)
    model = Model()
    cut = copy.deepcopy(model)
    descend(model, build_optimizer({"name": "muon"}, trained(model)))
    monkeypatch.setattr(muon, "BATCH", 1)
    descend(cut, build_optimizer({"name": "muon"}, trained(cut)))
    for name, value in model.state_dict().items():
        assert_close(cut.state_dict()[name], value, rtol=0.02, atol=2e-3)


# ---- one optimizer


def test_one_momentum_for_a_matrix_and_a_rate_for_each_part():
    model = Model()
    optimizer = build_optimizer({"name": "muon", "adamw_lr_factor": 0.5}, trained(model))
    schedule = warmup_then_cosine(optimizer, total=10, warmup=1, floor=0.0)
    assert {group["label"]: group["lr"] for group in optimizer.param_groups} == {"stage": LR / 2, "stage/adamw": LR / 4}
    descend(model, optimizer, steps=1)
    schedule.step()
    assert {group["label"]: group["lr"] for group in optimizer.param_groups} == {"stage": LR, "stage/adamw": LR / 2}
    assert optimizer.state[model.square.weight].keys() == {"momentum_buffer"}
    assert optimizer.state[model.square.bias].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_a_loaded_state_goes_on_to_the_bit():
    torch.manual_seed(0)
    model = Model()
    optimizer = build_optimizer({"name": "muon"}, trained(model))
    descend(model, optimizer, steps=3)
    again = copy.deepcopy(model)
    loaded = build_optimizer({"name": "muon"}, trained(again))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(model, optimizer, steps=3)
    descend(again, loaded, steps=3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.state[again.norm.weight]["step"] == 6


@pytest.mark.parametrize("part", ["matrices", "rest"])
def test_one_part_alone(part):
    model = Model()
    optimizer = muon.Muon([one for one in trained(model) if one.is_matrix is (part == "matrices")])
    before = copy.deepcopy(model.state_dict())
    descend(model, optimizer, steps=1)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for group in optimizer.param_groups for name in group["param_names"]}


def test_parameters_without_gradients_are_left_alone():
    model = Model()
    optimizer = build_optimizer({"name": "muon", "weight_decay": 0.1}, trained(model))
    before = copy.deepcopy(model.state_dict())
    model.square(torch.ones(8)).sum().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"square.weight", "square.bias"} and len(optimizer.state) == 2


# ---- sharded matrices


def odd_descent(sharding: str | None, processes: int) -> dict[str, torch.Tensor]:
    """The weights after three steps, each on two samples; sharded, a process has one of them."""
    torch.manual_seed(0)
    model = Odd()
    if sharding is not None:
        shape = (processes,) if sharding == "fsdp2" else (processes, 1)
        names = ("shard",) if sharding == "fsdp2" else ("replicate", "shard")
        fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    optimizer = build_optimizer({"name": "muon", "ns_dtype": "float32", "weight_decay": 0.1}, trained(model))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = torch.randn(2, 6, generator=generator)
        optimizer.zero_grad()
        model(batch if sharding is None else batch[dist.get_rank() :][:1]).backward()
        optimizer.step()
        assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters() if p.ndim == 2)
    return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.state_dict().items()}


def compare_with_one_process(folder: Path, sharding: str) -> None:
    dist.init_process_group("gloo")
    weights = odd_descent(sharding, PROCESSES)
    torch.save({name: value.detach() for name, value in weights.items()}, folder / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize("batch", [muon.BATCH, 1])
@pytest.mark.parametrize("sharding", ["fsdp2", "hybrid"])
def test_sharded_matrices_are_orthogonalised_as_a_whole(tmp_path, sharding, batch, monkeypatch):
    monkeypatch.setattr(muon, "BATCH", batch)
    in_two_processes(compare_with_one_process, tmp_path, sharding)
    expected = odd_descent(None, 1)
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_other_ways_of_sharding_are_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        columns = [distribute_tensor(torch.zeros(4, 4), mesh, [Shard(1)])]
        mixed = [distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)]), torch.zeros(4, 4)]
        for tensors in (columns, mixed):
            with pytest.raises(ConfigError, match="sharded in an unknown way: trainer.strategy must be"):
                RowShards.of(tensors)
        assert RowShards.of(mixed[1:]) is None and RowShards.of(mixed[:1]).size == 1
    finally:
        dist.destroy_process_group()
