"""A measurement in the miniature world, repeated with other seeds: how far can one run be trusted?

A script such as ``benchmarks/nano_seeds.py`` says what is done with one seed, and how all results become a table. What such
scripts share is here: their options, seeds in parallel, the files that they write.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml

from lit_eve.errors import LitEveError
from lit_eve.files import write_atomically

SEED_KEYS = {"world": "seed", "0_language_model": "seed", "0_teacher": "seed"}
STAGE_SEED = "seed_everything"
POLL = 0.5  # seconds between two looks at running processes


def make_parser(script: str, description: str | None, config: Path) -> argparse.ArgumentParser:
    """The options of every script that calls `measure_over_seeds`; it may add its own.

    Args:
        script: the script's ``__file__``. Its name is the measurement's; ``results`` beside it is where the JSON goes.
        description: of ``--help``.
        config: default folder of YAML files.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(script=Path(script))

    def folder(option: str, default: Path, text: str) -> None:
        parser.add_argument(option, type=Path, default=default, metavar="FOLDER", help=text)

    parser.add_argument("--seeds", type=int, default=8, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them (%(default)s)")
    parser.add_argument("--at-a-time", type=int, default=cores(), metavar="N", help="seeds at a time (one per core)")
    folder("--config", config, f"YAML files (experiments/{config.name})")
    folder("--output", Path("runs") / Path(script).stem, "all runs, and their table (%(default)s)")
    folder("--results", Path(script).with_name("results"), "where the JSON goes (%(default)s)")
    parser.add_argument("--worker", type=int, metavar="SEED", help=argparse.SUPPRESS)  # one seed, in a process of its own
    return parser


def measure_over_seeds(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run_seed: Callable[[argparse.Namespace, Path, int], None],
    read_result: Callable[[Path, int], dict[str, Any]],
    summary: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    table: Callable[[Sequence[dict[str, Any]]], str],
) -> dict[str, Any]:
    """The whole of a script: run all seeds, print their table, write table and JSON.

    A seed is a process with a folder of its own, ``OUTPUT/seed_N``: the script itself, called again with the same options and
    ``--worker SEED``. The table goes to ``OUTPUT/table.md``, the JSON to ``RESULTS/SCRIPT_PROCESSOR.json``.

    Args:
        parser: what `make_parser` made.
        argv: the script's arguments; None: those of this process.
        run_seed: does what one seed takes, given options, folder and seed; called again, it goes on with what is missing.
        read_result: what came out, as JSON, given folder and seed.
        summary: statistics of all results, as JSON.
        table: all results, as Markdown.

    Returns:
        What is in the JSON: ``machine``, ``versions``, ``at_a_time``, ``summary`` and ``runs``, the results. A worker: nothing.

    Raises:
        LitEveError: no seed to run, or a seed failed.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        run_seed(options, _folder(options, options.worker), options.worker)
        return {}
    if min(options.seeds, options.at_a_time) < 1:
        raise LitEveError("--seeds and --at-a-time must be at least 1")

    from rich.console import Console
    from rich.progress import track

    from lit_eve.training.record import environment

    seeds = range(options.first, options.first + options.seeds)
    commands = {f"seed_{seed}": [sys.executable, str(options.script), *arguments, "--worker", str(seed)] for seed in seeds}
    console = Console()
    done = run_in_parallel(commands, options.output / "logs", options.at_a_time)
    for _ in track(done, "seeds", len(commands), console=console):
        pass
    runs = [read_result(_folder(options, seed), seed) for seed in seeds]
    machine = environment()
    result = {**machine, "at_a_time": options.at_a_time, "summary": summary(runs), "runs": runs}
    write_atomically(options.output / "table.md", table(runs))
    path = results_path(options)
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    console.print(table(runs), highlight=False, soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True)
    return result


def results_path(options: argparse.Namespace) -> Path:
    """The JSON of a measurement on this processor."""
    from lit_eve.training.record import environment

    return options.results / f"{options.script.stem}_{slug(environment()['machine']['processor'])}.json"


def _folder(options: argparse.Namespace, seed: int) -> Path:
    return options.output / f"seed_{seed}"


def write_seeded_config(config: Path, folder: Path, seed: int) -> Path:
    """The YAML files of ``config`` with every seed in them set to ``seed``, in ``folder``.

    Returns:
        ``folder``.
    """
    for path in sorted(config.glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        settings[SEED_KEYS.get(path.stem, STAGE_SEED)] = seed
        write_atomically(folder / path.name, yaml.safe_dump(settings, sort_keys=False))
    return folder


def run_in_parallel(commands: Mapping[str, Sequence[str]], logs: Path, at_a_time: int) -> Iterator[str]:
    """Run commands as processes, so many at a time; what they print goes to ``logs/NAME.log``.

    Whoever stops early (an exception, Ctrl-C) ends those that run.

    Args:
        commands: by name, in the order in which they are started.
        logs: folder of their output; a second run adds to it.
        at_a_time: processes.

    Yields:
        The name of each command that has ended well, as it ends.

    Raises:
        LitEveError: a command ended with an error. The others that ran are ended; what they had done stays.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = list(commands), {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                name = waiting.pop(0)
                log = stack.enter_context((logs / f"{name}.log").open("a"))
                running[name] = process = subprocess.Popen(commands[name], stdout=log, stderr=subprocess.STDOUT)
                stack.callback(_end, process)
            time.sleep(POLL)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if code := running.pop(name).returncode:
                    last = (logs / f"{name}.log").read_text().strip().splitlines()[-1:]
                    raise LitEveError(f"{name} ended with {code}: {' '.join(last)} (all of it is in {logs / name}.log)")
                yield name


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def describe(values: Sequence[float]) -> dict[str, float]:
    """Mean, least, median, greatest, and standard deviation (0 of a single value)."""
    return {
        "mean": fmean(values),
        "least": min(values),
        "median": median(values),
        "greatest": max(values),
        "deviation": stdev(values) if len(values) > 1 else 0.0,
    }


def slug(name: str) -> str:
    """A processor's name as part of a file's name: "AMD EPYC 9B14" -> "amd_epyc_9b14"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
