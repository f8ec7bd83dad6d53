"""What images that see both ways cost on this device, beside images that are read like text; prints JSON.

    python benchmarks/image_attention.py --output image_attention.json

Rows of packed samples, each of words, images and words; the attention of one layer, forward and backward. ``segments`` is what
`packed` does on the CPU, ``sample masks`` is one SDPA per sample under a mask, ``row masks`` one SDPA under (B, 1, T, T).
Times are of the processor, on one thread, the medians of repeats in turn. ``pairs`` are queries and keys that see each other,
as a multiple of causal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from lit_eve.models import ImageAttention
from lit_eve.models.attention import ImageMask, PackedRows, number_images, packed_attention

# Words in front, tokens of each image, words behind; samples in a row, rows.
CASES = {
    "one image of 600": (20, [600], 80, 3, 1),
    "one image of 150": (20, [150], 430, 3, 1),
    "four images of 150": (20, [150] * 4, 80, 3, 1),
}
TINY = {"two images of 5": (2, [5, 5], 3, 2, 2)}
HEADS, KEY_HEADS, WIDTH = 8, 4, 64


class Everything(ImageAttention):
    """Bidirectional, for all that is known: it may hide something, and is computed under a mask."""

    def sees(self, query: object, key: object) -> Tensor:
        return torch.ones((), dtype=torch.bool)


def layout(front: int, images: Sequence[int], behind: int, samples: int, rows: int) -> tuple[Tensor, Tensor]:
    """(B, T) the image of each token, and (S + 1,) the boundaries of samples."""
    sample = torch.tensor([False] * front + [True] * sum(images) + [False] * behind)
    is_image = sample.repeat(samples).expand(rows, -1)
    cu_seqlens = torch.arange(rows * samples + 1, dtype=torch.int32) * len(sample)
    return number_images(is_image, torch.tensor(images).repeat(rows * samples), cu_seqlens), cu_seqlens


def compare(label: str, case: tuple, repeats: int) -> list[dict]:
    """A row of the result for each way."""
    numbers, cu_seqlens = layout(*case)
    rows, length = numbers.shape
    causal = PackedRows(cu_seqlens, length, rows, length, "samples")
    segments = replace(causal, images=ImageMask.of_packed(ImageAttention(), numbers, cu_seqlens), _masks={})
    ways = {
        "causal": causal,
        "segments": segments,
        "sample masks": replace(segments, images=ImageMask.of_packed(Everything(), numbers, cu_seqlens), _masks={}),
        "row masks": replace(segments, kernel="mask", _masks={}),
    }
    torch.manual_seed(0)
    inputs = [torch.randn(rows, heads, length, WIDTH, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, config=SimpleNamespace(_attn_implementation="packed"))
    times: dict[str, list[float]] = {name: [] for name in ways}
    outputs: dict[str, list[Tensor]] = {}
    for _ in range(repeats + 1):
        for name, packed in ways.items():  # in turn: what else runs here slows all of them
            start = time.process_time()
            out, _ = packed_attention(module, *inputs, None, packed)
            gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
            times[name].append(time.process_time() - start)
            outputs[name] = [out.detach(), *gradients]
    for name in ("sample masks", "row masks"):
        for found, expected in zip(outputs[name], outputs["segments"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    count = float(causal.mask().sum())
    return [
        {
            "case": label,
            "way": name,
            "pairs": round(float(packed.mask().sum()) / count, 2),
            "ms": round(statistics.median(times[name][1:]) * 1e3, 2),
        }
        for name, packed in ways.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small cases, for tests")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [row for label, case in (TINY if options.tiny else CASES).items() for row in compare(label, case, options.repeats)]
    text = json.dumps({"torch": torch.__version__, "rows": rows}, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
