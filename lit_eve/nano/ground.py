"""What stands before the stages of a miniature: its world, its language model and its teacher.

    world, benchmarks -> language_model, teacher

They depend on nothing but their own YAML files, so other runs may take them over. The teacher is trained beside the language
model, on another core.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.files import same_path

if TYPE_CHECKING:
    from lit_eve.nano.steps import Journal, Step

SHARED = {"world": "world", "language_model": "0_language_model", "teacher": "0_teacher"}
"""Steps that have a YAML, and its name; a folder that has none of these takes those of ``experiments/nano``."""
NAMES = (*SHARED, "benchmarks")
CONFIG = Path(lit_eve.__file__).parents[1] / "experiments" / "nano"
MODELS = CONFIG.parent / "models"

# torch is imported where it is used: `lit-eve nano --help` reads this file.


def ground_steps(output: Path, config: Path, with_teacher: bool, journal: Journal) -> list[Step]:
    """World, benchmarks, language model and, at the end, the teacher.

    Args:
        output: folder of the run.
        config: folder of their YAML files.
        with_teacher: whether a stage needs it.
        journal: of the run.

    Raises:
        ConfigError: a file is missing, or holds a key or value that the world, language model or teacher does not know.
    """
    from lit_eve.nano.pretrained.beside import beside
    from lit_eve.nano.pretrained.language_model import LanguageModelSettings, train_language_model
    from lit_eve.nano.pretrained.teacher import TeacherSettings, train_teacher
    from lit_eve.nano.progress import read_settings
    from lit_eve.nano.steps import Step
    from lit_eve.nano.world.benchmarks import make_benchmarks
    from lit_eve.nano.world.datasets import WorldSettings, make_world

    files = {step: config / f"{name}.yaml" for step, name in SHARED.items()}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise ConfigError(f"--config: the folder {config} lacks {', '.join(missing)}")
    steps: list[Step] = []

    def add(name: str, title: str, file: str, kind: type, work: Callable[..., Any], *after: Step, folder: str = "") -> Step:
        settings = read_settings(kind, files[file])
        steps.append(Step(name, title, output / (folder or name), asdict(settings), partial(work, output, settings), after))
        return steps[-1]

    def train_both(output: Path, settings: LanguageModelSettings) -> None:
        if teacher is None or journal.is_done(teacher):
            return train_language_model(output, settings)
        journal.begin(teacher)
        with beside(teacher.output / "log.txt", teacher.run):
            return train_language_model(output, settings)

    world = add("world", "make the miniature world", "world", WorldSettings, make_world, folder="data")
    add("benchmarks", "write the miniature benchmarks", "world", WorldSettings, make_benchmarks, world)
    title = "train the language model on text" + ", and the teacher beside it" * with_teacher
    add("language_model", title, "language_model", LanguageModelSettings, train_both, world)
    teacher = None
    if with_teacher:
        teacher = add("teacher", "train the teacher", "teacher", TeacherSettings, train_teacher, world)
    return steps


def check_ground(config: Path, stem: str, changes: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of a YAML file of the ground that it does not take; keys have dots."""
    from lit_eve.nano.pretrained.language_model import LanguageModelSettings
    from lit_eve.nano.pretrained.teacher import TeacherSettings
    from lit_eve.nano.progress import read_settings
    from lit_eve.nano.world.datasets import WorldSettings

    kinds = dict(zip(SHARED.values(), (WorldSettings, LanguageModelSettings, TeacherSettings), strict=True))
    read_settings(kinds[stem], config / f"{stem}.yaml", **changes)


def make_ground(steps: Sequence[Step], journal: Journal, but: Sequence[str] = ()) -> None:
    """Make those of these steps that are not done, without those named in ``but``."""
    for step in steps:
        if step.name not in but and not journal.is_done(step):
            print(step.title, flush=True)
            journal.run(step)


def ground_config(config: Path) -> Path | None:
    """The folder of the YAML files of a miniature's ground; None where a folder of stages is no miniature's.

    Args:
        config: folder of stages. Those of ``experiments/models/NAME/nano`` stand on the ground of ``experiments/nano``.
    """
    if any((config / f"{name}.yaml").is_file() for name in SHARED.values()):
        return config
    return CONFIG if config.name == "nano" and config.resolve().parent.parent == MODELS.resolve() else None


def sees_through_teacher(model: Mapping[str, Any], output: Path) -> bool:
    """Whether a stage needs the miniature's CLIP: as its teacher, or as its vision tower."""
    tower = (model.get("patch_embedding") or {}).get("tower")
    return bool(model.get("teacher")) or (isinstance(tower, str) and same_path(tower, str(output / "teacher")))


def borrow(steps: Sequence[Step], journal: Journal, theirs: Sequence[Step], source: Journal) -> list[str]:
    """Take over what another run has made of these steps, where it was made in the very same way.

    Files are linked where the disk can do that, else copied.

    Args:
        steps, journal: of this run; steps of other names are passed over.
        theirs, source: steps and journal of the other run.

    Returns:
        The names of the steps that were taken over.
    """
    others, taken = {step.name: step for step in theirs}, []
    for step in steps:
        if step.name in NAMES and step.name in others and not journal.knows(step) and not step.output.exists():
            try:
                if others[step.name].digest != step.digest or not source.is_done(others[step.name]):
                    continue
            except ConfigError:  # made with other settings
                continue
            part = step.output.with_name(f".{step.output.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(others[step.name].output, part, copy_function=_link)
            os.replace(part, step.output)
            journal.take(step, source)
            taken.append(step.name)
    return taken


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
