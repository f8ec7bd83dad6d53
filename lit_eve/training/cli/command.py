"""The training entry: ``python train.py fit|validate|test|predict --config experiments/...yaml --model.lr=1e-4``.

LightningCLI with a run folder: ``trainer.default_root_dir`` holds everything that a run leaves behind,

    config.yaml    checkpoints/    model/    metrics.csv    metrics.json
    answers.jsonl  word_maps/      tensorboard/                skipped.jsonl

and calling the same run again goes on from its newest whole checkpoint (``--resume auto``, the default). What belongs to the
model is given to ``model``; data asks the model for it, never the other way round.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import lit_eve.data  # noqa: F401 - its datamodules can then be named without their path
from lit_eve.bars import show_long_bars_only
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.files import local_path, output_folder
from lit_eve.imports import get_class, import_own
from lit_eve.training.callbacks import (
    AtomicCheckpointIO,
    ExportModel,
    PredictionWriter,
    RunCheckpoint,
    RunRecord,
    SampleAnswers,
    Stopped,
    find_checkpoint,
)
from lit_eve.training.callbacks.checkpoint import checkpoint_at, step_of
from lit_eve.training.callbacks.progress import progress_callback
from lit_eve.training.cli.config_files import IMPORTS, MODEL_CLASS, config_first, own_code, with_bases
from lit_eve.training.cli.config_files import KEY as BASE
from lit_eve.training.cli.loggers import run_loggers
from lit_eve.training.cli.parser import RunParser
from lit_eve.training.cli.run_folder import SaveRunConfig, is_restarted, move_aside, refuse_other_settings
from lit_eve.training.module import LitEve

PRINT_MODEL = "--print_model"


class EveCLI(LightningCLI):
    """LightningCLI for LitEve and its datamodules; researchers may pass classes of their own."""

    def __init__(self, model_class: type[LightningModule] = LitEve, **kwargs: Any) -> None:
        kwargs.setdefault("datamodule_class", LightningDataModule)
        args = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        if isinstance(args, list):
            args, imports, named = own_code(with_bases(config_first(args)))
            import_own(imports)
            if named is not None:
                model_class = get_class(named, MODEL_CLASS)
                if not issubclass(model_class, LightningModule):
                    raise ConfigError(f"{MODEL_CLASS}: {named} is no LightningModule; a subclass of LitEve is meant")
        kwargs["args"] = args
        self._asked = args[0] if isinstance(args, list) and args[0:1] and args[0] in self.subcommands() else None
        super().__init__(
            model_class,
            parser_class=RunParser,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "default_root_dir": "runs/default",
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "use_distributed_sampler": False,  # the data slices its batches by rank itself
                "enable_model_summary": False,  # the stage prints its own table
            },
            **kwargs,
        )

    # ---- parse

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """No abbreviations: half a key is a typo."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning that the arguments do not come from the command line itself."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)
        asked = self.config.get("subcommand")
        settings = self.config[asked] if asked else self.config
        if (seed := settings.seed_everything) is not None and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything must lie between 0 and {2**32 - 1}, got {seed}")
        trainer = settings.trainer
        run = "runs/default" if trainer.default_root_dir is None else trainer.default_root_dir
        trainer.default_root_dir = local_path(run, "trainer.default_root_dir")
        for key in ("log_every_n_steps", "check_val_every_n_epoch", "accumulate_grad_batches"):
            if (value := trainer[key]) is not None and value < 1:
                raise ConfigError(f"trainer.{key} must be at least 1, got {value}")
        if isinstance(interval := trainer.val_check_interval, int | float) and interval <= 0:
            raise ConfigError(f"trainer.val_check_interval must be positive, got {interval}")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks that a YAML may set, and the file that it is laid over."""
        parser.add_argument(f"--{BASE}", type=str | None, help="In a YAML: the file that it is laid over, relative to itself.")
        parser.add_argument(
            f"--{IMPORTS}",
            type=list[str] | str | None,
            help="Modules of your own, by name or as a .py file: imported before anything else, so that what they register can "
            "be named. --import MODULE adds one.",
        )
        parser.add_argument(
            f"--{MODEL_CLASS}", type=str | None, help="A subclass of LitEve of your own, as in my_module.MyEve; null: LitEve."
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(SampleAnswers, "answers")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._asked not in (subcommand, None):  # four parsers take four times as long, and three are not looked at
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                PRINT_MODEL,
                action="store_true",
                default=SUPPRESS,
                help="Print the parts of the model, their sizes and what trains, and exit; nothing is loaded.",
            )
            parser.add_argument(
                "--resume",
                type=Literal["auto", "never"],
                default="auto",
                help="auto: go on from the newest whole checkpoint of the run folder, if there is one; "
                "never: start over, after moving what the old run left aside.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyper-parameters in a checkpoint replace what the command line says. Here the command line says
        # what is run, and a checkpoint that does not fit it is refused (LitEve.on_load_checkpoint).
        return

    # ---- resume

    @property
    def _starts_over(self) -> bool:
        settings = self.config.fit
        return (
            settings.resume == "never"
            and settings.ckpt_path is None
            and not settings.trainer.fast_dev_run
            and not is_restarted()
        )

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint that is asked for; without one, a fit goes on from the newest of its run folder."""
        if self.subcommand is None:  # classes are made, and nothing is run
            return None
        settings = self.config[self.subcommand]
        run, given = Path(settings.trainer.default_root_dir), settings.ckpt_path
        if given not in (None, "last"):
            return checkpoint_at(given)
        found = find_checkpoint(run)
        if given == "last" and found is None:
            raise ConfigError(f"ckpt_path: there is no checkpoint in {run} yet")
        if self.subcommand != "fit":
            return found if given else None
        if found is None or settings.trainer.fast_dev_run or self._starts_over:
            return None
        refuse_other_settings(run, self._parser("fit").dump(settings, skip_unset=False))
        rank_zero_info(f"going on from {found} (start over with --resume never)")
        return found

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"ckpt_path": self._resumed and str(self._resumed)}

    # ---- build

    def instantiate_classes(self) -> None:
        """Build datamodule, model and trainer; an error of theirs comes out as it was raised."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse tells errors of a class from errors of its arguments by wrapping them.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, LitEveError):
                cause = cause.__cause__ or cause.__context__
            raise cause or _missing_package(error) or _refused(error) or error from None

    def after_instantiate_classes(self) -> None:
        """Now that nothing was refused, make room for a run that starts over."""
        if self.subcommand == "fit" and self._starts_over:
            move_aside(Path(self.config.fit.trainer.default_root_dir))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer that the config describes, with this project's logger, checkpoints and progress.

        Before that, and before data is read: whether decoder, teacher and the earlier stage are there and fit, and where a run
        goes on.
        """
        output_folder(self._get(self.config, "trainer").default_root_dir, "trainer.default_root_dir")
        if isinstance(self.model, LitEve):
            self.model.blueprint.check()
        self._resumed = self._find_checkpoint()
        settings = self._get(self.config_init, "trainer")
        callbacks = settings["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        plugins = settings["plugins"] or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        fit = self.subcommand == "fit"
        if settings["enable_progress_bar"] is not False:
            callbacks.append(progress_callback())
        callbacks += {"fit": [ExportModel(), RunRecord()], "predict": [PredictionWriter()]}.get(self.subcommand, [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        logger = run_loggers(settings, step_of(self._resumed) if self._resumed else 0) if fit else settings["logger"] or False
        try:
            return super().instantiate_trainer(
                callbacks=callbacks, plugins=plugins, logger=logger, **_lengths(settings), **kwargs
            )
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise ConfigError(f"trainer: {error}") from error


def _missing_package(error: BaseException) -> ConfigError | None:
    """What to install, if that is what an error comes from."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    name = next(iter(re.findall(r"[\w.-]+(?=[<>=~])", str(error))), error.name or str(error))
    return ConfigError(f"a class in the settings needs the package {name}, which is not installed: pip install {name}")


def _refused(error: ValueError) -> ConfigError | None:
    """What a class said about its arguments, where other types than this class were tried as well."""
    said = re.findall(r"^ +- (?!Expected)(.+)$", str(error), flags=re.MULTILINE)
    return ConfigError(said[-1]) if said else None


def _lengths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How long the trainer trains, and how often it validates, where the settings leave that open."""
    epochs = settings["max_epochs"]
    if epochs is None:  # one, or as many as the steps need
        epochs = 1 if settings["max_steps"] == -1 else -1
    # So many batches between validations may be more than an epoch has: they are counted over epochs.
    in_batches = type(settings["val_check_interval"]) is int and settings["check_val_every_n_epoch"] == 1
    return {"max_epochs": epochs} | ({"check_val_every_n_epoch": None} if in_batches else {})


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def quiet() -> None:
    """Silence what says nothing about this run."""
    # The teacher is in eval mode by design; everything else is set to train mode by LitEve.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # A resumed run goes on in its folder.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")
    # `validate` and `test` print what they log.
    warnings.filterwarnings("ignore", message=r".*logger=True\)` but have no logger configured")
    # A run whose questions all have answers goes on to their scores.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    show_long_bars_only()


def _print_model(args: list[str]) -> None:
    from lit_eve.training.composition import print_model
    from lit_eve.training.recipe import read_recipe

    if args[:1] != ["fit"] or len(args) < 2:
        raise ConfigError(f"{PRINT_MODEL} stands behind `fit` and its settings")
    print_model(read_recipe(*args[1:]))


def main(args: list[str] | None = None) -> None:
    """Run the command line; what lit_eve refuses is reported in one sentence instead of a traceback."""
    quiet()
    args = sys.argv[1:] if args is None else args
    try:
        if PRINT_MODEL in args:
            _print_model([word for word in args if word != PRINT_MODEL])
        else:
            EveCLI(args=args)
    except LitEveError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        rank_zero_info(str(stopped))
        sys.exit(128 + stopped.signum)
    except MisconfigurationException as error:
        sys.exit(f"error: trainer: {' '.join(str(error).split())}")
