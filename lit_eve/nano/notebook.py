"""What the notebooks of this repository begin with: the trained miniature, and trainings of a minute that are kept."""

from __future__ import annotations

import os
from pathlib import Path

from lit_eve.bars import show_long_bars_only
from lit_eve.errors import ConfigError
from lit_eve.nano.pipeline import RUN, run_pipeline

EXPERIMENTS = Path("experiments/nano")


def miniature() -> Path:
    """The finished run of ``make nano``; trained here, in about four minutes, if it is not there.

    From now on the process works in the repository's folder, where the paths of all documents and YAML files begin.

    Returns:
        ``runs/nano``.

    Raises:
        ConfigError: the process works outside of a checkout of the repository.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / EXPERIMENTS).is_dir()), None)
    if root is None:
        raise ConfigError(f"the notebooks need a checkout of the repository: there is no {EXPERIMENTS} in {here} or above it")
    os.chdir(root)
    show_long_bars_only()
    run = Path(RUN)
    if not (run / "model").exists():
        run_pipeline(run, EXPERIMENTS)
    return run
