"""``lit-eve nano``: from nothing to a trained, evaluated miniature EVE, in steps that survive any interruption.

    world, benchmarks -> language_model, teacher -> 1_prealign -> 2_pretrain -> 3_finetune -> model -> evaluation -> report

``--model eve_v2`` trains the stages of ``experiments/models/eve_v2/nano`` around the same language model. What a finished
``runs/nano`` has of world, language model and teacher is taken from there.

A stage is run by what ``train.py fit`` calls, with the YAML that a researcher would pass to it. It runs in this process:
nothing goes on training when this process is killed, and torch is imported once. Hence on one device; the others would be
idle anyway. What stands before the stages is in lit_eve/nano/ground.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.files import output_folder, path_argument
from lit_eve.nano.ground import CONFIG, MODELS, SHARED, borrow, ground_config, ground_steps, sees_through_teacher

if TYPE_CHECKING:
    from rich.console import Console

    from lit_eve.nano.steps import Journal, Step

RUN = "runs/nano"
FIRST = "eve_v1"
"""The design whose miniature is that of ``experiments/nano``."""
METRICS = "metrics.json"

# torch is imported where it is used: `lit-eve nano --help` reads this file.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve nano`` takes."""
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FOLDER",
        help=f"folder for all results (default: {RUN}; of other designs than EVE v1, {RUN}_MODEL)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="the design to train: eve_v1 (default), or one of experiments/models, such as eve_v2"
    )
    parser.add_argument(
        "--config", type=path_argument, metavar="FOLDER", help="folder with YAML files to use instead of experiments/nano"
    )
    parser.add_argument(
        "--redo", metavar="STEP", help="repeat this step and all steps that depend on it, for example 3_finetune"
    )


def run(args: argparse.Namespace) -> None:
    """Do what is not done yet, and print the result."""
    config, output, shared_with = args.config and Path(args.config), args.output or RUN, None
    if args.model is not None:
        if config is not None:
            raise ConfigError("give either --model or --config")
        config, shared_with = model_config(args.model), Path(RUN)
        output = args.output or (RUN if args.model == FIRST else f"{RUN}_{args.model}")
    output_folder(output, "--output")
    try:
        run_pipeline(Path(output), config, args.redo, shared_with)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here")
        raise


def run_pipeline(
    output: Path, config: Path | None = None, redo: str | None = None, shared_with: Path | None = None
) -> dict[str, Any]:
    """Make every step that is not done.

    Args:
        output: folder of the run.
        config: folder of YAML files; paths in them that are in the folder of the run, such as ``runs/nano``, mean ``output``.
        redo: first forget this step and those that depend on it.
        shared_with: another run, from which steps before the stages are taken that were made in the very same way.

    Returns:
        What is in ``output/metrics.json``.

    Raises:
        ConfigError: a YAML file that is missing or cannot be used, or a step that was made with other settings; raised before
            anything is made.
    """
    from rich.console import Console

    from lit_eve.files import write_atomically
    from lit_eve.nano.steps import Journal, dependents
    from lit_eve.training.record import environment

    console = Console(highlight=False)
    journal = Journal(output / "steps")
    config = _default_config() if config is None else config
    steps = make_steps(output, config, journal)
    if shared_with is not None:
        for name in _borrow(steps, journal, shared_with, config):
            console.print(f"{name.replace('_', ' ')}: the same as that of {shared_with}, taken from there", style="dim")
    if redo is not None:
        journal.forget(dependents(steps, redo))
    done = {step.name for step in steps if journal.is_done(step)}
    stages = stages_of(config)
    for step in steps:
        if step.name in stages and step.name not in done:
            check_stage(step.name, step.settings)
    for number, step in enumerate(steps, 1):
        title = rf"\[{number}/{len(steps)}] {step.title}"
        if step.name in done:
            console.print(f"{title} [dim](done, {journal.seconds(step):.0f} s)[/]")
        else:
            console.rule(f"[bold]{title}[/]", align="left", style="dim")
            journal.run(step)
    results = json.loads((output / "evaluation" / "results.json").read_text())
    core_seconds = {step.name: journal.core_seconds(step) for step in steps}
    metrics = {**results, "seconds": _seconds(journal, steps), "core_seconds": core_seconds, **environment()}
    write_atomically(output / METRICS, json.dumps(metrics, indent=2) + "\n")
    _print_results(console, output, metrics)
    return metrics


def make_steps(output: Path, config: Path, journal: Journal) -> list[Step]:
    """The steps of a run, in their order; reads all YAML files.

    Raises:
        ConfigError: a file is missing, or holds a key or value that the world, language model or teacher does not know.
    """
    from lit_eve.nano.steps import Step

    stages = {name: read_stage(config / f"{name}.yaml", output) for name in stages_of(config)}
    shared = ground_config(config) or CONFIG
    with_teacher = any(sees_through_teacher(settings["model"], output) for settings in stages.values())
    steps = ground_steps(output, shared, with_teacher, journal)
    world, teacher = steps[0], steps[-1] if with_teacher else None
    language_model = next(step for step in steps if step.name == "language_model")

    def add(name: str, title: str, work: Callable[[], Any], *after: Step, settings: Any = None, folder: str = "") -> Step:
        steps.append(Step(name, title, output / (folder or name), settings or {}, work, after))
        return steps[-1]

    last = language_model
    for number, (name, settings) in enumerate(stages.items(), 1):
        work = partial(train_stage, name, settings, output)
        before = [step for step in (world, teacher, last) if step is not None]
        last = add(name, f"train stage {number}, {name[2:].replace('_', ' ')}", work, *before, settings=settings)
    model = add("model", "export the model", partial(_export, output, last.name), last)
    evaluation = add("evaluation", "evaluate", partial(_evaluate, output, captioner(stages)), world, model)

    def report() -> None:
        from lit_eve.nano.report import write_report
        from lit_eve.training.record import environment

        write_report(output, config, list(stages), captioner(stages), _seconds(journal, steps[:-1]), environment())

    add("report", "write the report", report, evaluation, folder="report.md")
    return steps


def designs() -> list[str]:
    """EVE v1, and the designs of ``experiments/models`` behind it."""
    return [FIRST, *sorted(path.parent.name for path in MODELS.glob("*/nano"))]


def model_config(name: str) -> Path:
    """The folder with the miniature's stages of a design.

    Raises:
        ConfigError: there is no such design.
    """
    if name not in (known := designs()):
        raise ConfigError(f"--model: there is no {name!r}; the designs are {', '.join(known)}")
    return _default_config() if name == FIRST else MODELS / name / "nano"


def stages_of(config: Path) -> list[str]:
    """The names of the stages in a folder, in their order: the YAML files that begin with a number.

    Raises:
        ConfigError: there is none.
    """
    names = sorted(path.stem for path in config.glob("[0-9]*_*.yaml") if path.stem not in SHARED.values())
    if not names:
        raise ConfigError(f"--config: the folder {config} lacks stages, such as 1_prealign.yaml")
    return names


def learns_captions(settings: Mapping[str, Any]) -> bool:
    """Whether the data of a stage are captions rather than conversations."""
    return "Finetune" not in settings["data"]["class_path"]


def captioner(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The last stage that learns captions."""
    return [name for name, one in stages.items() if learns_captions(one)][-1]


def _borrow(steps: Sequence[Step], journal: Journal, other: Path, config: Path) -> list[str]:
    from lit_eve.nano.steps import Journal

    if not (other / "steps").is_dir() or journal.folder.parent.resolve() == other.resolve():
        return []
    source = Journal(other / "steps")
    return borrow(steps, journal, make_steps(other, config, source), source)


def read_stage(path: Path, output: Path) -> dict[str, Any]:
    """The YAML of a stage, with its paths in the run's folder moved to ``output``.

    The run's folder is the one that holds ``trainer.default_root_dir``: ``runs/nano`` where that is ``runs/nano/1_prealign``.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings")
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict) or not isinstance(trainer.get("default_root_dir"), str):
        raise ConfigError(f"{path} names no trainer.default_root_dir")
    return _moved(settings, os.path.dirname(trainer["default_root_dir"]), str(output))


def _moved(value: Any, old: str, new: str) -> Any:
    """A value of a YAML in which paths at or below ``old`` begin with ``new``."""
    if isinstance(value, dict):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and f"{value}/".startswith(f"{old}/"):
        return f"{new}{value.removeprefix(old)}"
    return value


def _fit(*args: str) -> None:
    """What ``train.py fit`` does."""
    from lit_eve.training.cli import main

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # beside those of our own command line
    main(["fit", *args])


def check_stage(name: str, settings: Mapping[str, Any]) -> None:
    """Parse the settings of a stage as ``train.py fit`` will.

    Raises:
        ConfigError: a key or value that it does not take.
    """
    from lit_eve.training.recipe import read_recipe

    try:
        read_recipe("--config", json.dumps(settings))
    except ConfigError as error:
        raise ConfigError(f"{name}.yaml: {error}") from error


def train_stage(name: str, settings: Mapping[str, Any], output: Path) -> None:
    """Run ``train.py fit`` until it is done; it goes on from the stage's last checkpoint by itself.

    Leaves the settings in ``output/configs``, so that the stage can be run by hand where its paths are not those of the YAML.
    """
    from lit_eve.files import write_atomically
    from lit_eve.nano.pretrained.fit import one_core

    path = output / "configs" / f"{name}.yaml"
    write_atomically(path, json.dumps(settings, indent=2) + "\n")  # JSON is YAML
    try:
        with one_core():
            _fit("--config", str(path), "--trainer.devices=1")
    except SystemExit as exit:
        if isinstance(exit.code, str):
            raise LitEveError(exit.code.removeprefix("error: ")) from None
        raise KeyboardInterrupt from exit  # how Lightning ends when it is interrupted


def _seconds(journal: Journal, steps: Sequence[Step]) -> dict[str, float]:
    """What each step took, over all attempts; what making data and training took; the total."""
    seconds = {step.name: journal.seconds(step) for step in steps}
    training = sum(value for name, value in seconds.items() if name not in ("model", "evaluation", "report"))
    return {**seconds, "data_and_training": round(training, 2), "total": round(sum(seconds.values()), 2)}


def _default_config() -> Path:
    if not CONFIG.is_dir():
        raise ConfigError(f"{CONFIG} is not there, as this is no checkout of the repository: name a folder by --config")
    return Path(os.path.relpath(CONFIG)) if CONFIG.is_relative_to(Path.cwd()) else CONFIG


def _export(output: Path, stage: str) -> None:
    """Copy what the last stage exported; the folder appears as a whole."""
    target, part = output / "model", output / ".model.part"
    for leftover in (target, part):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(output / stage / "model", part)
    os.replace(part, target)


def _evaluate(output: Path, captioner: str) -> None:
    from lit_eve.nano.evaluate import evaluate

    evaluate(output, captioner)


def _print_results(console: Console, output: Path, metrics: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("questions answered right", f"[bold]{metrics['question_accuracy']:.1%}[/]")
    table.add_row("  with the image of another question", f"{metrics['shuffled_accuracy']:.1%}")
    table.add_row("  best guess without images", f"{metrics['blind_accuracy']:.1%}")
    table.add_row("caption tokens predicted right", f"{metrics['caption_accuracy']:.1%}")
    table.add_row("time", f"{metrics['seconds']['total'] / 60:.1f} minutes")
    console.rule(style="dim")
    console.print(table)
    command = f'lit-eve chat --model {output / "model"} --image photo.png "how many shapes are there?"'
    console.print(f"\nThe report is in {output / 'report.md'}. Talk to the model:\n  {command}", soft_wrap=True)
