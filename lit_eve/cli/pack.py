"""``lit-eve pack``: annotation files and images become the shards that training reads (docs/data_format.md)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.files import output_folder, path_argument

if TYPE_CHECKING:
    from lit_eve.data.annotations import Annotations
    from lit_eve.processing import EveProcessor
    from lit_eve.processing.processor import TemplateName
    from lit_eve.training.blueprint import Blueprint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve pack`` takes."""
    parser.add_argument(
        "--annotations",
        required=True,
        type=path_argument,
        metavar="PATH",
        help="a JSON array or JSONL of LLaVA records, captions or messages; a table of captions (.csv, .tsv); or shards, such "
        "as img2dataset's: a folder, a tar, or a pattern of tars in quotes",
    )
    parser.add_argument(
        "--images",
        type=path_argument,
        metavar="DIR",
        help="folder that image names are relative to (default: the folder of the annotations)",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="DIR",
        help="folder for the shards; without it, existing shards given as annotations are only indexed",
    )
    parser.add_argument(
        "--json-path",
        type=path_argument,
        metavar="DIR",
        help="folder of the records, if the annotations are a list of record names",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML",
        help="training recipe; its tokens are counted now, not at the start of training; repeatable, later files override "
        "earlier ones",
    )
    parser.add_argument(
        "--samples-per-shard", type=int, default=5000, metavar="N", help="records per shard (default: %(default)s)"
    )
    parser.add_argument("--verify", action="store_true", help="decode every image, not only its header")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="number of shards written in parallel (default: one per core)"
    )
    parser.add_argument(
        "--teacher",
        type=path_argument,
        metavar="FOLDER",
        help="folder or hub name of a teacher whose features are computed once and kept beside the shards, as the recipe of "
        "--config asks for; a training with model.teacher_features takes them from there",
    )
    parser.add_argument(
        "--teacher-precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="float32: the teacher runs and is kept in it. bfloat16: the same, half as large. float16: it runs in float32, and "
        "features are rounded, by less than 0.05%% (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Pack, or go on packing, and say what became of the records."""
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {args.processes}")
    if args.output is not None:
        output_folder(args.output, "--output")
    from lit_eve.data.annotations import ShardedAnnotations, open_annotations

    if args.teacher is not None and not args.config:
        raise ConfigError("--teacher needs --config: the recipe says what the teacher sees, and which hidden states are kept")
    blueprint = None if args.teacher is None else _with_teacher(args)
    annotations = open_annotations(args.annotations, args.json_path)
    processor, template = _counting(args.config)
    processes = args.processes or _cores()
    if args.output is not None:
        _pack(args, annotations, processor, template, processes)
        source = args.output
    elif isinstance(annotations, ShardedAnnotations):
        source = args.annotations
    else:
        raise ConfigError("--output is needed: the folder that the shards are written to")
    _index(source, processor, template, processes)
    if blueprint is not None:
        _keep_features(blueprint, source, args.teacher_precision, processes)


def _with_teacher(args: argparse.Namespace) -> Blueprint:
    """The recipe's model beside the teacher, whose files are looked at before anything is written."""
    from dataclasses import replace

    from lit_eve.training.recipe import read_recipe

    blueprint = read_recipe(*(argument for config in args.config for argument in ("--config", config))).module.blueprint
    blueprint = replace(blueprint, teacher=args.teacher, teacher_features=True)
    blueprint.named_teacher.check_files()
    return blueprint


def _keep_features(blueprint: Blueprint, source: str, precision: str, processes: int) -> None:
    from dataclasses import replace

    import torch

    from lit_eve.data.features import PRECISIONS
    from lit_eve.data.shards.paths import list_shards
    from lit_eve.data.teacher_pass import make_features

    dtype = PRECISIONS["bfloat16" if precision == "bfloat16" else "float32"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = blueprint.needed_features
    teacher = replace(blueprint.named_teacher, is_absent=False).load(dtype).to(device)
    images, unusable = make_features(
        list_shards(source),
        teacher,
        wanted,
        blueprint.processor,
        precision,
        processes if device == "cuda" else 0,
        progress=True,
    )
    print(f"features    {images:,} images, hidden states {', '.join(map(str, wanted.states))} in {precision}")
    if unusable:
        print(f"unreadable  {unusable:,} samples whose images could not be read: a training passes over them")


def _pack(
    args: argparse.Namespace,
    annotations: Annotations,
    processor: EveProcessor | None,
    template: TemplateName | None,
    processes: int,
) -> None:
    from lit_eve.data.annotations import ShardedAnnotations
    from lit_eve.data.pack import REPORT, PackJob, pack
    from lit_eve.data.shards.tar import printable

    images = None if isinstance(annotations, ShardedAnnotations) else Path(args.images or annotations.path.parent)
    job = PackJob(annotations, Path(args.output), images, args.samples_per_shard, args.verify)
    packed = pack(job, processor, template, processes, progress=True)
    print(f"packed      {packed.samples:,} samples into {printable(args.output)}")
    listed = f", listed with reasons in {printable(str(job.output / REPORT))}" if packed.rejected else ""
    print(f"rejected    {packed.rejected:,}{listed}")
    if packed.renamed:
        print(f"same id     {packed.renamed:,} samples whose id their shard had already: kept, with a number behind their key")
    if packed.new:
        print(f"this run    {packed.new:,} records in {packed.seconds:.1f} s, {packed.new / packed.seconds:,.0f} samples/s")


def _counting(configs: list[str]) -> tuple[EveProcessor | None, TemplateName | None]:
    """What tokens are counted with."""
    if not configs:
        return None, None
    from lit_eve.training.recipe import read_recipe

    recipe = read_recipe(*(argument for config in configs for argument in ("--config", config)))
    return recipe.processor, recipe.template


def _index(source: str, processor: EveProcessor | None, template: TemplateName | None, processes: int) -> None:
    """Index what is not indexed yet; with a processor, count its tokens and say how many samples it cannot use."""
    from lit_eve.data.lengths import load_table, prepare_shards
    from lit_eve.data.shards.index import ensure_indices
    from lit_eve.data.shards.paths import list_shards
    from lit_eve.data.shards.tar import printable

    shards = list_shards(source)
    if processor is None:
        ensure_indices(shards, processes, progress=True)
        print(f"indexed     {len(shards):,} shards; tokens are counted when a training begins, or with --config")
        return
    prepare_shards([source], processor, template, processes, progress=True)
    table = load_table([source], processor, template)
    print(f"tokens      {int(table.length.sum(dtype='int64')):,} of {len(table):,} samples in {len(shards):,} shards")
    if table.unknown.unknown:
        print(f"unknown     {printable(str(table.unknown))}")
    if table.unusable:
        print(f"unusable    {len(table.unusable):,} samples with this recipe; the first: {printable(table.unusable[0].reason)}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
