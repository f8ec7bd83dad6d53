"""``lit-eve evaluate``: a model on the ten benchmarks, or answers that are there already (docs/evaluation.md)."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.files import output_folder, path_argument

if TYPE_CHECKING:
    from lit_eve.evaluation import OpenAIJudge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``lit-eve evaluate`` takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model",
        type=path_argument,
        metavar="PATH",
        help="run folder, checkpoint, transformers folder, hub name or official EVE checkpoint",
    )
    what.add_argument(
        "--answers",
        type=path_argument,
        metavar="PATH",
        help="score existing answers (JSONL; a folder or one file) instead of asking a model",
    )
    parser.add_argument(
        "--benchmarks",
        default="all",
        metavar="NAMES",
        help="all, or names separated by commas: vqav2, gqa, vizwiz, scienceqa, textvqa, pope, mme, mmbench, seedbench, "
        "mmvet; add a split after a colon, as in vqav2:test-dev; or a file of your own, as in questions.jsonl "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=path_argument,
        metavar="DIR",
        help="folder with the official files, one subfolder per benchmark; not needed for your own files",
    )
    parser.add_argument(
        "--output",
        default="runs/eval",
        type=path_argument,
        metavar="DIR",
        help="folder for answers, table and plot; shared by all nodes (default: %(default)s)",
    )
    parser.add_argument("--name", metavar="TEXT", help="the model's name in the table")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions of each benchmark, evenly spread")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts per device (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="maximum answer length in tokens (default: the benchmark's own)"
    )
    parser.add_argument("--template", metavar="NAME", help="conversation template (default: the model's own)")
    parser.add_argument("--attn-implementation", metavar="NAME", help="same as model.attn_implementation of a recipe")
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, gpu, ... (default: %(default)s)")
    parser.add_argument(
        "--devices",
        type=_devices,
        default="auto",
        metavar="N",
        help="devices of this node: how many, or which ones, as in 0,1 (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of nodes, started by torchrun or SLURM (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", metavar="NAME", help="32-true, bf16-true, ... (default: bf16-true on GPUs, else 32-true)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="processes per device that load images (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="leave out what is missing or unusable, and score the rest; the table says so",
    )
    parser.add_argument(
        "--judge-url",
        metavar="URL",
        help="OpenAI-compatible endpoint that grades MM-Vet and reads unclear MMBench answers",
    )
    parser.add_argument(
        "--judge-model",
        default="gpt-4-0613",
        metavar="NAME",
        help="name of the judge model at this endpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--judge-runs",
        type=int,
        default=1,
        metavar="N",
        help="how often MM-Vet is graded; 5 in the paper (default: %(default)s)",
    )
    parser.add_argument(
        "--judge-key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="environment variable with the API key of the judge (default: %(default)s)",
    )
    parser.add_argument(
        "--judge-concurrency",
        type=int,
        default=8,
        metavar="N",
        help="parallel requests to the judge (default: %(default)s)",
    )


def _devices(text: str) -> str:
    """What Lightning takes for ``devices``."""
    if not re.fullmatch(r"auto|-?\d+|\d+(,\d+)*,?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto, nor a number, nor a list such as 0,1")
    return text


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    output_folder(args.output, "--output")
    judge = _judge(args)
    if args.answers is not None:
        _score_answers(args, judge)
    else:
        _ask_model(args, judge)


def _score_answers(args: argparse.Namespace, judge: OpenAIJudge | None) -> None:
    from lit_eve.evaluation.report import print_table
    from lit_eve.evaluation.run import name_of_answers, score_files
    from lit_eve.evaluation.tasks import find_tasks, load_tasks

    found = find_tasks(args.benchmarks, args.data)
    tasks = load_tasks(found, args.data, limit=args.limit, allow_partial=args.allow_partial)
    output = Path(args.output)
    name = args.name or name_of_answers(Path(args.answers), output)
    results = score_files(args.answers, tasks, name, output, judge=judge, allow_partial=args.allow_partial)
    print_table(results, name, output)


def _ask_model(args: argparse.Namespace, judge: OpenAIJudge | None) -> None:
    """What ``train.py test`` does with the same settings in a YAML."""
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lit_eve.evaluation import BenchmarkData
    from lit_eve.evaluation.tasks import find_tasks
    from lit_eve.training import LitEve
    from lit_eve.training.callbacks.progress import progress_callback
    from lit_eve.training.cli import quiet

    quiet()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # what devices are not there
    find_tasks(args.benchmarks, args.data)  # before anything that takes long
    data = BenchmarkData(
        args.data,
        args.benchmarks,
        limit=args.limit,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        template=args.template,
        num_workers=args.num_workers,
        allow_partial=args.allow_partial,
        judge=judge,
        name=args.name,
    )
    module = LitEve(init_from=args.model, attn_implementation=args.attn_implementation)
    module.blueprint.check()
    on_gpu = args.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    try:
        trainer = Trainer(
            default_root_dir=args.output,
            accelerator=args.accelerator,
            devices=args.devices,
            num_nodes=args.nodes,
            precision=args.precision or ("bf16-true" if on_gpu else "32-true"),
            callbacks=[progress_callback()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise ConfigError(f"{error}") from error
    trainer.test(module, data, verbose=False)


def _judge(args: argparse.Namespace) -> OpenAIJudge | None:
    """The judge that was asked for; it has replied once."""
    if args.judge_url is None:
        return None
    from lit_eve.evaluation import OpenAIJudge
    from lit_eve.evaluation.data import JUDGE

    judge = OpenAIJudge(
        args.judge_url,
        args.judge_model,
        cache=Path(args.output, JUDGE),
        key_variable=args.judge_key,
        concurrency=args.judge_concurrency,
        runs=args.judge_runs,
    )
    judge.check()
    return judge
