"""Does aligning patches to a teacher help a model to see? Stages 1 and 2 in the hard miniature world, with and without.

    python benchmarks/nano_alignment.py --seeds 8

Every seed has its own world, language model and teacher; both arms start from them, read the same captions in the same order,
and differ in the alignment loss alone. What is measured is the held-out caption loss, which does not contain that loss: of all
words, and of the words that say what things look like (colour, shape, size). Where things are is a skill of the language
model, which comes early or late by luck, and hides what the teacher does.

As many seeds run at a time as there are cores; killed and called again, nothing is done twice. The table goes to the terminal
and to ``OUTPUT/table.md``; the JSON has the processor in its name.
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
from lit_eve.nano.measurement import LOOKS, WORDS
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
    from lit_eve.nano.evaluate import captions_by_word
    from lit_eve.nano.figures import read_curves

    seconds = {step.name: journal.seconds(step) for step in steps}
    result: dict[str, Any] = {"seed": seed}
    for arm in ARMS:
        captions = captions_by_word(folder / arm / STAGES[-1], folder / "data", WORDS)
        result[arm] = {"caption_loss": captions["loss"], "caption_accuracy": captions["accuracy"]}
        result[arm]["loss_by_word"] = captions["loss_by_word"]
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


def loss_of(run: dict[str, Any], arm: str, of: str) -> float:
    """The caption loss of an arm: of all words, or of those that say what things look like, each kind counting alike."""
    return run[arm]["caption_loss"] if of == "all" else fmean(run[arm]["loss_by_word"][kind] for kind in LOOKS)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The paired difference of the caption loss, without minus with: what alignment gains."""
    alignment = [run["with"]["2_pretrain/alignment_loss"][-1] for run in runs]
    result: dict[str, Any] = {
        "alignment_loss_at_the_end": describe(alignment),
        "seconds_of_an_arm": {arm: fmean([run[arm]["seconds"] for run in runs]) for arm in ARMS},
    }
    for name, of in (("", "all"), ("_of_looks", "looks")):
        gains = [loss_of(run, "without", of) - loss_of(run, "with", of) for run in runs]
        interval = list(paired_interval(gains))
        result[f"caption_loss{name}"] = {arm: describe([loss_of(run, arm, of) for run in runs]) for arm in ARMS}
        result[f"gain{name}"] = {**describe(gains), "interval_95": interval, "seeds_with_gain": sum(gain > 0 for gain in gains)}
    return result


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per seed, and the intervals of the gains."""
    heads = ["seed", "caption loss, with", "without", "gain", "of looks, with", "without", "gain"]
    heads += ["held-out alignment loss, after stage 1", "at the end", "seconds, with", "without"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for run in runs:
        numbers = []
        for of in ("all", "looks"):
            losses = [loss_of(run, arm, of) for arm in ARMS]
            numbers += [*losses, losses[1] - losses[0]]
        numbers += [run["with"][f"{name}/alignment_loss"][-1] for name in STAGES]
        lines.append(
            [str(run["seed"]), *(f"{number:.3f}" for number in numbers), *(f"{run[arm]['seconds']:.0f}" for arm in ARMS)]
        )
    total = summary(runs)
    means = []
    for name in ("", "_of_looks"):
        means += [total[f"caption_loss{name}"][arm]["mean"] for arm in ARMS] + [total[f"gain{name}"]["mean"]]
    lines.append(["**mean**", *(f"{mean:.3f}" for mean in means)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    for what, gain in (("of all words", total["gain"]), ("of colours, shapes and sizes", total["gain_of_looks"])):
        low, high = gain["interval_95"]
        text += (
            f"\nAlignment lowers the held-out caption loss {what} by {gain['mean']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
            f"(paired t over {len(runs)} seeds); lower in {gain['seeds_with_gain']} of {len(runs)}.\n"
        )
    return text


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write the JSON and return it."""
    parser = make_parser(__file__, __doc__, CONFIG.with_name("nano_hard"))
    return measure_over_seeds(parser, argv, run_seed, read_result, summary, table, min_seeds=2)


if __name__ == "__main__":
    try:
        main()
    except LitEveError as error:
        sys.exit(f"error: {error}")
