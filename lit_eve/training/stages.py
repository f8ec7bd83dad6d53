"""Stages as data: which parameters train, at which rate.

A stage is a list of rules, read from the top; the first rule whose pattern fits a parameter's name decides. The paper's
three stages (arXiv 2406.11832, section 3.3) are named below; a YAML may write its own:

    stage:
      name: half_open
      lr: 4.0e-5
      rules:
        - {pattern: language_model.model.layers.(2[4-9]|3), lr: 1.0e-5}
        - {pattern: language_model, trainable: false}
        - {pattern: .*}

This file knows names and numbers only, no torch: ``train.py fit --help`` reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Rule:
    """What happens to the parameters whose names a pattern fits.

    Args:
        pattern: regular expression, matched from the beginning of the name ("patch_embedding", "language_model.*norm").
        trainable: False keeps the parameters as they are.
        lr: peak learning rate; None takes the stage's.
    """

    pattern: str
    trainable: bool = True
    lr: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"stage.rules: {self.pattern!r} is no regular expression ({error})") from error
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"stage.rules: the lr of {self.pattern!r} must be positive, got {self.lr}")

    def fits(self, name: str) -> bool:
        """Whether this rule speaks about the parameter called ``name``."""
        return re.match(self.pattern, name) is not None


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: how logs and error messages call it.
        lr: peak learning rate of every rule that gives none.
        rules: the first rule that fits a parameter's name decides; a parameter that no rule fits stays frozen.
        warmup: steps of linear warm-up, or their fraction of all steps if below 1.
    """

    name: str
    lr: float
    rules: list[Rule]
    warmup: float = 0.01

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"stage.lr must be positive, got {self.lr}")
        if self.warmup < 0:
            raise ConfigError(f"stage.warmup must not be negative, got {self.warmup}")

    def rates(self, names: Iterable[str], auxiliary: Iterable[str] = ()) -> dict[str, float | None]:
        """The peak learning rate of each parameter, None where it is frozen.

        Args:
            names: of the model's parameters.
            auxiliary: of heads of supervisions and of parts of a subclass of LitEve; they train where no rule fits.

        Raises:
            ConfigError: a pattern fits no parameter at all, or nothing is left to train.
        """
        auxiliary = set(auxiliary)
        names = [*names, *sorted(auxiliary)]
        for rule in self.rules:
            if not any(rule.fits(name) for name in names):
                tops = ", ".join(sorted({name.split(".")[0] for name in names}))
                raise ConfigError(f"stage {self.name!r}: the pattern {rule.pattern!r} fits no parameter (the model has {tops})")
        rates: dict[str, float | None] = {}
        for name in names:
            rule = self._rule_of(name)
            trains = name in auxiliary if rule is None else rule.trainable
            rates[name] = (self.lr if rule is None else rule.lr or self.lr) if trains else None
        if not any(rates.values()):
            raise ConfigError(f"stage {self.name!r} freezes every parameter: nothing is left to train")
        return rates

    def label(self, name: str) -> str:
        """What a parameter's learning rate is logged as: the pattern of the rule that gives it, or "stage".

        Never the rate itself, so that the runs of a sweep share a chart.
        """
        rule = self._rule_of(name)
        return "stage" if rule is None or rule.lr is None else rule.pattern

    def _rule_of(self, name: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.fits(name)), None)

    def apply(self, model: nn.Module, auxiliaries: Mapping[str, nn.Module] | None = None) -> dict[str, float | None]:
        """Let the parameters of a model require gradients where they train; the teacher's never do.

        Args:
            model: the model.
            auxiliaries: modules of a subclass of LitEve, by name.

        Returns:
            the rates of the others, by name.
        """
        student = {name: parameter for name, parameter in model.named_parameters() if not name.startswith("teacher.")}
        own = {
            f"{part}.{name}": parameter
            for part, module in (auxiliaries or {}).items()
            for name, parameter in module.named_parameters()
        }
        heads = set(heads_beside(model, student))
        own |= {name: student.pop(name) for name in list(student) if name in heads}
        rates = self.rates(student, own)
        for name, parameter in (student | own).items():
            parameter.requires_grad_(rates[name] is not None)
        return rates


def heads_beside(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names that are in heads of supervisions, which train where no rule fits; the aligner always went by the rules."""
    heads = [part for part in getattr(model, "supervisions", ()) if part != "aligner"]
    return [name for name in names if name.split(".")[0] in heads]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("prealign", lr=4e-4, warmup=0.03, rules=[Rule("patch_embedding|projector|aligner")]),
        Stage("pretrain", lr=4e-5, rules=[Rule(".*")]),
        Stage("finetune", lr=2e-5, rules=[Rule(".*")]),
    )
}
"""The paper's stages: the first keeps the decoder frozen; the others train everything but the teacher, which no rule can
name: it is never trained."""


def get_stage(stage: str | Stage | Mapping[str, Any], lr: float | None = None, warmup: float | None = None) -> Stage:
    """A stage by name, as a mapping or as itself, with learning rate and warm-up replaced where they are not None.

    Raises:
        ConfigError: no stage has that name, or a value cannot be.
    """
    if isinstance(stage, str):
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
        stage = STAGES[stage]
    elif isinstance(stage, Mapping):
        stage = Stage(**{**stage, "rules": [Rule(**rule) for rule in stage["rules"]]})
    return replace(stage, lr=stage.lr if lr is None else lr, warmup=stage.warmup if warmup is None else warmup)


def print_stage(stage: Stage, sizes: Mapping[str, int], rates: Mapping[str, float | None]) -> None:
    """Print a table of what is frozen and what trains.

    Args:
        stage: gives the title.
        sizes: number of elements of every parameter.
        rates: peak learning rate by name; None or missing where frozen.
    """
    import rich
    from rich.table import Table

    parts = Counter()
    for name, size in sizes.items():
        parts[name.split(".")[0], rates.get(name)] += size
    table = Table(title=f"stage {stage.name}", title_justify="left")
    table.add_column("part")
    table.add_column("state")
    table.add_column("parameters", justify="right")
    table.add_column("peak lr", justify="right")
    for (part, rate), size in parts.items():
        state = "[blue]FROZEN[/]" if rate is None else "[green]TRAINABLE[/]"
        table.add_row(part, state, f"{size:,}", "" if rate is None else f"{rate:g}")
    trainable = sum(size for (_, rate), size in parts.items() if rate is not None)
    table.add_section()
    table.add_row("all", "", f"{sum(parts.values()):,}", "")
    table.add_row("trainable", "", f"{trainable:,}", "")
    rich.print(table)
