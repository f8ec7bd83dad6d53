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
from lit_eve.nano.seeds import cores, result_of, run_side_by_side, slug, spread, write_seeded
from lit_eve.nano.world.questions import TYPES
from lit_eve.training.record import environment

RESULTS = Path(__file__).parent / "results"
SCORES = "benchmarks.json"
WHOLE = ("question_accuracy", "shuffled_accuracy", "blind_accuracy", "caption_accuracy")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="how many, from 0 on (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them (%(default)s)")
    parser.add_argument("--at-a-time", type=int, default=cores(), metavar="N", help="runs at a time (one per core)")
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FOLDER", help="YAML files (experiments/nano)")
    parser.add_argument("--output", type=Path, default=Path("runs/nano_seeds"), metavar="FOLDER", help="%(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the JSON goes (%(default)s)")
    parser.add_argument("--no-benchmarks", action="store_true", help="without the miniatures of the ten benchmarks")
    parser.add_argument("--worker", type=int, metavar="SEED", help=argparse.SUPPRESS)  # one run, in a process of its own
    return parser.parse_args(argv)


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """The pipeline with one seed, and the benchmarks."""
    folder = folder_of(options, seed)
    run_pipeline(folder, write_seeded(options.config, folder / "config", seed))
    if not options.no_benchmarks and not (folder / SCORES).exists():
        write_atomically(folder / SCORES, json.dumps(benchmark_scores(folder), indent=2) + "\n")


def benchmark_scores(folder: Path) -> dict[str, float]:
    """Official scores of the miniatures; MM-Vet, which a judge grades, as the share of answers that are the very words."""
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
        "mmvet": very_words(folder / "benchmarks" / "mmvet" / "mm-vet.json", output / "predictions" / "mmvet.jsonl"),
    }


def very_words(questions: Path, predictions: Path) -> float:
    """How many answers to MM-Vet, in per cent, are one of those that are right, word for word."""
    wanted = {
        name: row["answer"].replace("<AND>", " ").split("<OR>") for name, row in json.loads(questions.read_text()).items()
    }
    said = [json.loads(line) for line in predictions.read_text().splitlines()]
    return 100 * sum(row["text"] in wanted[f"v1_{row['question_id']}"] for row in said) / len(wanted)


def folder_of(options: argparse.Namespace, seed: int) -> Path:
    return options.output / f"seed_{seed}"


def types_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Types of questions that every run was asked; a small test set may lack one."""
    return [type for type in TYPES if all(type in run["by_type"] for run in runs)]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, least and spread of every number over the runs."""
    rows = [
        {name: run[name] for name in WHOLE}
        | {f"by_type/{type}": run["by_type"][type] for type in types_of(runs)}
        | {f"benchmarks/{name}": value for name, value in run.get("benchmarks", {}).items()}
        | {"seconds": run["seconds"]["data_and_training"]}
        for run in runs
    ]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per run, then mean, least and standard deviation."""
    types = types_of(runs)
    heads = ["seed", "all", *(type.replace("_", " ") for type in types), "captions", "shuffled", "blind", "seconds"]
    numbers = [
        [run["question_accuracy"], *(run["by_type"][type] for type in types)]
        + [run["caption_accuracy"], run["shuffled_accuracy"], run["blind_accuracy"], run["seconds"]["data_and_training"]]
        for run in runs
    ]
    columns = [spread(column) for column in zip(*numbers, strict=True)]
    rows = [(str(run["seeds"]["stages"]), row) for run, row in zip(runs, numbers, strict=True)]
    for name in ("mean", "least", "deviation"):
        rows.append((f"**{name}**", [column[name] for column in columns]))
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    lines += [[name, *(f"{value:.3f}" for value in row[:-1]), f"{row[-1]:.0f}"] for name, row in rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if scores := [run["benchmarks"] for run in runs if "benchmarks" in run]:
        names = list(scores[0])
        text += f"\n| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}\n"
        for name in ("median", "least"):
            values = (spread([row[benchmark] for row in scores])[name] for benchmark in names)
            text += f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |\n"
    return text


def collect(options: argparse.Namespace, seeds: Sequence[int]) -> list[dict[str, Any]]:
    runs = []
    for seed in seeds:
        folder = folder_of(options, seed)
        runs.append(result_of(folder, seed))
        if (folder / SCORES).exists():
            runs[-1]["benchmarks"] = json.loads((folder / SCORES).read_text())
    return runs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, print the table, write the JSON and return it."""
    from rich.console import Console
    from rich.progress import track

    options = parse(argv)
    if options.worker is not None:
        run_seed(options, options.worker)
        return {}
    if options.seeds < 1 or options.at_a_time < 1:
        raise LitEveError("--seeds and --at-a-time must be at least 1")
    seeds = range(options.first, options.first + options.seeds)
    script = [sys.executable, __file__, "--output", str(options.output), "--config", str(options.config)]
    script += ["--no-benchmarks"] * options.no_benchmarks
    commands = {f"seed_{seed}": [*script, "--worker", str(seed)] for seed in seeds}
    console = Console()
    done = run_side_by_side(commands, options.output / "logs", options.at_a_time)
    for _ in track(done, "seeds", len(commands), console=console):
        pass
    runs = collect(options, seeds)
    machine = environment()
    result = {**machine, "at_a_time": options.at_a_time, "summary": summary(runs), "runs": runs}
    write_atomically(options.output / "table.md", table(runs))
    path = options.results / f"nano_seeds_{slug(machine['machine']['processor'])}.json"
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    console.print(table(runs), highlight=False, soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True)
    return result


if __name__ == "__main__":
    try:
        main()
    except LitEveError as error:
        sys.exit(f"error: {error}")
