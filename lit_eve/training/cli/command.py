"""The training entry: ``python train.py fit|validate|test|predict --config experiments/...yaml --model.lr=1e-4``.

LightningCLI with a run folder: ``trainer.default_root_dir`` holds everything that a run leaves behind,

    config.yaml    checkpoints/    tensorboard/    model/    skipped.jsonl

and calling the same run again goes on from its newest whole checkpoint (``--resume auto``, the default). What belongs to the
model is given to ``model``; data asks the model for it, never the other way round.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import lit_eve.data  # noqa: F401 - its datamodules can then be named without their path
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.training.callbacks import (
    AtomicCheckpointIO,
    ExportModel,
    PredictionWriter,
    RunCheckpoint,
    SampleAnswers,
    find_checkpoint,
)
from lit_eve.training.callbacks.checkpoint import step_of
from lit_eve.training.callbacks.progress import progress_callback
from lit_eve.training.cli.config_files import KEY as BASE
from lit_eve.training.cli.config_files import with_bases
from lit_eve.training.cli.run_folder import SaveRunConfig, is_restarted, move_aside, refuse_other_settings
from lit_eve.training.module import LitEve


class EveCLI(LightningCLI):
    """LightningCLI for LitEve and its datamodules; researchers may pass classes of their own."""

    def __init__(self, model_class: type[LightningModule] = LitEve, **kwargs: Any) -> None:
        kwargs.setdefault("datamodule_class", LightningDataModule)
        args = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        kwargs["args"] = args = with_bases(args) if isinstance(args, list) else args
        self._asked = args[0] if isinstance(args, list) and args[0:1] and args[0] in self.subcommands() else None
        super().__init__(
            model_class,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "default_root_dir": "runs/default",
                "max_epochs": 1,
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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks that a YAML may set, and the file that it is laid over."""
        parser.add_argument(f"--{BASE}", type=str | None, help="In a YAML: the file that it is laid over, relative to itself.")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(SampleAnswers, "answers")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._asked not in (subcommand, None):  # four parsers take four times as long, and three are not looked at
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
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

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint to go on from, before anything is built."""
        self._resumed: Path | None = None
        if self.subcommand != "fit" or self.config.fit.trainer.fast_dev_run:
            return
        run, given = Path(self.config.fit.trainer.default_root_dir), self.config.fit.ckpt_path
        if given not in (None, "last"):
            self._resumed = Path(given)
        elif self.config.fit.resume == "never" and not is_restarted():
            move_aside(run)
        elif checkpoint := find_checkpoint(run):
            refuse_other_settings(run, self._parser("fit").dump(self.config.fit, skip_unset=False))
            rank_zero_info(f"going on from {checkpoint} (start over with --resume never)")
            self._resumed = checkpoint

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | ({"ckpt_path": str(self._resumed)} if self._resumed else {})

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
            raise cause or error from None

    def after_instantiate_classes(self) -> None:
        """Find out now, before data is read, whether decoder, teacher and the earlier stage are there and fit."""
        if isinstance(self.model, LitEve):
            self.model.blueprint.check()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer that the config describes, with this project's logger, checkpoints and progress."""
        settings = self._get(self.config_init, "trainer")
        callbacks = settings["callbacks"] or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        plugins = settings["plugins"] or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        fit = self.subcommand == "fit"
        if settings["enable_progress_bar"] is not False:
            callbacks.append(progress_callback())
        callbacks += {"fit": [ExportModel()], "predict": [PredictionWriter()]}.get(self.subcommand, [])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        logger = settings["logger"]
        if logger in (None, True):
            logger = fit and TensorBoardLogger(
                settings["default_root_dir"],
                name="tensorboard",
                version="",
                default_hp_metric=False,
                # Hides what a killed run logged after the checkpoint that is gone on from.
                purge_step=step_of(self._resumed) if self._resumed else 0,
            )
        try:
            return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, logger=logger, **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError(f"trainer: {error}") from error


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def quiet() -> None:
    """Silence what says nothing about this run."""
    # The teacher is in eval mode by design; everything else is set to train mode by LitEve.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
    # A resumed run goes on in its folder.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")
    # A run whose questions all have answers goes on to their scores.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    if not sys.stdout.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def main(args: list[str] | None = None) -> None:
    """Run the command line; what lit_eve refuses is reported in one sentence instead of a traceback."""
    quiet()
    try:
        EveCLI(args=args)
    except LitEveError as error:
        sys.exit(f"error: {error}")
