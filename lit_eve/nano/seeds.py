"""The miniature world again and again, every seed of it changed: how far can one run be trusted?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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


def write_seeded(config: Path, folder: Path, seed: int) -> Path:
    """The YAML files of ``config`` with every seed in them set to ``seed``, in ``folder``.

    Returns:
        ``folder``.
    """
    for path in sorted(config.glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        settings[SEED_KEYS.get(path.stem, STAGE_SEED)] = seed
        write_atomically(folder / path.name, yaml.safe_dump(settings, sort_keys=False))
    return folder


def run_side_by_side(commands: Mapping[str, Sequence[str]], logs: Path, at_a_time: int) -> Iterator[str]:
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


def pipeline_command(output: Path, config: Path) -> list[str]:
    """``lit-eve nano`` as a process of its own."""
    return [sys.executable, "-m", "lit_eve.cli", "nano", "--output", str(output), "--config", str(config)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least, median, greatest, and standard deviation (0 of a single value)."""
    return {
        "mean": fmean(values),
        "least": min(values),
        "median": median(values),
        "greatest": max(values),
        "deviation": stdev(values) if len(values) > 1 else 0.0,
    }


def result_of(output: Path, seed: int) -> dict[str, Any]:
    """What counts of a run's ``metrics.json``."""
    metrics = json.loads((output / "metrics.json").read_text())
    names = ("question_accuracy", "shuffled_accuracy", "blind_accuracy", "caption_accuracy", "caption_loss")
    return {
        "seeds": dict.fromkeys(("world", "language_model", "teacher", "stages"), seed),
        **{name: metrics[name] for name in names},
        "by_type": {type: row["accuracy"] for type, row in metrics["by_type"].items()},
        "seconds": metrics["seconds"],
    }


def slug(name: str) -> str:
    """A processor's name as part of a file's name: "AMD EPYC 9B14" -> "amd_epyc_9b14"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
