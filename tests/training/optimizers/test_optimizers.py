"""The choice of an optimizer, parameter groups, the schedule, and states that are loaded by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.training.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
    parameter_groups,
    trained_parameters,
    warmup_cosine,
    warmup_steps,
    warmup_then_cosine,
)
from lit_eve.training.recipe import read_recipe
from tests.training.world import ROOT

ADAMW = {"name": "adamw"}
NANO = ROOT / "experiments" / "nano" / "1_prealign.yaml"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)


def rates(model: nn.Module, lr: float | None = 1e-3, **by_name: float | None) -> dict[str, float | None]:
    return {name: by_name.get(name.split(".")[0], lr) for name, _ in model.named_parameters()}


def names(groups: list[dict]) -> dict[tuple, list[str]]:
    return {(g["label"], g["lr"], g["weight_decay"]): [name for name, _ in g["params"]] for g in groups}


# ---- groups


def test_decay_is_for_matrices_only():
    model = Model()
    found = names(parameter_groups(trained_parameters(model, rates(model)), weight_decay=0.1))
    assert found.keys() == {("stage", 1e-3, 0.1), ("stage", 1e-3, 0.0)}
    assert found["stage", 1e-3, 0.1] == ["first.weight", "second.weight"]


def test_one_group_per_label_and_rate():
    """A rule's rate has a group of its own, also where it happens to be the stage's."""
    model = Model()
    labels = dict.fromkeys(dict(model.named_parameters()), "stage") | {"second.weight": "second", "second.bias": "second"}
    trained = trained_parameters(model, rates(model, 1e-3, first=1e-4, norm=None), labels)
    assert names(parameter_groups(trained)) == {
        ("stage", 1e-3, 0.0): ["embedding.weight"],
        ("stage", 1e-4, 0.0): ["first.weight", "first.bias"],
        ("second", 1e-3, 0.0): ["second.weight", "second.bias"],
    }


# ---- the choice


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "moun"}, "unknown optimizer 'moun'; known: adamw, muon"),
        ({"weight_decay": 0.1}, "the optimizer needs a 'name'; known: adamw, muon"),
        (None, "the optimizer needs a 'name'; known: adamw, muon"),
        ({"name": "adamw", "beta": 0.9}, "optimizer 'adamw' has no argument 'beta'; it takes: betas, eps, weight_decay"),
        ({"name": "adamw", "lr": 0.9}, "optimizer 'adamw' has no argument 'lr'"),
        ({"name": "adamw", "parameters": []}, "optimizer 'adamw' has no argument 'parameters'"),
        ({"name": "adamw", "betas": 0.9}, "betas must be 2 numbers, got 0.9"),
        ({"name": "adamw", "betas": [0.9, 1.0]}, "betas must be a number of at least 0 and below 1, got 1.0"),
        ({"name": "adamw", "eps": "tiny"}, "eps must be a number of at least 0, got 'tiny'"),
        ({"name": "adamw", "weight_decay": -0.1}, "weight_decay must be a number of at least 0, got -0.1"),
        ({"name": "muon", "momentum": 1.0}, "momentum must be a number of at least 0 and below 1, got 1.0"),
        ({"name": "muon", "nesterov": "no"}, "nesterov must be true or false, got 'no'"),
        ({"name": "muon", "ns_steps": 2.5}, "ns_steps must be a whole number from 1 to 99, got 2.5"),
        ({"name": "muon", "ns_coefficients": [1, 2]}, r"ns_coefficients must be 3 numbers, got \[1, 2\]"),
        ({"name": "muon", "adjust_lr_fn": "rms"}, "there is no adjust_lr_fn 'rms'; known: original, match_rms_adamw"),
        ({"name": "muon", "ns_dtype": "float16"}, "there is no ns_dtype 'float16'; known: auto, bfloat16, float32"),
        ({"name": "muon", "adamw_lr_factor": None}, "adamw_lr_factor must be a number of at least 0, got None"),
    ],
)
def test_what_cannot_be_meant(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_optimizer(spec)


def test_a_check_draws_no_random_numbers():
    before = torch.get_rng_state()
    check_optimizer({"name": "muon"})
    assert torch.equal(torch.get_rng_state(), before)


def choice(tmp_path, text: str, *overrides: str) -> dict:
    """The optimizer of a file that is laid over another."""
    (tmp_path / "base.yaml").write_text(f"base: {NANO}\nmodel:\n  optimizer: {{name: adamw, betas: [0.9, 0.98]}}\n")
    (tmp_path / "mine.yaml").write_text(f"base: base.yaml\n{text}")
    return read_recipe("--config", str(tmp_path / "mine.yaml"), *overrides).module.optimizer


def test_a_file_replaces_the_choice_of_its_base_as_a_whole(tmp_path):
    """No argument of the optimizer that is no longer chosen stays behind."""
    assert choice(tmp_path, "") == {"name": "adamw", "betas": [0.9, 0.98]}
    assert choice(tmp_path, "model:\n  optimizer: {name: muon}\n") == {"name": "muon"}
    with pytest.raises(ConfigError, match="model.optimizer: the optimizer needs a 'name'"):
        choice(tmp_path, "model:\n  optimizer: {weight_decay: 0.1}\n")


def test_the_command_line_changes_single_keys(tmp_path):
    """What the new optimizer shares with the old one stays, and what it does not know is an error."""
    assert choice(tmp_path, "", "--model.optimizer.name=muon") == {"name": "muon", "betas": [0.9, 0.98]}
    assert choice(tmp_path, "", "--model.optimizer.eps=1e-7") == {"name": "adamw", "betas": [0.9, 0.98], "eps": 1e-7}
    assert choice(tmp_path, "", "--model.optimizer={name: muon}") == {"name": "muon"}
    with pytest.raises(ConfigError, match="model.optimizer: optimizer 'adamw' has no argument 'momentum'"):
        choice(tmp_path, "model:\n  optimizer: {name: muon, momentum: 0.9}\n", "--model.optimizer.name=adamw")


def test_without_a_choice_it_is_adamw():
    recipe = read_recipe("--model.decoder=anything", "--data=PretrainDataModule", "--data.train=x", "--model.lr=1")
    assert recipe.module.optimizer == ADAMW
    more = ("--model.decoder=x", "--data=PretrainDataModule", "--data.train=x", "--model.optimizer.weight_decay=0.1")
    assert read_recipe(*more).module.optimizer == {"name": "adamw", "weight_decay": 0.1}


@pytest.fixture
def own():
    """Registers optimizers as a researcher would, and takes them away again."""
    known = dict(OPTIMIZERS._variants)
    yield OPTIMIZERS.register
    OPTIMIZERS._variants.clear()
    OPTIMIZERS._variants.update(known)


def test_an_own_optimizer(own):
    @own("plain_sgd")
    def plain_sgd(parameters, momentum: float = 0.0) -> torch.optim.SGD:
        return torch.optim.SGD(parameter_groups(parameters), momentum=momentum)

    check_optimizer({"name": "plain_sgd", "momentum": 0.9})
    with pytest.raises(ConfigError, match="optimizer 'plain_sgd': Invalid momentum value: -1"):
        check_optimizer({"name": "plain_sgd", "momentum": -1})
    model = Model()
    optimizer = build_optimizer({"name": "plain_sgd", "momentum": 0.9}, trained_parameters(model, rates(model)))
    again = build_optimizer({"name": "plain_sgd", "momentum": 0.9}, trained_parameters(model, rates(model)))
    model.first(torch.ones(4)).sum().backward()
    optimizer.step()
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[model.first.weight]["momentum_buffer"], torch.ones(4, 4))


def test_an_own_optimizer_that_forgets_names_or_parameters(own):
    @own("nameless")
    def nameless(parameters) -> torch.optim.SGD:
        return torch.optim.SGD([one.parameter for one in parameters])

    @own("forgetful")
    def forgetful(parameters) -> torch.optim.SGD:
        return torch.optim.SGD(parameter_groups(one for one in parameters if one.is_matrix))

    for name in ("nameless", "forgetful"):
        with pytest.raises(ConfigError, match=f"optimizer '{name}' must hold each parameter once.*parameter_groups"):
            check_optimizer({"name": name})


# ---- the schedule


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
    optimizer = build_optimizer(ADAMW, trained_parameters(model, rates(model)))
    with pytest.raises(ConfigError, match="200 steps are more than the 100 steps of the run"):
        warmup_then_cosine(optimizer, total=100, warmup=200, floor=0.0)
    with pytest.raises(ConfigError, match="trainer.max_steps"):
        warmup_then_cosine(optimizer, total=float("inf"), warmup=0.1, floor=0.0)


# ---- states


def stepped(order: list[str], spec: dict) -> tuple[Model, torch.optim.Optimizer]:
    """A model whose optimizer saw its parameters in this order, after one step."""
    torch.manual_seed(0)
    model = Model()
    model._modules = {name: model._modules[name] for name in order}
    optimizer = build_optimizer(spec, trained_parameters(model, rates(model)))
    warmup_then_cosine(optimizer, total=10, warmup=0, floor=0.0)
    sum(p.square().sum() * (i + 1) for i, p in enumerate(dict(sorted(model.named_parameters())).values())).backward()
    optimizer.step()
    return model, optimizer


def moments(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    key = lambda state: "momentum_buffer" if "momentum_buffer" in state else "exp_avg"  # noqa: E731
    return {name: optimizer.state[p][key(optimizer.state[p])] for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_states_are_loaded_by_name_not_by_position(name):
    """`first` and `second` have one shape: by position, their moments would be swapped without an error."""
    source = stepped(["embedding", "norm", "first", "second"], {"name": name})
    target = stepped(["second", "norm", "first", "embedding"], {"name": name})
    for moment in moments(*target).values():
        moment.zero_()
    target[1].load_state_dict(source[1].state_dict())
    for key, expected in moments(*source).items():
        torch.testing.assert_close(moments(*target)[key], expected)


def test_other_parameters_are_refused():
    _, source = stepped(["embedding", "norm", "first", "second"], ADAMW)
    model = Model()
    target = build_optimizer(ADAMW, trained_parameters(model, rates(model, second=None)))
    with pytest.raises(CheckpointError, match="2 differ: second.bias, second.weight"):
        target.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("before", "now", "lr", "message"),
    [
        (ADAMW, ADAMW, 2e-3, r"the peak learning rate of embedding.weight was 0.001 and is now 0.002; .*model.init_from"),
        (ADAMW, ADAMW | {"betas": [0.9, 0.98]}, 1e-3, r"the betas of embedding.weight was \(0.9, 0.999\) and is now"),
        (ADAMW, ADAMW | {"weight_decay": 0.1}, 1e-3, "the weight_decay of first.weight was 0 and is now 0.1"),
        (ADAMW, {"name": "muon"}, 1e-3, "the checkpoint updated first.weight by another optimizer"),
        ({"name": "muon"}, ADAMW, 1e-3, "the checkpoint updated first.weight by another optimizer"),
        ({"name": "muon"}, {"name": "muon", "momentum": 0.9}, 1e-3, "the momentum of first.weight was 0.95 and is now 0.9"),
    ],
)
def test_what_would_go_on_with_other_settings_is_refused(before, now, lr, message):
    _, source = stepped(["embedding", "norm", "first", "second"], before)
    model = Model()
    target = build_optimizer(now, trained_parameters(model, rates(model, lr)))
    warmup_then_cosine(target, total=10, warmup=0, floor=0.0)
    with pytest.raises(CheckpointError, match=f"cannot resume: {message}"):
        target.load_state_dict(source.state_dict())


def test_kernels_may_differ():
    """The state of a fused optimizer goes on in one that is not."""
    _, source = stepped(["embedding", "norm", "first", "second"], ADAMW)
    model = Model()
    target = build_optimizer(ADAMW, trained_parameters(model, rates(model)), fused=False)
    warmup_then_cosine(target, total=10, warmup=0, floor=0.0)
    target.load_state_dict(source.state_dict())
    assert not any(group["fused"] for group in target.param_groups)
