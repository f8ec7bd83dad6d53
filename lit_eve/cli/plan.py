"""``lit-eve plan``: what a training would cost, before GPU-days are spent. The numbers come from lit_eve/planning/plan.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError, LitEveError

if TYPE_CHECKING:
    from rich.console import Console

    from lit_eve.planning.plan import Plan
    from lit_eve.training.recipe import Recipe

PAPER = "EVE-7B took two nodes of 8 A100 40 GB about 9 days, all three stages (README of the official code)"
WIDTH = 132  # where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve plan`` takes."""
    parser.add_argument(
        "recipes", nargs="+", metavar="recipe", help="YAML file of a training run; several files give one line each"
    )
    parser.add_argument(
        "--gpus", type=int, default=16, metavar="N", help="number of GPUs, over all nodes (default: %(default)s)"
    )
    parser.add_argument(
        "--gpu",
        default="a100-40g",
        metavar="NAME",
        help="a100-40g, h100, 4090, ...; an unknown name lists all (default: %(default)s)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="fraction of the GPUs' bf16 peak that training is assumed to reach (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=float,
        metavar="N",
        help="number of samples of an epoch, as in 33e6 (default: counted from the shards of data.train; if there are none "
        "yet, the known size of the data set)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a key of the recipes, as in data.rows=2; repeatable",
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
    recipes: dict[str, Recipe] = {}
    plans: dict[str, Plan] = {}
    with Console(stderr=True).status("") as status:
        for path in args.recipes:  # all are read before the first is planned
            with _named(path):
                recipes[path] = read_recipe(path, *overrides)
        for path, recipe in recipes.items():
            status.update(f"planning {path}")
            with _named(path):
                plans[path] = make_plan(
                    recipe, args.gpus, gpu, args.mfu, args.samples, compare=len(recipes) == 1, progress=not args.json
                )
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
    for kind in dict.fromkeys(plan.unmeasured for plan in plans.values() if plan.unmeasured):
        console.print(
            f"\nNot measured is what {kind}.auxiliary_losses computes: its activations and FLOPs come on top.", highlight=False
        )
    console.print(f"\n{PAPER}.", highlight=False)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """An error inside says which recipe it is about."""
    try:
        yield
    except LitEveError as error:
        raise type(error)(f"{path}: {error}") from error


def as_json(plan: Plan) -> dict:
    """Everything in a plan, with the sums that the tables show."""
    flops = {part: {"forward": f.forward, "backward": f.backward} for part, f in plan.flops.items()}
    memory = asdict(plan.memory) | {"total": plan.memory.total}
    other = None if plan.memory_other is None else asdict(plan.memory_other) | {"total": plan.memory_other.total}
    more = {"fits": plan.fits, "gpu_hours": plan.gpu_hours}
    return asdict(plan) | {"flops": flops, "memory": memory, "memory_other": other} | more


def print_overview(console: Console, plans: dict[str, Plan]) -> None:
    """One line for each recipe."""
    from lit_eve.planning.gpus import GIB

    first = next(iter(plans.values()))
    table = _table(
        f"{first.gpus} x {first.gpu.name}, assumed to reach {first.mfu:.0%} of the peak (--mfu)",
        ["recipe"],
        ["size", "trained", "samples", "TFLOPs / sample", "samples / step", "steps", "GiB / GPU", "fits", "days", "GPU hours"],
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
            *_time(plan.days, plan.gpu_hours),
        )
    table.add_section()
    fit = all(plan.fits for plan in plans.values())
    sums = [sum(getattr(plan, key) for plan in plans.values()) if fit else None for key in ("days", "gpu_hours")]
    table.add_row("one after the other", *[""] * 8, *_time(*sums))
    console.print(table)
    if not fit:
        console.print("What does not fit takes no days. Planned alone, such a recipe is shown with ways out.", highlight=False)


def print_plan(console: Console, path: str, plan: Plan) -> None:
    """All numbers of one recipe."""
    from lit_eve.planning.gpus import GIB
    from lit_eve.planning.needs import GPUS_OF_NODE, IMAGE_BYTES

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
        share = f" (in {plan.shares[name]:.0%} of the steps)" if name in plan.shares else ""
        table.add_row(f"{name}{share}", *(f"{number / 1e12:.3f}" for number in part))
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
    print_ways(console, plan)

    needs, node = plan.needs, min(plan.gpus, GPUS_OF_NODE)
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
        "share of the GPUs' peak (assumed; --mfu)": f"{plan.mfu:.0%}",
        "days": _time(plan.days, None)[0] if plan.fits else "does not fit",
        "GPU hours": _time(None, plan.gpu_hours)[1],
        "images per second that loaders must give": "-"
        if needs.images_per_second is None
        else f"{needs.images_per_second:,.0f}, {needs.images_per_second / plan.gpus:,.1f} a GPU",
        "disk for the shards": f"{needs.data / GIB:,.0f} GiB"
        + ("" if needs.data_counted else f" (assumed: {IMAGE_BYTES // 1000} KB an image)"),
        "disk for two checkpoints and the model": f"{needs.checkpoints / GIB:,.0f} GiB",
        f"memory of the host of {node} GPU{'s' * (node > 1)}": f"{needs.host / GIB:,.0f} GiB (partly assumed)",
    }.items():
        table.add_row(what, value)
    console.print(table)


def print_ways(console: Console, plan: Plan) -> None:
    """What to change: where it does not fit, so that it does; where recomputation is not needed, to be faster."""
    from lit_eve.planning.gpus import GIB

    if plan.fits:
        other = plan.memory_other
        if plan.checkpointing and other is not None and other.total <= plan.gpu.memory_gib * GIB:
            console.print(
                f"It also fits without checkpointing ({other.total / GIB:.1f} of {plan.gpu.memory_gib:g} GiB), which saves up "
                "to a quarter of the time: --set model.gradient_checkpointing=false\n",
                highlight=False,
                soft_wrap=True,
            )
        return
    console.print("It does not fit. With one of these changes it does:", highlight=False, soft_wrap=True)
    for way in plan.ways:
        gpus = [f"--gpus {way.gpus}"] if way.gpus != plan.gpus else []
        changes = " ".join([*gpus, *(f"--set {setting}" for setting in way.settings)])
        console.print(f"  {changes}   ({way.total / GIB:.1f} GiB on each GPU)", highlight=False, soft_wrap=True)
    if not plan.ways:
        console.print(
            "  none was found among checkpointing, fewer rows, more GPUs and smaller decoders", highlight=False, soft_wrap=True
        )
    console.print()


def _time(days: float | None, gpu_hours: float | None) -> tuple[str, str]:
    return "-" if days is None else f"{days:.2f}", "-" if gpu_hours is None else f"{gpu_hours:,.0f}"


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
