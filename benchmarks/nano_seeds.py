"""How far can one run of the miniature world be trusted? The pipeline with other seeds, again and again.

    python benchmarks/nano_seeds.py --seeds 8

Each run has its own seed of world, language model, teacher and stages. As many run at a time as there are cores. Every run is a
folder of its own, ``OUTPUT/seed_N``, that goes on where it was: killed and called again, nothing is done twice. The table goes
to the terminal and to ``OUTPUT/table.md``; the JSON has the processor in its name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import LitEveError
from lit_eve.files import write_atomically
from lit_eve.nano.pipeline import CONFIG, run_pipeline
from lit_eve.nano.seeds import describe, make_parser, measure_over_seeds, write_seeded_config
from lit_eve.nano.world.questions import TYPES

SCORES = "benchmarks.json"
ACCURACIES = ("question_accuracy", "shuffled_accuracy", "blind_accuracy", "caption_accuracy")


def run_seed(options: argparse.Namespace, folder: Path, seed: int) -> None:
    """The pipeline with one seed, and the benchmarks."""
    run_pipeline(folder, write_seeded_config(options.config, folder / "config", seed))
    if not options.no_benchmarks and not (folder / SCORES).exists():
        write_atomically(folder / SCORES, json.dumps(benchmark_scores(folder), indent=2) + "\n")


def benchmark_scores(folder: Path) -> dict[str, float]:
    """Official scores of the miniatures; MM-Vet, which a judge grades, by exact match."""
    from lit_eve.cli import main as lit_eve

    output = folder / "ten_benchmarks"
    lit_eve(
        ["evaluate", "--model", str(folder / "model"), "--benchmarks", "all", "--data", str(folder / "benchmarks")]
        + ["--output", str(output), "--num-workers", "0", "--accelerator", "cpu"]
    )
    results = json.loads((output / "results.json").read_text())["results"]
    scores = {row["benchmark"]: row["score"] for row in results if row["score"] is not None}
    return {
        **scores,
        "mmvet": exact_match(folder / "benchmarks" / "mmvet" / "mm-vet.json", output / "predictions" / "mmvet.jsonl"),
    }


def exact_match(questions: Path, predictions: Path) -> float:
    """How many answers to MM-Vet, in per cent, are one of the right ones, word for word."""
    wanted = {
        name: row["answer"].replace("<AND>", " ").split("<OR>") for name, row in json.loads(questions.read_text()).items()
    }
    said = [json.loads(line) for line in predictions.read_text().splitlines()]
    return 100 * sum(row["text"] in wanted[f"v1_{row['question_id']}"] for row in said) / len(wanted)


def read_result(folder: Path, seed: int) -> dict[str, Any]:
    """What counts of a run's ``metrics.json``, and the scores of the benchmarks if it has any."""
    metrics = json.loads((folder / "metrics.json").read_text())
    result = {
        "seeds": dict.fromkeys(("world", "language_model", "teacher", "stages"), seed),
        **{name: metrics[name] for name in (*ACCURACIES, "caption_loss")},
        "by_type": {type: row["accuracy"] for type, row in metrics["by_type"].items()},
        "seconds": metrics["seconds"],
    }
    if (folder / SCORES).exists():
        result["benchmarks"] = json.loads((folder / SCORES).read_text())
    return result


def common_types(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Types of questions that every run was asked; a small test set may lack one."""
    return [type for type in TYPES if all(type in run["by_type"] for run in runs)]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of every number over the runs."""
    rows = [
        {name: run[name] for name in ACCURACIES}
        | {f"by_type/{type}": run["by_type"][type] for type in common_types(runs)}
        | {f"benchmarks/{name}": value for name, value in run.get("benchmarks", {}).items()}
        | {"seconds": run["seconds"]["data_and_training"]}
        for run in runs
    ]
    return {name: describe([row[name] for row in rows]) for name in rows[0]}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per run, then mean, least and standard deviation."""
    types = common_types(runs)
    header = ["seed", "all", *(type.replace("_", " ") for type in types), "captions", "shuffled", "blind", "seconds"]
    numbers = [
        [run["question_accuracy"], *(run["by_type"][type] for type in types)]
        + [run["caption_accuracy"], run["shuffled_accuracy"], run["blind_accuracy"], run["seconds"]["data_and_training"]]
        for run in runs
    ]
    columns = [describe(column) for column in zip(*numbers, strict=True)]
    rows = [(str(run["seeds"]["stages"]), row) for run, row in zip(runs, numbers, strict=True)]
    for name in ("mean", "least", "deviation"):
        rows.append((f"**{name}**", [column[name] for column in columns]))
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[name, *(f"{value:.3f}" for value in row[:-1]), f"{row[-1]:.0f}"] for name, row in rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if scores := [run["benchmarks"] for run in runs if "benchmarks" in run]:
        names = list(scores[0])
        text += f"\n| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}\n"
        for name in ("median", "least"):
            values = (describe([row[benchmark] for row in scores])[name] for benchmark in names)
            text += f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |\n"
    return text


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write the JSON and return it."""
    parser = make_parser(__file__, __doc__, CONFIG)
    parser.add_argument("--no-benchmarks", action="store_true", help="without the miniatures of the ten benchmarks")
    return measure_over_seeds(parser, argv, run_seed, read_result, summary, table)


if __name__ == "__main__":
    try:
        main()
    except LitEveError as error:
        sys.exit(f"error: {error}")
