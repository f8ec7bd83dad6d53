"""How fast a training step is: forward, backward and optimizer over packed rows, with random weights; prints JSON.

    python benchmarks/train_step.py --model eve_7b --stage prealign --rows 4 --compile --output prealign.json
    python benchmarks/train_step.py --model eve_7b --stage pretrain --rows 8 --checkpointing --layers fit

Model, losses and packing are those of training, on one device; weights, gradients and the optimizer's states have the type
``--dtype``, where the recipes shard them in float32, and gradients are not clipped. Images and texts are noise of realistic
sizes. ``step_seconds`` are all steps but the warm-up; what is said per second is the median over them, and ``spread`` the
slowest and the fastest step over that. ``mfu`` is the model FLOPs utilisation: the arithmetic that the model needs
(lit_eve/planning/flops.py; no recomputation, no padding) over what the device could do in that time in bfloat16.
``planned_memory_gb`` is what ``lit-eve plan`` would say of this very step: ``total`` without what it reserves stands beside
``peak_memory_gb``, which is what tensors took; ``reserved_memory_gb`` is what the allocator held. ``waits`` are the places in a
step where the host waits for the GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.data import model_inputs
from lit_eve.data.dataset import Collate
from lit_eve.data.packing import pack
from lit_eve.errors import LitEveError
from lit_eve.losses import FrozenTeacher
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.planning.flops import Workload, meta_model, total_flops, training_flops
from lit_eve.planning.gpus import peak_flops
from lit_eve.planning.memory import RESERVED, Holdings, Layout
from lit_eve.planning.memory import measure as measure_memory
from lit_eve.processing import EveV1Geometry, ImageGeometry
from lit_eve.training.optimizers import OPTIMIZERS, build_optimizer, trained_parameters
from lit_eve.training.stages import STAGES, Stage, get_stage

# EVE-7B: Vicuna-7B v1.5 and CLIP-L/14-336. Tiny: the same in small, for tests.
DECODERS = {
    "eve_7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "max_position_embeddings": 4096},
    "tiny": {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4},
}
TEACHERS = {
    "eve_7b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"image_size": 336, "patch_size": 14},
    "tiny": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"image_size": 64, "patch_size": 8},
}
GEOMETRIES = {
    "eve_7b": EveV1Geometry(),
    "tiny": EveV1Geometry(image_size=64, patch_size=4, cells=8),
}
MAX_TOKENS = {"eve_7b": 2048, "tiny": 256}
PHOTOS = [(4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (1, 1), (5, 4), (9, 16)]  # width : height
SHARES = [0.35, 0.12, 0.2, 0.08, 0.08, 0.1, 0.04, 0.03]
BATCHES = 4  # different ones, taken in turn


# ---- the model


def make_config(model: str, layers: int | None = None) -> EveConfig:
    """The architecture that a name stands for, of another depth if ``layers`` says so."""
    text = DECODERS[model] | ({"num_hidden_layers": layers} if layers else {})
    patch_embedding = {"name": "eve_v1", "width": 1024 if model == "eve_7b" else 16}
    geometry = GEOMETRIES[model].to_dict()
    return EveConfig(text_config=LlamaConfig(**text).to_dict(), geometry=geometry, patch_embedding=patch_embedding)


def make_model(config: EveConfig, dtype: torch.dtype, device: str) -> EveForConditionalGeneration:
    """Random weights, made where they stay and in the type that they keep: a model of 7B takes seconds."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return EveForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


def build(options: argparse.Namespace, stage: Stage) -> tuple[EveForConditionalGeneration, torch.optim.Optimizer]:
    """Random weights, frozen and trained as in the stage."""
    dtype = getattr(torch, options.dtype)
    model = make_model(make_config(options.model, options.layers), dtype, options.device)
    if options.teacher:
        with torch.device(options.device):
            vision = CLIPVisionModel(CLIPVisionConfig(**TEACHERS[options.model])).to(dtype)
            model.attach_teacher(FrozenTeacher(vision))
    model.train().language_model.set_attn_implementation(options.attention)
    if options.checkpointing:
        model.recompute_blocks()
    if options.compile:
        for layer in model.get_decoder().layers:  # equal layers share what is compiled for the first
            layer.compile(backend=options.backend)
    return model, build_optimizer({"name": options.optimizer}, trained_parameters(model, stage.apply(model)))


# ---- the data


def make_batches(options: argparse.Namespace, vocab_size: int) -> list[dict[str, Any]]:
    """Packed rows of noise: photos of common shapes, with captions (supervised) or conversations (their answers are)."""
    rng = np.random.default_rng(options.seed)
    geometry, limit = GEOMETRIES[options.model], MAX_TOKENS[options.model]
    scale = 1 if options.model == "eve_7b" else 0.2
    count = 8 * options.rows * BATCHES + 20_000  # so many are packed with some 1 % of padding, as in an epoch; most stay away
    grids = np.array([geometry.patch_grids(*PHOTOS[i])[0] for i in rng.choice(len(PHOTOS), count, p=SHARES)])
    slots = geometry.num_tokens_of_grid(grids)
    captions = options.stage != "finetune"
    # Recaptioned photos have some 90 tokens; conversations several hundred, of which two thirds are answers.
    median, spread = (4.3, 0.6) if captions else (5.6, 0.7)
    words = (rng.lognormal(median, spread, count) * scale).astype(int) + 4
    words = np.minimum(words, limit - slots)
    questions = np.zeros_like(words) if captions else words // 3
    row_of = pack(slots + words, limit)
    side = TEACHERS[options.model]["image_size"]
    collate = Collate(limit, 0, geometry.patch_dim, vocab_size, side if options.teacher else None)
    chosen = rng.permutation(row_of.max() + 1)[: options.rows * BATCHES]  # rows come from the packing longest first
    make = lambda i: _sample(rng, geometry, vocab_size, side, grids[i], words[i], questions[i])  # noqa: E731
    rows = [[make(i) for i in np.flatnonzero(row_of == row)] for row in chosen]
    batches = [_pinned(collate(rows[i::BATCHES]), options.device) for i in range(BATCHES)]
    if options.compile:  # the same bound for all: what is compiled is told apart by it
        batches = [batch | {"max_seqlen": limit} for batch in batches]
    return batches


def _sample(
    rng: np.random.Generator,
    geometry: ImageGeometry,
    vocab_size: int,
    side: int,
    grid: np.ndarray,
    words: int,
    questions: int,
) -> dict[str, Any]:
    slots = int(geometry.num_tokens_of_grid(grid))
    image = torch.full((slots,), vocab_size)  # EVE's image token: the first id behind the vocabulary
    text = torch.from_numpy(rng.integers(3, vocab_size, words))
    silent = torch.full((slots + questions,), -100)
    noise = lambda *size: torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8))  # noqa: E731
    return {
        "input_ids": torch.cat([image, text]),
        "labels": torch.cat([silent, text[questions:]]),
        "pixel_values": noise(int(grid.prod()), geometry.patch_dim),
        "image_grid_hw": torch.from_numpy(grid)[None],
        "image_seeds": torch.zeros(1, dtype=torch.long),
        "teacher_pixel_values": noise(1, 3, side, side),
        "key": "noise",
        "shard": "noise",
    }


def _pinned(batch: dict[str, Any], device: str) -> dict[str, Any]:
    pin = device.startswith("cuda")
    return {key: x.pin_memory() if pin and isinstance(x, Tensor) else x for key, x in batch.items()}


# ---- the measurement


def step(
    model: EveForConditionalGeneration, optimizer: torch.optim.Optimizer, batch: dict[str, Any], device: str
) -> tuple[float, float]:
    """One whole step, the way of the batch to the device included: (seconds, loss)."""
    _synchronize(device)
    start = time.perf_counter()
    loss = _step(model, optimizer, batch, device)
    _synchronize(device)
    return time.perf_counter() - start, loss.item()


def _step(model: EveForConditionalGeneration, optimizer: torch.optim.Optimizer, batch: dict[str, Any], device: str) -> Tensor:
    inputs = model_inputs(batch)
    inputs = {key: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for key, x in inputs.items()}
    torch._dynamo.mark_dynamic(inputs["cu_seqlens"], 0)  # each batch has another number of samples
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def waits(
    model: EveForConditionalGeneration, optimizer: torch.optim.Optimizer, batch: dict[str, Any], device: str
) -> list[str] | None:
    """Where the host waits for the GPU in a step; None without a GPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _step(model, optimizer, batch, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)})


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def planned_memory(options: argparse.Namespace, batches: list[dict[str, Any]], layers: int | None) -> dict[str, float]:
    """What ``lit-eve plan`` would say of these batches, by kind, in 10^9 bytes."""
    dtype, stage = getattr(torch, options.dtype), get_stage(options.stage)
    teacher = CLIPVisionConfig(**TEACHERS[options.model]) if options.teacher else None
    model = meta_model(make_config(options.model, layers), teacher).to(dtype)
    stage.apply(model)
    if options.attention in ALL_ATTENTION_FUNCTIONS and options.attention.startswith("packed"):
        model.language_model.set_attn_implementation(options.attention)
    heaviest = max(batches, key=lambda batch: len(batch["pixel_values"]))
    inputs = {key: x.to("meta") if isinstance(x, Tensor) else x for key, x in model_inputs(heaviest).items()}
    step = measure_memory(model, inputs, options.checkpointing)
    memory = Holdings(model, {"name": options.optimizer}).memory(Layout(1, False, 1, dtype, dtype), step)
    kinds = {key: size / 1e9 for key, size in asdict(memory).items() if isinstance(size, int)}
    return kinds | {"total": memory.total / 1e9, "without_reserved": (memory.total - RESERVED) / 1e9}


def fitting_layers(options: argparse.Namespace, batches: list[dict[str, Any]]) -> int:
    """The deepest decoder, in steps of four layers, that a GPU has memory for; the whole one without a GPU."""
    most = DECODERS[options.model]["num_hidden_layers"]
    if not options.device.startswith("cuda"):
        return most
    four, eight = (planned_memory(options, batches, layers)["total"] for layers in (4, 8))
    room = torch.cuda.mem_get_info()[0] / 1e9
    return min(most, max(4, 4 + 4 * int((room - four) / (eight - four))))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    stage = get_stage(options.stage)
    batches = make_batches(options, DECODERS[options.model]["vocab_size"])
    if options.layers == "fit":
        options.layers = fitting_layers(options, batches)
    planned = planned_memory(options, batches, options.layers)
    start = time.perf_counter()
    model, optimizer = build(options, stage)
    _synchronize(options.device)
    build_seconds = time.perf_counter() - start
    torch._dynamo.utils.counters.clear()
    numbers = range(options.warmup + options.steps)
    bar = track(numbers, "steps", console=Console(stderr=True), disable=options.quiet)
    times, losses = zip(*(step(model, optimizer, batches[i % BATCHES], options.device) for i in bar), strict=True)
    compiled = torch._dynamo.utils.counters

    teacher = model.teacher.backbone.config if options.teacher else None
    loads = [Workload.of_batch(batch) for batch in batches]
    flops = [training_flops(model.config, load, stage, teacher) for load in loads]
    measured = [(seconds, i % BATCHES) for i, seconds in enumerate(times)][options.warmup :]

    def per_second(amount: Callable[[int], float]) -> list[float]:
        return [amount(batch) / seconds for seconds, batch in measured]

    speeds = per_second(lambda batch: loads[batch].num_tokens)
    speed, arithmetic = statistics.median(speeds), statistics.median(per_second(lambda batch: total_flops(flops[batch])))
    everything = sum(map(total_flops, flops))
    tokens = sum(load.num_tokens for load in loads)
    gpu = options.device.startswith("cuda")
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    peak = (
        options.peak_tflops * 1e12 if options.peak_tflops else peak_flops(name) if gpu and options.dtype == "bfloat16" else None
    )
    memory = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": name,
        "torch": torch.__version__,
        "commit": _commit(),
        "settings": vars(options) | {"output": None if options.output is None else str(options.output)},
        "step_seconds": [round(seconds, 4) for seconds, _ in measured],
        "median_step_seconds": statistics.median(seconds for seconds, _ in measured),
        "tokens_per_second": speed,
        "spread": [min(speeds) / speed, max(speeds) / speed],
        "images_per_second": statistics.median(per_second(lambda batch: loads[batch].num_images)),
        "padding": 1 - tokens / (BATCHES * options.rows * MAX_TOKENS[options.model]),
        "flops_per_token": everything / tokens,
        "flops_share": {part: sum(batch[part].total for batch in flops) / everything for part in flops[0]},
        "tflops_per_second": arithmetic / 1e12,
        "peak_tflops": peak and peak / 1e12,
        "mfu": peak and arithmetic / peak,
        "peak_memory_gb": memory / 1e9,
        "reserved_memory_gb": torch.cuda.max_memory_reserved() / 1e9 if gpu else None,
        "planned_memory_gb": planned,
        "waits": waits(model, optimizer, batches[0], options.device),
        "build_seconds": round(build_seconds, 2),
        "first_step_seconds": round(times[0], 2),
        "compiled_graphs": compiled["stats"]["unique_graphs"],
        "graph_breaks": sum(compiled["graph_break"].values()),
        "last_loss": losses[-1],
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # a bare machine has no git
        return None
    return run.stdout.strip() or None


def _layers(text: str) -> int | str:
    return text if text == "fit" else int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=DECODERS, default="eve_7b")
    parser.add_argument("--stage", choices=STAGES, default="prealign")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--layers", type=_layers, help="depth of the decoder, or fit: what the GPU has room for; default: all")
    parser.add_argument("--rows", type=int, default=4, help="packed rows of a step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5, help="steps before, which are not counted")
    parser.add_argument("--attention", default="packed", help="packed, packed_varlen, packed_sdpa, flash_attention_2, ...")
    parser.add_argument("--checkpointing", action="store_true", help="recompute the decoder's layers in the backward pass")
    parser.add_argument("--compile", action="store_true", help="torch.compile the decoder's layers")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--teacher", action=argparse.BooleanOptionalAction, default=True, help="the alignment loss")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak-tflops", type=float, help="what the device can do; default: by its name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    for name in ("rows", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        result = measure(options)
    except (ImportError, LitEveError) as error:
        raise SystemExit(f"--attention {options.attention}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise SystemExit(f"out of memory: take fewer --rows or --layers, or --checkpointing ({error})") from error
    text = json.dumps(result, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
