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
from typing import TYPE_CHECKING, Any, Literal

from lit_eve.errors import ConfigError, StageError

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
class Lora:
    """Adapters of the library ``peft`` in the decoder, which train in place of its own weights (extra ``peft``).

    Args:
        rank: rows of A, columns of B.
        alpha: what they add is multiplied by alpha / rank.
        dropout: of what A reads.
        target_modules: linear layers of the decoder's blocks by the ends of their names, as in ["q_proj", "v_proj"]; null: all.
        use_dora: DoRA, which also trains the length of each row of a weight.
        quantization: nf4 keeps the adapted weights in 4 bits (QLoRA; package bitsandbytes); null: as they are.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    use_dora: bool = False
    quantization: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"lora.rank must be a whole number of at least 1, got {self.rank!r}")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha must be positive, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must be at least 0 and below 1, got {self.dropout!r}")
        if self.quantization not in (None, "nf4"):
            raise ConfigError(f"lora.quantization must be nf4 or null, got {self.quantization!r}")
        if self.quantization is not None and self.use_dora:
            raise ConfigError("lora.use_dora needs the lengths of rows, which lora.quantization packs: choose one of them")

    @property
    def architecture(self) -> dict[str, Any]:
        """What of it is part of a saved model; quantization is not: what was packed is saved as the weights that it was."""
        return {key: value for key, value in vars(self).items() if key != "quantization"}


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: how logs and error messages call it.
        lr: peak learning rate of every rule that gives none.
        rules: the first rule that fits a parameter's name decides; a parameter that no rule fits stays frozen.
        warmup: steps of linear warm-up, or their fraction of all steps if below 1.
        lora: adapters in the decoder. Its own weights are frozen then, whatever the rules say; the adapters train where no rule
            fits. What starts from the result starts from merged weights.
    """

    name: str
    lr: float
    rules: list[Rule]
    warmup: float = 0.01
    lora: Lora | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"stage.lr must be positive, got {self.lr}")
        if self.warmup < 0:
            raise ConfigError(f"stage.warmup must not be negative, got {self.warmup}")

    @property
    def packs_weights(self) -> bool:
        """Whether adapted weights of the decoder are kept in 4 bits."""
        return self.lora is not None and self.lora.quantization is not None

    def check_sharded(self) -> None:
        """Raise a ConfigError where FSDP2 cannot train this stage."""
        if self.packs_weights:
            raise ConfigError("trainer.strategy: fsdp2 cannot share out the packed weights of lora.quantization")

    def rates(self, names: Iterable[str], auxiliary: Iterable[str] = ()) -> dict[str, float | None]:
        """The peak learning rate of each parameter, None where it is frozen.

        Args:
            names: of the model's parameters.
            auxiliary: of heads of supervisions and of parts of a subclass of LitEve; they train where no rule fits.

        Raises:
            StageError: a pattern fits no parameter at all, or nothing is left to train.
        """
        auxiliary = set(auxiliary)
        names = [*names, *sorted(auxiliary)]
        for rule in self.rules:
            if not any(rule.fits(name) for name in names):
                tops = ", ".join(sorted({name.split(".")[0] for name in names}))
                raise StageError(f"stage {self.name!r}: the pattern {rule.pattern!r} fits no parameter (the model has {tops})")
        rates: dict[str, float | None] = {}
        for name in names:
            rule = self._rule_of(name)
            trains = name in auxiliary if rule is None else rule.trainable
            if self.lora is not None and name.startswith("language_model."):
                trains = ".lora_" in name and (rule is None or rule.trainable)
            rates[name] = (self.lr if rule is None else rule.lr or self.lr) if trains else None
        if not any(rates.values()):
            raise StageError(f"stage {self.name!r} freezes every parameter: nothing is left to train")
        if self.lora is not None and not any(rate for name, rate in rates.items() if name.startswith("language_model.")):
            raise StageError(f"stage {self.name!r} has lora, and a rule that freezes all of its adapters")
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
name: it is never trained. The supervision ``trained_teacher`` trains a copy of it."""


def get_stage(
    stage: str | Stage | Mapping[str, Any],
    lr: float | None = None,
    warmup: float | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
) -> Stage:
    """A stage by name, as a mapping or as itself, with learning rate, warm-up and adapters replaced where they are not None.

    Raises:
        ConfigError: no stage has that name, or a value cannot be.
    """
    if isinstance(stage, str):
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
        stage = STAGES[stage]
    elif isinstance(stage, Mapping):
        stage = Stage(**{**stage, "rules": [Rule(**rule) for rule in stage["rules"]], "lora": _lora(stage.get("lora"))})
    given = {"lr": lr, "warmup": warmup, "lora": _lora(lora)}
    return replace(stage, **{key: value for key, value in given.items() if value is not None})


def _lora(lora: Lora | Mapping[str, Any] | None) -> Lora | None:
    return Lora(**lora) if isinstance(lora, Mapping) else lora


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
