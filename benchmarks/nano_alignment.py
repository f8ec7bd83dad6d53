"""Does aligning patches to a teacher help a model to see? Stages 1 and 2 in the hard miniature world, with and without.

    python benchmarks/nano_alignment.py --seeds 8

Every seed has its own world, language model and teacher; both arms start from them, read the same captions in the same order,
and differ in the alignment loss alone. What is measured is the held-out caption loss, which does not contain that loss. As many
seeds run at a time as there are cores; killed and called again, nothing is done twice. The table goes to the terminal and to
``OUTPUT/table.md``; the JSON has the processor in its name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from lit_eve.errors import LitEveError
from lit_eve.files import write_atomically
from lit_eve.nano.pipeline import CONFIG, make_steps, read_stage, train_stage
from lit_eve.nano.seeds import describe, make_parser, measure_over_seeds, write_seeded_config
from lit_eve.nano.steps import Journal, Step

RESULT = "result.json"
SHARED = ("world", "language_model", "teacher")
STAGES = ("1_prealign", "2_pretrain")
ARMS = ("with", "without")


def arm_settings(path: Path, folder: Path, arm: str) -> dict[str, Any]:
    """The YAML of a stage for one arm: its data and teacher are the seed's, its folders the arm's."""
    settings = read_stage(path, folder)
    model = settings["model"]
    if arm == "without":
        model.update(teacher=None, aligner=None)
    if "init_from" in model:
        model["init_from"] = str(folder / arm / STAGES[0])
    settings["trainer"]["default_root_dir"] = str(folder / arm / path.stem)
    return settings


def run_seed(options: argparse.Namespace, folder: Path, seed: int) -> None:
    """World, language model and teacher of a seed, and both arms of it."""
    config = write_seeded_config(options.config, folder / "config", seed)
    journal = Journal(folder / "steps")
    shared = [step for step in make_steps(folder, config, journal) if step.name in SHARED]
    steps = list(shared)
    for arm in ARMS:
        last: tuple[Step, ...] = tuple(shared)
        for name in STAGES:
            settings = arm_settings(config / f"{name}.yaml", folder, arm)
            work: Callable[[], None] = partial(train_stage, name, settings, folder / arm)
            steps.append(Step(f"{arm}_{name}", f"{name}, {arm} alignment", folder / arm / name, settings, work, last))
            last = (*shared, steps[-1])
    for step in steps:
        if not journal.is_done(step):
            print(step.title, flush=True)
            journal.run(step)
    if not (folder / RESULT).exists():
        write_atomically(folder / RESULT, json.dumps(evaluate_arms(folder, seed, journal, steps), indent=2) + "\n")


def evaluate_arms(folder: Path, seed: int, journal: Journal, steps: Sequence[Step]) -> dict[str, Any]:
    """Held-out losses of both arms: on the test captions at the end, and at every validation."""
    from lit_eve.nano.evaluate import caption_accuracy
    from lit_eve.nano.figures import read_curves

    seconds = {step.name: journal.seconds(step) for step in steps}
    result: dict[str, Any] = {"seed": seed}
    for arm in ARMS:
        captions = caption_accuracy(folder / arm / STAGES[-1], folder / "data")
        result[arm] = {"caption_loss": captions["loss"], "caption_accuracy": captions["accuracy"]}
        result[arm]["seconds"] = sum(seconds[f"{arm}_{name}"] for name in STAGES)
        for name in STAGES:
            curves = read_curves(folder / arm / name / "tensorboard")
            for loss in ("language_loss", "alignment_loss"):
                if (curve := curves.get(f"val/{loss}")) is not None:
                    result[arm][f"{name}/{loss}"] = curve[1].tolist()
    return result


def read_result(folder: Path, seed: int) -> dict[str, Any]:
    return json.loads((folder / RESULT).read_text())


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of paired differences.

    Raises:
        ValueError: fewer than two.
    """
    if len(differences) < 2:
        raise ValueError("an interval takes at least two pairs")
    reach = t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    mean = fmean(differences)
    return mean - reach, mean + reach


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The paired difference of the caption loss, without minus with: what alignment gains."""
    gains = [run["without"]["caption_loss"] - run["with"]["caption_loss"] for run in runs]
    low, high = paired_interval(gains)
    alignment = [run["with"]["2_pretrain/alignment_loss"][-1] for run in runs]
    return {
        "caption_loss": {arm: describe([run[arm]["caption_loss"] for run in runs]) for arm in ARMS},
        "gain": {**describe(gains), "interval_95": [low, high], "seeds_with_gain": sum(gain > 0 for gain in gains)},
        "alignment_loss_at_the_end": describe(alignment),
        "seconds_of_an_arm": {arm: fmean([run[arm]["seconds"] for run in runs]) for arm in ARMS},
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per seed, and the interval of the gain."""
    text = (
        "| seed | caption loss, with | without | gain | held-out alignment loss, after stage 1 | at the end | seconds, with "
        "| without |\n|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    for run in runs:
        arms = [run[arm] for arm in ARMS]
        losses = [arm["caption_loss"] for arm in arms]
        align = [arms[0][f"{name}/alignment_loss"][-1] for name in STAGES]
        numbers = [*losses, losses[1] - losses[0], *align]
        cells = [*(f"{number:.3f}" for number in numbers), *(f"{arm['seconds']:.0f}" for arm in arms)]
        text += f"| {run['seed']} | {' | '.join(cells)} |\n"
    total = summary(runs)
    means = [total["caption_loss"][arm]["mean"] for arm in ARMS]
    gain, (low, high) = total["gain"], total["gain"]["interval_95"]
    text += f"| **mean** | {means[0]:.3f} | {means[1]:.3f} | {gain['mean']:.3f} |\n"
    return text + (
        f"\nAlignment lowers the held-out caption loss by {gain['mean']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        f"(paired t over {len(runs)} seeds); lower in {gain['seeds_with_gain']} of {len(runs)}.\n"
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write the JSON and return it."""
    parser = make_parser(__file__, __doc__, CONFIG.with_name("nano_hard"))
    return measure_over_seeds(parser, argv, run_seed, read_result, summary, table, min_seeds=2)


if __name__ == "__main__":
    try:
        main()
    except LitEveError as error:
        sys.exit(f"error: {error}")
