"""``lit-eve sweep``: run an ablation, arms x seeds, and write what came out. The work is in lit_eve/sweeps/."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.files import output_folder, path_argument

if TYPE_CHECKING:
    from rich.console import Console

    from lit_eve.sweeps.costs import StageCost
    from lit_eve.sweeps.sweep import Sweep
    from lit_eve.sweeps.trials import Trial

RUNS, STORE = "runs/sweeps", "store"
GPUS = 16
"""Of the paper's."""
UNKNOWN = "–"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve sweep`` takes."""
    parser.add_argument(
        "ablation", metavar="FILE", help="YAML file of an ablation, such as experiments/ablations/alignment.yaml"
    )
    parser.add_argument("--output", type=path_argument, metavar="FOLDER", help=f"folder for the results (default: {RUNS}/NAME)")
    parser.add_argument(
        "--store",
        type=path_argument,
        metavar="FOLDER",
        help="folder for all that is trained; sweeps with the same one share it (default: store, beside the output)",
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="run these arms alone, and the reference")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, from 0 on (default: those of the file)")
    parser.add_argument("--base", type=path_argument, metavar="FOLDER", help="recipe to use instead of the file's")
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="KEY=A,B",
        help="instead of the file's arms: the reference with each combination of these values; KEY as in 2_pretrain.model.lr",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="instead of the file's arms: N samples of its search, by Optuna"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine alone)")
    parser.add_argument(
        "--keep", action="store_true", help="go on where the file has changed since; unaffected trials are kept"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the trials and what they would cost; run nothing")
    parser.add_argument("--results", action="store_true", help="run nothing; write the report of what is finished")
    parser.add_argument("--publish", type=path_argument, metavar="FOLDER", help="also put the results into FOLDER/RESULTS.md")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help=f"for --dry-run: number of GPUs (default: {GPUS}; of a miniature: none)"
    )
    parser.add_argument("--gpu", default="a100-40g", metavar="NAME", help="for --dry-run: their kind (default: %(default)s)")
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="for --dry-run: share of the GPUs' peak that training reaches (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Run what is not done, and write the report."""
    from rich.console import Console

    from lit_eve.sweeps.ablation import read_ablation
    from lit_eve.sweeps.sweep import Sweep, only, with_grid

    if args.grid and args.sample:
        raise ConfigError("give either --grid or --sample")
    ablation = only(read_ablation(args.ablation, args.base), None if args.grid or args.sample else args.only, args.seeds)
    if args.grid:
        ablation = with_grid(ablation, args.grid)
    if args.sample:
        from lit_eve.sweeps.search import check_search

        check_search(ablation)
        ablation = only(ablation, [ablation.reference], None)
    output = Path(args.output or f"{RUNS}/{ablation.name}" + "-grid" * bool(args.grid) + "-search" * bool(args.sample))
    store = Path(args.store or output.parent / STORE)
    if store == output:
        raise ConfigError(f"--store and --output are both {output}; --output names another folder")
    output_folder(output, "--output")
    output_folder(store, "--store")
    console = Console(highlight=False)
    with console.status("reading the arms"):
        sweep = Sweep(ablation, output, args.keep, store)
    if args.dry_run:
        print_costs(console, sweep, args)
        return
    if not args.results:
        failed = _run(console, sweep, args)
    else:
        if args.sample:
            from lit_eve.sweeps.search import Search

            sweep.trials += Search(sweep, args.sample).begun
        failed = {name: trial["why"] for name, trial in sweep.ledger.content.get("trials", {}).items() if "why" in trial}
    _write_results(console, sweep, failed, args.publish)
    if failed and not args.results:
        raise LitEveError(f"{len(failed)} trials failed; the same command tries them again")


def _run(console: Console, sweep: Sweep, args: argparse.Namespace) -> dict[str, str]:
    """Run what is left, under a live table; what failed, and why."""
    from contextlib import nullcontext

    from rich.live import Live

    from lit_eve.sweeps.placing import Placement
    from lit_eve.sweeps.table import Lines, failures, picture

    with Placement(sweep.ablation.resources, args.address) as places:
        live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        lines = Lines(console)

        def show(state: Any) -> None:
            capacity = places.capacity
            if live is None:
                lines(state, capacity)
            else:
                live.update(picture(state, capacity))

        more: dict[str, Any] = {}
        if args.sample:
            from lit_eve.sweeps.search import Search

            search = Search(sweep, args.sample)
            more = {"more": search.more, "prune": search.prune}
        with live or nullcontext():
            state = sweep.run(places, show, **more)
    for name, why in failures(state, state.trials):
        console.print(f"\n[red]{name} failed[/]: {why}", soft_wrap=True)
    sweep.trials = state.trials
    return dict(failures(state, state.trials))


def _write_results(console: Console, sweep: Sweep, failed: dict[str, str], publish: str | None) -> None:
    from lit_eve.sweeps.gathering import gather
    from lit_eve.sweeps.report.hparams import write_hparams
    from lit_eve.sweeps.report.page import write_report
    from lit_eve.sweeps.report.publishing import publish as publish_results

    trials = gather(sweep.trials, sweep.flops_per_step())
    if not trials:
        raise LitEveError(f"{sweep.output}: no trial is finished, so there is nothing to report")
    command = shlex.join(["lit-eve", *(word for word in sys.argv[1:] if word != "--results")])  # that which trained
    write_hparams(sweep.output, sweep.as_run, trials)
    report = write_report(sweep.output, sweep.as_run, trials, failed, command)
    console.print(f"{len(trials)} of {len(sweep.trials)} trials are finished; the report is {report}", soft_wrap=True)
    if publish is not None:
        publish_results(Path(publish), sweep.as_run, trials, failed, command)


def print_costs(console: Console, sweep: Sweep, args: argparse.Namespace) -> None:
    """What each arm costs, and whether it is finished."""
    from rich import box
    from rich.table import Table

    from lit_eve.planning.gpus import get_gpu
    from lit_eve.sweeps.report.sections import EQUAL

    is_mini = sweep.recipe.ground is not None and args.gpus is None  # which is trained by one process
    gpus = args.gpus or (1 if is_mini else GPUS)
    with console.status("planning"):
        costs = sweep.costs(gpus=gpus, gpu=get_gpu(args.gpu), mfu=args.mfu)
    title = sweep.ablation.question + ("" if is_mini else f"\n{gpus} x {args.gpu}, --mfu {args.mfu:g}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("arm", "stage"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "samples", "FLOPs", *["GPU-days"] * (not is_mini), "trials"):
        table.add_column(column, justify="right")
    days: list[float | None] = []
    arms = _by_arm(sweep)
    for arm, trials in arms.items():
        runs = f"{sum(trial.is_done for trial in trials)} of {len(trials)}"
        planned = [cost for _, cost in costs.get(arm, ())]
        for number, stage in enumerate(trials[0].stages):
            cost = planned[number] if planned else None
            days += [None if cost is None or cost.gpu_days is None else len(trials) * cost.gpu_days]
            name = "" if number else arm
            table.add_row(name, stage.name, *_written(cost, with_days=not is_mini), "" if number else runs)
    console.print(table)
    total = "" if is_mini or None in days else f", {sum(days):,.3g} GPU-days in all, stages that arms share counted for each"
    console.print(f"{len(sweep.trials)} trials{total}")
    if len(costs) < len(arms):
        console.print(f"{UNKNOWN}: known once the miniature's world and language model are made, which the sweep does first")
    if sweep.ablation.equal != "steps" and not sweep.ledger.scaled:
        last = sweep.ablation.scaled or "the last stage"
        console.print(
            f"before the first trial, the steps of {last} are chosen so that all arms have {EQUAL[sweep.ablation.equal]}"
        )


def _written(cost: StageCost | None, with_days: bool) -> list[str]:
    """Cells of one stage of a trial: steps, samples, FLOPs, GPU-days."""
    if cost is None:
        return [UNKNOWN] * (3 + with_days)
    days = "does not fit" if cost.gpu_days is None else f"{cost.gpu_days:.3g}"
    return [f"{cost.steps:,}", f"{cost.steps * cost.samples_per_step:,.0f}", f"{cost.flops:.3g}", *[days] * with_days]


def _by_arm(sweep: Sweep) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        found.setdefault(trial.arm.name, []).append(trial)
    return found
