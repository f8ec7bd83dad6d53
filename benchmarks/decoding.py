"""How fast answers are written, with a KV cache, greedily and with random weights; prints JSON.

    python benchmarks/decoding.py --batch 1 16 64 --output decoding.json

Every prompt is one photo and a question. ``tokens_per_second`` are the tokens written after the first one, all rows of the
batch together; ``prefill_seconds`` is the time to the first token. ``weights_gb_per_second`` is how fast the weights are read,
once per token: at batch 1 the memory's bandwidth is its limit.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_step import DECODERS, make_config, make_model

from lit_eve.models import EveForConditionalGeneration


def prompts(model: EveForConditionalGeneration, count: int, words: int, device: str) -> dict[str, Tensor]:
    """``count`` prompts of a photo of 4 : 3 in the middle of ``words`` random tokens."""
    geometry, generator = model.geometry, torch.Generator().manual_seed(0)
    grid = torch.tensor(geometry.patch_grids(4, 3)).expand(count, 2)
    slots = int(geometry.num_tokens_of_grid(grid[:1])[0])
    text = torch.randint(3, model.config.text_config.vocab_size, (count, words), generator=generator)
    image = torch.full((count, slots), model.config.image_token_id)
    ids = torch.cat([text[:, : words // 2], image, text[:, words // 2 :]], dim=1)  # (B, T)
    pixels = torch.randint(0, 256, (int(grid.prod(1).sum()), geometry.patch_dim), generator=generator, dtype=torch.uint8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_grid_hw": grid}
    return {key: value.to(device) for key, value in batch.items()}


def seconds(model: EveForConditionalGeneration, batch: dict[str, Tensor], tokens: int, device: str) -> float:
    """Time to write so many tokens in every row."""
    _synchronize(device)
    start = time.perf_counter()
    out = model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    _synchronize(device)
    assert out.shape[1] == batch["input_ids"].shape[1] + tokens
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, options.dtype)
    model = make_model(make_config(options.model), dtype, options.device).eval()
    gpu = options.device.startswith("cuda")
    size = sum(parameter.nbytes for parameter in model.parameters())
    rows = []
    for count in options.batch:
        batch = prompts(model, count, options.words, options.device)
        seconds(model, batch, 2, options.device)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        first = seconds(model, batch, 1, options.device)
        rest = seconds(model, batch, options.tokens, options.device) - first
        steps = options.tokens - 1
        rows.append(
            {
                "batch": count,
                "prompt_tokens": batch["input_ids"].shape[1],
                "prefill_seconds": first,
                "tokens_per_second": count * steps / rest,
                "milliseconds_per_step": 1e3 * rest / steps,
                "weights_gb_per_second": size * steps / rest / 1e9,
                "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else None,
            }
        )
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "settings": vars(options) | {"output": None if options.output is None else str(options.output)},
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=DECODERS, default="eve_7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=65, help="written in every row")
    parser.add_argument("--words", type=int, default=64, help="tokens of text in a prompt")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(arguments)
    if options.tokens < 2:
        parser.error("--tokens must be at least 2")
    text = json.dumps(measure(options), indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
