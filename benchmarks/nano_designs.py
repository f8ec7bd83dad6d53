"""How well does each published design learn to see? All miniatures, over seeds, around the same language models.

    python benchmarks/nano_designs.py --seeds 3

Each seed has its own world, language model and teacher. EVE v1's miniature makes them, and the designs in
``experiments/models`` share them. Every design trains through its own stages, so they differ in what they read and in what
they cost: this shows that each of them learns to see, and is no comparison at equal cost.

As many seeds run at a time as there are cores; killed and called again, nothing is done twice. The table goes to the terminal
and to ``OUTPUT/table.md``; the JSON has the processor in its name. What is in the JSON is kept: ``--designs`` adds to it, and
removing the file begins anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import LitEveError
from lit_eve.nano.ground import SHARED, ground_steps, make_ground
from lit_eve.nano.pipeline import CONFIG, FIRST, designs, model_config, run_pipeline, stages_of
from lit_eve.nano.seeds import describe, make_parser, measure_over_seeds, results_path, write_seeded_config
from lit_eve.nano.steps import Journal

NUMBERS = ("question_accuracy", "shuffled_accuracy", "blind_accuracy", "caption_accuracy", "caption_loss")


def designs_of(options: argparse.Namespace) -> list[str]:
    """EVE v1, which makes what the others share, and the chosen designs behind it; all by default."""
    chosen = designs() if options.designs is None else options.designs
    return [FIRST, *(name for name in chosen if name != FIRST)]


def known(options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """What the JSON of this processor holds: results of designs by seed."""
    path = results_path(options)
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    return {run["seed"]: run["designs"] for run in runs}


def run_seed(options: argparse.Namespace, folder: Path, seed: int) -> None:
    """Every design with one seed that has no result yet."""
    shared = write_seeded_config(options.config, folder / "config" / FIRST, seed)
    before = known(options).get(seed, {})
    if FIRST in before:
        journal = Journal(folder / FIRST / "steps")
        make_ground(ground_steps(folder / FIRST, shared, True, journal), journal, but=["benchmarks"])
    else:
        run_pipeline(folder / FIRST, shared)
    for name in designs_of(options)[1:]:
        if name in before:
            continue
        config = write_seeded_config(model_config(name), folder / "config" / name, seed)
        for stem in SHARED.values():
            (config / f"{stem}.yaml").write_bytes((shared / f"{stem}.yaml").read_bytes())
        run_pipeline(folder / name, config, shared_with=folder / FIRST)


def read_design(folder: Path, config: Path) -> dict[str, Any]:
    """What counts of a run's ``metrics.json``, and the seconds of a core that its stages took."""
    metrics = json.loads((folder / "metrics.json").read_text())
    core_seconds = {stage: metrics["core_seconds"][stage] for stage in stages_of(config)}
    by_type = {kind: row["accuracy"] for kind, row in metrics["by_type"].items()}
    return {name: metrics[name] for name in NUMBERS} | {"by_type": by_type, "core_seconds": core_seconds}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of every design's numbers over the seeds."""
    return {
        name: {number: describe([run["designs"][name][number] for run in runs]) for number in NUMBERS}
        | {"core_seconds": describe([sum(run["designs"][name]["core_seconds"].values()) for run in runs])}
        for name in runs[0]["designs"]
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per design."""
    heads = ["design", "questions answered right", "caption tokens predicted right", "loss of captions", "seconds of a core"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, numbers in summary(runs).items():
        of = lambda number: [run["designs"][name][number] for run in runs]  # noqa: E731, B023
        shares = [
            ", ".join(f"{100 * value:.1f}" for value in of(number)) for number in ("question_accuracy", "caption_accuracy")
        ]
        losses = ", ".join(f"{value:.3f}" for value in of("caption_loss"))
        lines.append([name, *(f"{share} %" for share in shares), losses, f"{numbers['core_seconds']['mean']:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write the JSON and return it."""
    parser = make_parser(__file__, __doc__, CONFIG)
    text = f"designs of experiments/models to train beside {FIRST} (all)"
    parser.add_argument("--designs", nargs="+", metavar="NAME", help=text)
    options = parser.parse_args(argv)

    before = known(options)

    def read_result(folder: Path, seed: int) -> dict[str, Any]:
        found = before.get(seed, {})
        new = [name for name in designs_of(options) if name not in found]
        found |= {name: read_design(folder / name, folder / "config" / name) for name in new}
        return {"seed": seed, "designs": {name: found[name] for name in designs() if name in found}}

    return measure_over_seeds(parser, argv, run_seed, read_result, summary, table)


if __name__ == "__main__":
    try:
        main()
    except LitEveError as error:
        sys.exit(f"error: {error}")
