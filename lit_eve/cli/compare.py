"""``lit-eve compare``: runs side by side. What is compared is decided in lit_eve/sweeps/run_comparison.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.files import output_folder, path_argument, same_path, write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from lit_eve.sweeps.run_folders.comparison import RunComparison
    from lit_eve.sweeps.run_folders.tables import Table

OUTPUT, PAGE = "runs/compare", "compare.md"
WIDTH = 132  # where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve compare`` takes."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=path_argument,
        metavar="run",
        help="folder of a run, finished or not; or outputs of lit-eve nano, whose stages of the same name are compared",
    )
    parser.add_argument("--x", choices=("step", "seconds", "tokens"), default="step", help="the axis of the curves")
    parser.add_argument(
        "--output",
        type=path_argument,
        default=OUTPUT,
        metavar="FOLDER",
        help=f"folder for {PAGE} and the curves (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def run(args: argparse.Namespace) -> None:
    """Compare the runs; print tables or JSON, write a page and the curves."""
    output = Path(output_folder(args.output, "--output"))
    folders = [folder for folder in args.runs if not _is_output(folder, output)]  # runs/* holds it too
    if not folders:
        raise ConfigError(f"{args.runs[0]} is what lit-eve compare has written, and no run")

    from rich.console import Console

    with Console(stderr=True).status("reading the runs") as status:
        from lit_eve.sweeps.run_folders.comparison import compare_all
        from lit_eve.sweeps.run_folders.figure import draw_runs
        from lit_eve.sweeps.run_folders.tables import as_json, markdown

        comparisons = compare_all(folders)
        output.mkdir(parents=True, exist_ok=True)
        figures = {}
        for one in comparisons:
            status.update(f"drawing the curves {one.title}".rstrip())
            if one.curves:
                figures[one.title] = f"curves_{one.title}.png" if one.title else "curves.png"
                draw_runs(one, args.x).savefig(output / figures[one.title], dpi=150)
        write_atomically(output / PAGE, markdown(comparisons, figures))
    if args.json:
        print(json.dumps({one.title or "runs": as_json(one) for one in comparisons}, indent=2, default=str))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    for one in comparisons:
        print_comparison(console, one)
    written = ", ".join(str(output / name) for name in (PAGE, *figures.values()))
    console.print(f"Written: {written}", soft_wrap=True)


def print_comparison(console: Console, comparison: RunComparison) -> None:
    """Its tables and notes; where columns of all runs do not fit, one table below the other."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as Grid

    from lit_eve.sweeps.run_folders.tables import tables

    if comparison.title:
        console.rule(f"[bold]{comparison.title}[/]", align="left", style="dim")
    found = tables(comparison)
    if not comparison.settings:
        console.print("No setting differs.\n")
    for one in found:
        left = len(one.header) - len(comparison.runs)
        for columns in _fitting(one, left, console.width):
            title = one.title + " (step in parentheses; * the best run)" * (one.title == "metrics")
            shown = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for index, name in enumerate(one.header):
                if index in columns:
                    shown.add_column(escape(name), justify="left" if index < left else "right", overflow="fold")
            for row in one.rows:
                cells = [row[index] for index in columns]
                shown.add_row(*(f"[bold green]{escape(text)}*[/]" if best else escape(text) for text, best in cells))
            console.print(shown)
    for note in comparison.notes:
        console.print(escape(note))
    if comparison.notes:
        console.print()


def _is_output(folder: str, output: Path) -> bool:
    """Whether a folder holds what this command writes, and no run."""
    return (same_path(folder, str(output)) or Path(folder, PAGE).exists()) and not Path(folder, "config.yaml").exists()


def _fitting(table: Table, left: int, width: int) -> list[list[int]]:
    """The columns of each part of a table that is wider than the console; all parts have the ``left`` first ones."""
    longest = [max(len(row[index].text + "*") for row in table.rows) for index in range(len(table.header))]
    widths = [max(len(title), cell) + 3 for title, cell in zip(table.header, longest, strict=True)]  # and what is between
    parts: list[list[int]] = [[]]
    for index in range(left, len(widths)):
        if parts[-1] and sum(widths[:left]) + sum(widths[i] for i in parts[-1]) + widths[index] >= width:
            parts.append([])
        parts[-1].append(index)
    return [[*range(left), *part] for part in parts]
