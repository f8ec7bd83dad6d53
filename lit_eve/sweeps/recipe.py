"""The recipe that an ablation changes: the stages of a folder, and how an arm runs each of them.

What is run is always ``train.py fit --config STAGE.yaml --key=value ...``, as a researcher would type it: with the arm's
changes, and with the folders of the trial in the place of the recipe's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.nano.ground import ground_config, sees_through_teacher
from lit_eve.nano.pipeline import learns_captions, stages_of
from lit_eve.records import flatten
from lit_eve.sweeps.ablation import Ablation, Arm
from lit_eve.training.cli.config_files import KEY as BASE
from lit_eve.training.cli.config_files import files_of
from lit_eve.training.recipe import read_recipe

SEED, RUN, INIT = "seed_everything", "trainer.default_root_dir", "model.init_from"


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe, before an arm changes it."""

    name: str
    path: Path

    @cached_property
    def files(self) -> list[dict[str, Any]]:
        """What its YAML and those below it say, the lowest first."""
        contents = [yaml.safe_load(path.read_text("utf-8")) or {} for path in files_of(self.path)]
        return [{key: value for key, value in content.items() if key != BASE} for content in contents]

    @property
    def model(self) -> dict[str, Any]:
        """What it says of the model, without the stage from which it starts."""
        merged: dict[str, Any] = {}
        for content in self.files:
            merged |= content.get("model") or {}
        return {key: value for key, value in merged.items() if key != "init_from"}

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All settings that ``train.py fit`` would take, defaults with them.

        Raises:
            ConfigError: a key or value that it does not take.
        """
        return _settings(self.path, tuple(arguments_of(changes)))


@dataclass(frozen=True)
class ArmStage:
    """A stage as an arm runs it."""

    stage: Stage
    changes: Mapping[str, Any]
    """Settings with dots, and their values."""
    settings: Mapping[str, Any]
    """All settings, with the recipe's own folders."""
    inherited: Mapping[str, Any]
    """What earlier stages of the arm say of the model, and this one does not: with these it can be planned alone."""

    @property
    def name(self) -> str:
        """Of the stage."""
        return self.stage.name

    @property
    def folder(self) -> str:
        """The run folder that the recipe gives it."""
        return value_at(self.settings, RUN)

    @property
    def learns_captions(self) -> bool:
        """Whether its data are captions rather than conversations."""
        return learns_captions(self.settings)

    @property
    def sees_teacher(self) -> bool:
        """Whether it needs the CLIP of a miniature."""
        return sees_through_teacher(self.settings["model"], Path(self.folder).parent)

    def moved(self, folders: Mapping[str, Path]) -> dict[str, str]:
        """Settings that lie in a folder of the recipe: where they lie in a trial.

        Args:
            folders: of the recipe, and those of the trial in their place; the longest that fits counts.
        """
        moves = {}
        for key, value in flatten(self.settings).items():
            texts = value if isinstance(value, list) else [value]
            changed = [_moved(text, folders) for text in texts]
            if changed != texts:
                moves[key] = changed if isinstance(value, list) else changed[0]
        return moves


@dataclass(frozen=True)
class Recipe:
    """The folder that an ablation changes."""

    folder: Path
    stages: tuple[Stage, ...]
    ground: Path | None
    """The folder of ``world.yaml`` and its like, where the recipe is a miniature's."""

    @classmethod
    def of(cls, ablation: Ablation) -> Recipe:
        """Raises ConfigError if the folder lacks stages, or those that the ablation names."""
        if not ablation.base.is_dir():
            raise ConfigError(f"{ablation.path}: base: there is no folder {ablation.base}")
        known = stages_of(ablation.base)
        wanted = known if ablation.stages is None else ablation.stages
        if unknown := [name for name in wanted if name not in known]:
            raise ConfigError(f"{ablation.path}: {ablation.base} has no stage {unknown[0]!r}; it has {', '.join(known)}")
        ordered = [name for name in known if name in wanted]
        stages = tuple(Stage(name, ablation.base / f"{name}.yaml") for name in ordered)
        return cls(ablation.base, stages, ground_config(ablation.base))

    @property
    def sees_teacher(self) -> bool:
        """Whether a stage needs the CLIP of a miniature before an arm changes it."""
        return any(ArmStage(stage, {}, stage.settings({}), {}).sees_teacher for stage in self.stages)

    def arm_stages(self, arm: Arm, scaled: Mapping[str, int] | None = None) -> list[ArmStage]:
        """The stages of an arm, in their order, as ``train.py`` understands them.

        Args:
            scaled: steps of stages that make arms equal.

        Raises:
            ConfigError: a stage, key or value that does not exist; the message names arm and stage.
        """
        known = [stage.name for stage in self.stages]
        for name in arm.skipped:
            if name not in known:
                raise ConfigError(f"arm {arm.name!r} skips {name!r}; the stages are {', '.join(known)}")
        if len(arm.skipped) == len(known):
            raise ConfigError(f"arm {arm.name!r} skips every stage")
        found: list[ArmStage] = []
        before: dict[str, Any] = {}  # what the stages until now say of the model
        for stage in self.stages:
            own = arm.of(stage.name)
            said = stage.model | {key.removeprefix("model."): value for key, value in own.items() if key.startswith("model.")}
            inherited = {f"model.{key}": value for key, value in before.items() if key.split(".")[0] not in _tops(said)}
            before |= said
            if stage.name in arm.skipped:
                continue
            starts = not found and any(skipped < stage.name for skipped in arm.skipped)
            changes = {**(inherited | {INIT: None} if starts else {}), **own}
            if scaled and stage.name in scaled:
                changes |= {"trainer.max_steps": scaled[stage.name], "trainer.max_epochs": None}  # else it ends at the first
            try:
                settings = stage.settings(changes)
            except LitEveError as error:
                raise ConfigError(f"arm {arm.name!r}, {stage.name}: {error}") from error
            found.append(ArmStage(stage, changes, settings, inherited))
        return found


def arguments_of(changes: Mapping[str, Any]) -> Iterator[str]:
    """Settings as options of the command line."""
    for key, value in changes.items():
        yield f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def value_at(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a setting with dots; None where there is none."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None  # type: ignore[assignment]
    return settings


def _moved(text: Any, folders: Mapping[str, Path]) -> Any:
    if not isinstance(text, str):
        return text
    fitting = [folder for folder in folders if f"{text}/".startswith(f"{folder}/")]
    if not fitting:
        return text
    longest = max(fitting, key=len)
    return f"{folders[longest]}{text.removeprefix(longest)}"


def _tops(model: Mapping[str, Any]) -> set[str]:
    return {key.split(".")[0] for key in model}


@cache
def _settings(path: Path, arguments: tuple[str, ...]) -> dict[str, Any]:
    return read_recipe("--config", str(path), *arguments).settings
