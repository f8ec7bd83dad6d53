"""``lit-eve plan``: what a training would cost, before GPU-days are spent. The numbers come from lit_eve/planning/plan.py."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError, LitEveError

if TYPE_CHECKING:
    from rich.console import Console

    from lit_eve.planning.plan import Plan

PAPER = "EVE-7B took two nodes of 8 A100 40 GB about 9 days, all three stages (README of the official code)"
WIDTH = 120  # where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve plan`` takes."""
    parser.add_argument("recipes", nargs="+", metavar="recipe", help="YAML of a training; with several, a line for each")
    parser.add_argument("--gpus", type=int, default=16, metavar="N", help="GPUs, all nodes together (%(default)s)")
    parser.add_argument(
        "--gpu", default="a100-40g", metavar="NAME", help="a100-40g, h100, l40s, ...; an unknown name lists all (%(default)s)"
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="SHARE", help="share of the GPUs' bf16 peak that is reached (%(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=float,
        metavar="N",
        help="assume an epoch of so many samples, as in 33e6 (default: the shards of data.train are counted; where there are "
        "none yet, the size that the set is known to have)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a key of the recipes, as in data.rows=2; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Plan every recipe; print tables or JSON."""
    for override in args.overrides:
        if "=" not in override.strip("="):
            raise ConfigError(f"--set takes KEY=VALUE, as in data.rows=2, got {override!r}")

    from rich.console import Console

    from lit_eve.planning.gpus import get_gpu
    from lit_eve.planning.plan import make_plan
    from lit_eve.training.recipe import read_recipe

    gpu = get_gpu(args.gpu)
    overrides = [f"--{override.lstrip('-')}" for override in args.overrides]
    plans: dict[str, Plan] = {}
    with Console(stderr=True).status("") as status:
        for path in args.recipes:
            status.update(f"planning {path}")
            try:
                recipe = read_recipe(path, *overrides)
                plans[path] = make_plan(
                    recipe, args.gpus, gpu, args.mfu, args.samples, compare=len(args.recipes) == 1, progress=not args.json
                )
            except LitEveError as error:
                raise type(error)(f"{path}: {error}") from error
    if args.json:
        print(json.dumps({path: as_json(plan) for path, plan in plans.items()}, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if len(plans) == 1:
        print_plan(console, *next(iter(plans.items())))
    else:
        print_overview(console, plans)
    console.print(f"\n{PAPER}.", highlight=False)


def as_json(plan: Plan) -> dict:
    """Everything in a plan, with the sums that the tables show."""
    flops = {part: {"forward": f.forward, "backward": f.backward} for part, f in plan.flops.items()}
    memory = asdict(plan.memory) | {"total": plan.memory.total}
    other = None if plan.memory_other is None else asdict(plan.memory_other) | {"total": plan.memory_other.total}
    return asdict(plan) | {"flops": flops, "memory": memory, "memory_other": other, "fits": plan.fits}


def print_overview(console: Console, plans: dict[str, Plan]) -> None:
    """One line for each recipe."""
    from lit_eve.planning.gpus import GIB

    first = next(iter(plans.values()))
    table = _table(
        f"{first.gpus} x {first.gpu.name}, {first.mfu:.0%} of the peak reached",
        ["recipe"],
        ["size", "trained", "samples", "TFLOPs / sample", "samples / step", "steps", "GiB / GPU", "fits", "days"],
    )
    for path, plan in plans.items():
        trainable = sum(part.trainable for part in plan.parameters.values())
        total = trainable + sum(part.frozen for part in plan.parameters.values())
        table.add_row(
            f"{Path(path).parent.name}/{Path(path).stem}",
            _short(total),
            _short(trainable),
            _short(plan.steps.samples),
            f"{sum(f.total for f in plan.flops.values()) / 1e12:.1f}",
            f"{plan.steps.samples_per_step:.0f}",
            f"{plan.steps.steps:,}",
            f"{plan.memory.total / GIB:.1f}",
            "yes" if plan.fits else "[red]NO[/]",
            f"{plan.days:.2f}",
        )
    table.add_section()
    table.add_row("one after the other", *[""] * 8, f"{sum(plan.days for plan in plans.values()):.2f}")
    console.print(table)


def print_plan(console: Console, path: str, plan: Plan) -> None:
    """All numbers of one recipe."""
    from lit_eve.planning.gpus import GIB

    steps = plan.steps
    console.print(f"[bold]{path}[/], stage {plan.stage}, on {plan.gpus} x {plan.gpu.name}\n", highlight=False)

    table = _table("model", ["part"], ["trainable", "frozen"])
    for name, part in plan.parameters.items():
        table.add_row(name, *(f"{count:,}" if count else "" for count in (part.trainable, part.frozen)))
    table.add_section()
    table.add_row("all", *(f"{sum(getattr(p, key) for p in plan.parameters.values()):,}" for key in ("trainable", "frozen")))
    console.print(table)

    table = _table("10^12 FLOPs of an average sample", ["part"], ["forward", "backward"])
    for name, part in plan.flops.items():
        table.add_row(name, *(f"{number / 1e12:.3f}" for number in part))
    table.add_section()
    sums = [sum(number) / 1e12 for number in zip(*plan.flops.values(), strict=True)]
    table.add_row("all", *(f"{number:.3f}" for number in sums))
    console.print(table)

    settings = {plan.checkpointing: plan.memory, not plan.checkpointing: plan.memory_other}
    shown = [(on, memory) for on, memory in settings.items() if memory is not None]
    titles = [f"{'with' if on else 'without'} checkpointing" for on, _ in shown]
    table = _table(f"GiB on each GPU ({plan.gpu.memory_gib:g} there)", ["what", ""], titles)
    for key, meaning in MEANINGS.items():
        table.add_row(key, meaning, *(f"{getattr(memory, key) / GIB:.2f}" for _, memory in shown))
    table.add_section()
    fits = ["" if memory.total <= plan.gpu.memory_gib * GIB else "[red]DOES NOT FIT[/] " for _, memory in shown]
    table.add_row("all", "", *(f"{mark}{memory.total / GIB:.2f}" for mark, (_, memory) in zip(fits, shown, strict=True)))
    console.print(table)

    table = _table("training", ["what"], [""])
    for what, value in {
        "data": steps.data,
        "samples": f"{steps.samples:,}",
        "tokens of an average sample": f"{steps.tokens_per_sample:.0f}",
        "packed rows": f"{steps.rows:,} ({steps.padding:.1%} padding)",
        "rows per step": f"{steps.rows_per_step} = {steps.rows_per_step // plan.gpus // steps.accumulated} x {plan.gpus} GPUs"
        + (f" x {steps.accumulated} micro-batches" if steps.accumulated > 1 else ""),
        "samples per step": f"{steps.samples_per_step:.0f}",
        "tokens per step": f"{steps.tokens_per_step:,}",
        "steps": f"{steps.steps:,}",
        f"days at {plan.mfu:.0%} of the peak": f"{plan.days:.2f}",
    }.items():
        table.add_row(what, value)
    console.print(table)


MEANINGS = {
    "weights": "this GPU's part",
    "gradients": "this GPU's part",
    "optimizer": "its states, this GPU's part",
    "teacher": "whole",
    "copies": "gathered weights, gradients on their way",
    "activations": "left for the backward pass, and the batch",
    "temporary": "logits, recomputed block, teacher's pass",
    "reserved": "CUDA, NCCL, allocator (assumed)",
}


def _table(title: str, left: list[str], right: list[str]):
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _short(count: int) -> str:
    """6738415616 -> 6.74B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)
