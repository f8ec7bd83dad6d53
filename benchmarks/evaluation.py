"""Questions answered per second, by batch size, on the way that ``lit-eve evaluate`` takes; prints JSON.

    python benchmarks/evaluation.py --model runs/nano/model --data runs/nano/benchmarks
    python benchmarks/evaluation.py --model runs/eve_7b/3_finetune --data data/benchmarks --benchmarks pope --limit 512

The clock runs from the first batch to the last answer: reading and resizing images is in, loading the model is not. Sizes take
turns, ``--rounds`` times, as machines have better and worse moments; of each size the median counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eve.evaluation import BenchmarkData
from lit_eve.training import LitEve
from lit_eve.training.cli import quiet
from lit_eve.training.record import environment


class Clock(Callback):
    """Seconds of the answering, and how many tokens the answers have."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter()


def measure(module: LitEve, options: argparse.Namespace, batch_size: int) -> tuple[int, float, dict[str, str]]:
    """Questions, seconds, and the answers by file."""
    with tempfile.TemporaryDirectory() as folder:
        data = BenchmarkData(
            options.data,
            options.benchmarks,
            limit=options.limit,
            batch_size=batch_size,
            max_new_tokens=options.max_new_tokens,
            num_workers=options.workers,
        )
        clock = Clock()
        trainer = Trainer(
            default_root_dir=folder,
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # the table
            trainer.test(module, data, verbose=False)
        answers = {path.name: path.read_text() for path in sorted(Path(folder, "predictions").glob("*.jsonl"))}
    return sum(text.count("\n") for text in answers.values()), clock.seconds, answers


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/nano/model")
    parser.add_argument("--data", default="runs/nano/benchmarks")
    parser.add_argument("--benchmarks", default="all")
    parser.add_argument("--limit", type=int, help="questions of each benchmark")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(argv)
    quiet()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    module = LitEve(init_from=options.model)
    seconds: dict[int, list[float]] = {size: [] for size in options.batch_sizes}
    answers: dict[int, dict[str, str]] = {}
    for _ in range(options.rounds):
        for size in options.batch_sizes:
            questions, taken, answers[size] = measure(module, options, size)
            seconds[size].append(taken)
    first = options.batch_sizes[0]
    speed = {size: questions / median(row) for size, row in seconds.items()}
    result = {
        **environment(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "questions": questions,
        "questions_per_second": {size: round(value, 1) for size, value in speed.items()},
        f"times_batch_size_{first}": {size: round(value / speed[first], 2) for size, value in speed.items()},
        "seconds": {size: [round(value, 2) for value in row] for size, row in seconds.items()},
        "answers_equal": all(found == answers[first] for found in answers.values()),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return result


if __name__ == "__main__":
    main()
