"""The run folder: what belongs to it, whether it holds this experiment, and moving it aside."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from lit_eve.errors import ConfigError
from lit_eve.files import same_path, write_atomically
from lit_eve.records import differences
from lit_eve.training.callbacks.checkpoint import FOLDER
from lit_eve.training.cli.config_files import KEY as BASE
from lit_eve.training.cli.config_files import MODEL_CLASS
from lit_eve.training.record import environment

CONFIG = "config.yaml"
OWN = (
    *(CONFIG, FOLDER, "tensorboard", "model", "skipped.jsonl", "metrics.csv", "metrics.json", "answers.jsonl", "word_maps"),
    *("csv", "wandb"),
)

# A resumed run may differ in these: they say how fast it goes, not where to.
FREE = [
    ["num_workers"],
    ["index_workers"],
    ["gradient_checkpointing"],
    ["attn_implementation"],
    ["max_new_tokens"],
    ["max_bad_fraction"],
]


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved config to ``<run>/config.yaml`` when a fit starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write once, on the first rank."""
        if stage != "fit" or self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        self.config[BASE] = None  # everything that it said is written here
        versions = ", ".join(f"{name} {version}" for name, version in environment()["versions"].items() if version)
        content = self.parser.dump(self.config, skip_unset=False)
        write_atomically(Path(trainer.default_root_dir, CONFIG), f"# {versions}\n{content}")


def refuse_other_settings(run: Path, config: str) -> None:
    """A run folder holds one experiment: another one must not continue it by accident.

    Args:
        run: the folder.
        config: the YAML of the experiment that wants to go on in it.

    Raises:
        ConfigError: the run in the folder has other settings, which the message names, or nobody can say which.
    """
    if not (run / CONFIG).exists():
        return
    hint = "another folder with --trainer.default_root_dir, or --resume never to move the old run aside and start over"
    new = _settings(config)
    try:
        old = _settings((run / CONFIG).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{run / CONFIG} is damaged: what the run beside it is cannot be said. Choose {hint}") from error
    changed = []
    for section in (MODEL_CLASS, "model", "data", "seed_everything"):
        before, now = old.get(section), new.get(section)
        if isinstance(before, dict):  # a key that came with a newer version of the code is no change of settings
            now = {key: value for key, value in now.items() if key in before}
        changed += differences({section: before}, {section: now}, _same)
    changed = [line for line in changed if line.split(":")[0].split(".")[1:2] not in FREE]
    if changed:
        raise ConfigError(f"{run} holds a run with other settings ({'; '.join(changed[:6])}). Choose {hint}")


def _settings(text: str) -> dict[str, Any]:
    """What a ``config.yaml`` says, with the class of the data among its arguments."""
    settings = yaml.safe_load(text)
    data, model = settings["data"], settings.get("model") or {}
    if model.get("geometry"):
        from lit_eve.processing.geometries import named_geometry

        settings["model"] = {**model, "geometry": named_geometry(model["geometry"])}
    return {**settings, "data": {"class_path": data["class_path"], **data.get("init_args", {})}}


def _same(old: Any, new: Any) -> bool:
    """Whether two values of a setting are the same; a path may be written in several ways."""
    return old == new or (isinstance(old, str) and isinstance(new, str) and same_path(old, new))


def is_restarted() -> bool:
    """Whether torchrun or SLURM runs this command again after it died."""
    return any(int(os.environ.get(f"{name}_RESTART_COUNT", 0)) for name in ("TORCHELASTIC", "SLURM"))


@rank_zero_only
def move_aside(run: Path) -> None:
    """Move what a run left in its folder to the first of run.1, run.2, ... that is free."""
    left = [run / name for name in OWN if (run / name).exists()]
    if not left:
        return
    run = run.resolve()
    target = next(path for n in count(1) if not (path := run.with_name(f"{run.name}.{n}")).exists())
    target.mkdir()
    for path in left:
        path.rename(target / path.name)
    rank_zero_info(f"moved the run in {run} to {target}")
