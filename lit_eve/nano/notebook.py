"""What the notebooks of this repository begin with: the trained miniature, and trainings of a minute that are kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lit_eve.bars import show_long_bars_only
from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically
from lit_eve.nano.pipeline import RUN, read_stage, run_pipeline, train_stage

EXPERIMENTS = Path("experiments/nano")
ORIGIN = "made_from.txt"
"""File of a run: the hashes of the language model and the teacher that it began with."""


def at_repository() -> None:
    """Work in the repository's folder from now on, where the paths of all documents and YAML files begin.

    Raises:
        ConfigError: the process works outside of a checkout of the repository.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / EXPERIMENTS).is_dir()), None)
    if root is None:
        raise ConfigError(f"the notebooks need a checkout of the repository: there is no {EXPERIMENTS} in {here} or above it")
    os.chdir(root)
    show_long_bars_only()


def miniature() -> Path:
    """The finished run of ``make nano``; trained here, in about four minutes, if it is not there. Implies `at_repository`.

    Returns:
        ``runs/nano``.

    Raises:
        ConfigError: as `at_repository`.
    """
    at_repository()
    run = Path(RUN)
    if not (run / "model").exists():
        run_pipeline(run, EXPERIMENTS)
    return run


def train(run: Path, stage: str, model: Mapping[str, Any], seed: int = 0) -> Path:
    """Train a stage of the miniature with other settings of the model, without a word on the way.

    Called again, it goes on from where it was; what is done is not done again, and other settings are refused.

    Args:
        run: folder of the new run.
        stage: which YAML of ``experiments/nano``: "1_prealign" for example.
        model: keys below ``model`` that replace those of the YAML.
        seed: of all that is drawn.

    Returns:
        ``run``.

    Raises:
        ConfigError: the run began with the language model or teacher of an earlier ``runs/nano``.
        LitEveError: as ``train.py fit``.
    """
    parts = [Path(RUN) / part / "model.safetensors" for part in ("language_model", "teacher")]
    origin = "".join(f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part}\n" for part in parts)
    noted = run / ORIGIN
    if (run / "config.yaml").exists() and (not noted.exists() or noted.read_text() != origin):
        raise ConfigError(f"{run} was not trained from the language model and teacher that are in {RUN} now: remove {run}")
    write_atomically(noted, origin)
    settings = read_stage(EXPERIMENTS / f"{stage}.yaml", Path(RUN))
    settings["seed_everything"] = seed
    settings["model"] |= model
    settings["trainer"] |= {"default_root_dir": str(run), "enable_progress_bar": False}
    with _silence():
        train_stage(run.name, settings, run.parent)
    return run


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed, logged below a warning, or drawn as a widget."""
    import rich

    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.INFO)
    rich.reconfigure(file=nowhere, force_jupyter=False)
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        rich.reconfigure()
        logging.disable(before)
