"""A recipe: the YAML of a training, read and checked without anything being loaded or trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml

from lit_eve.data import EveDataModule
from lit_eve.errors import ConfigError
from lit_eve.training.cli import EveCLI
from lit_eve.training.module import LitEve

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class Recipe:
    """What ``train.py fit`` would run."""

    module: LitEve
    """The module before its model is built."""
    data: EveDataModule
    """The datamodule before anything is indexed."""
    config: Namespace
    """All settings, as parsed."""
    parser: ArgumentParser

    @property
    def trainer(self) -> Namespace:
        """Settings of the trainer."""
        return self.config.trainer

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings, defaults with them: what ``train.py fit --print_config`` prints."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_validation=True))

    @property
    def processor(self) -> EveProcessor:
        """The model's processor, also where ``model.init_from`` is still to be trained and ``model.decoder`` is given."""
        return self.module.blueprint.planned_processor

    @property
    def template(self) -> str | dict[str, Any] | None:
        """How the data's conversations are written; None: the processor's own template."""
        return self.data.template


def read_recipe(*arguments: str) -> Recipe:
    """Read ``--config FILE`` and overrides, as ``train.py fit`` does.

    A single argument that is no option is the path of a file: ``read_recipe("experiments/nano/1_prealign.yaml")``.

    Raises:
        ConfigError: an unknown key, or a value that makes no sense; the message names it. Or classes that are neither a LitEve
            nor an EveDataModule.
    """
    first, *rest = arguments
    reader = _Reader(args=["fit", *([first] if first.startswith("-") else ["--config", first]), *rest])
    for key, made, kind in (("model_class", reader.model, LitEve), ("data", reader.datamodule, EveDataModule)):
        if not isinstance(made, kind):
            raise ConfigError(
                f"{key}: a {type(made).__name__} is no {kind.__name__}, of which alone it is known what it trains"
            )
    return Recipe(reader.model, reader.datamodule, reader.config.fit, reader._subcommand_parsers["fit"])


class _Reader(EveCLI):
    """Parses and makes module and datamodule, no trainer; leaves run folders and random numbers alone."""

    def _set_seed(self) -> None:
        return

    def before_instantiate_classes(self) -> None:
        return

    def after_instantiate_classes(self) -> None:
        return

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        return
