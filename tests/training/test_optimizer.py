"""Parameter groups, the schedule, and states that are loaded by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.training.optimizer import build_optimizer, parameter_groups, warmup_cosine, warmup_steps

SETTINGS = {"total": 100, "warmup": 0.1, "floor": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)


def rates(model: nn.Module, lr: float | None = 1e-3, **by_name: float | None) -> dict[str, float | None]:
    return {name: by_name.get(name.split(".")[0], lr) for name, _ in model.named_parameters()}


def test_decay_is_for_matrices_only():
    model = Model()
    groups = {group["name"]: group for group in parameter_groups(model, rates(model), weight_decay=0.1)}
    names = {key: [name for name, _ in group["params"]] for key, group in groups.items()}
    assert names["0.001"] == ["first.weight", "second.weight"]
    assert set(names["0.001 without decay"]) == {
        *("embedding.weight", "norm.weight", "norm.bias"),
        *("first.bias", "second.bias"),
    }
    assert groups["0.001"]["weight_decay"] == 0.1 and groups["0.001 without decay"]["weight_decay"] == 0


def test_one_group_per_rate_without_decay():
    model = Model()
    groups = parameter_groups(model, rates(model, 1e-3, first=1e-4, norm=None), weight_decay=0.0)
    assert [group["name"] for group in groups] == ["0.001", "0.0001"]
    assert [name for name, _ in groups[1]["params"]] == ["first.weight", "first.bias"]
    assert not any(name.startswith("norm") for group in groups for name, _ in group["params"])


def test_warmup_then_cosine_to_the_floor():
    factor = [warmup_cosine(step, total=100, warmup=10, floor=0.1) for step in range(101)]
    assert all(late > early for early, late in zip(factor[:10], factor[1:11], strict=True))
    assert factor[0] == pytest.approx(1 / 11) and factor[10] == 1.0
    assert factor[55] == pytest.approx(0.55)
    assert factor[100] == pytest.approx(0.1)
    assert max(factor) == 1.0 and min(factor[10:]) == pytest.approx(0.1)


def test_warmup_as_fraction_or_steps():
    assert [warmup_steps(w, 150) for w in (0, 0.03, 0.01, 1, 20)] == [0, 5, 2, 1, 20]


def test_lengths_that_cannot_be():
    model = Model()
    groups = parameter_groups(model, rates(model), 0.0)
    with pytest.raises(ConfigError, match="200 steps are more than the 100 steps of the run"):
        build_optimizer(groups, **(SETTINGS | {"warmup": 200}))
    with pytest.raises(ConfigError, match="trainer.max_steps"):
        build_optimizer(groups, **(SETTINGS | {"total": float("inf")}))


def stepped(order: list[str]) -> tuple[Model, torch.optim.Optimizer]:
    """A model whose optimizer saw its parameters in this order, after one step."""
    torch.manual_seed(0)
    model = Model()
    model._modules = {name: model._modules[name] for name in order}
    optimizer, _ = build_optimizer(parameter_groups(model, rates(model), 0.0), **SETTINGS)
    sum(p.square().sum() * (i + 1) for i, p in enumerate(dict(sorted(model.named_parameters())).values())).backward()
    optimizer.step()
    return model, optimizer


def moments(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}


def test_states_are_loaded_by_name_not_by_position():
    """`first` and `second` have one shape: by position, their moments would be swapped without an error."""
    source = stepped(["embedding", "norm", "first", "second"])
    target = stepped(["second", "norm", "first", "embedding"])
    for state in target[1].state.values():
        state["exp_avg"].zero_()
    target[1].load_state_dict(source[1].state_dict())
    for name, expected in moments(*source).items():
        torch.testing.assert_close(moments(*target)[name], expected)


def test_other_parameters_are_refused():
    _, source = stepped(["embedding", "norm", "first", "second"])
    model = Model()
    frozen = parameter_groups(model, rates(model, second=None), 0.0)
    target, _ = build_optimizer(frozen, **SETTINGS)
    with pytest.raises(CheckpointError, match="2 differ: second.bias, second.weight"):
        target.load_state_dict(source.state_dict())


def test_another_learning_rate_is_refused():
    _, source = stepped(["embedding", "norm", "first", "second"])
    model = Model()
    target, _ = build_optimizer(parameter_groups(model, rates(model, 2e-3), 0.0), **SETTINGS)
    with pytest.raises(CheckpointError, match=r"was 0.001 and is now 0.002; .*model.init_from"):
        target.load_state_dict(source.state_dict())
