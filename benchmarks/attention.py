"""How right and how fast the attentions for packed rows are, forward and backward; prints JSON.

    python benchmarks/attention.py --output attention.json

Each is compared with SDPA in float32, sample by sample, by |got - expected| / |expected|; the same of SDPA in the type itself
stands beside it (``plain``). Times are medians. Exits with 1 if one is further off than its type allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_eve.errors import LitEveError
from lit_eve.models import PACKED, PACKED_SDPA, PACKED_VARLEN
from lit_eve.models.attention import PackedRows, packed_attention, packed_rows

SAMPLES = "samples"  # the kernel that is the reference
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}  # of the output; twice as much of gradients


@dataclass(frozen=True)
class Case:
    """Heads of queries and of keys, width of a head, rows and their length, tokens of a typical sample, window."""

    heads: int
    key_heads: int
    width: int
    rows: int
    length: int
    sample: int
    window: int | None = None

    def boundaries(self) -> Tensor:
        """(S + 1,) int32: samples of half to one and a half times the typical length; each row ends with a tail of padding."""
        generator, ends = torch.Generator().manual_seed(0), [0]
        for row in range(self.rows):
            at, end = row * self.length, (row + 1) * self.length
            while at < end:
                size = int(torch.randint(max(1, self.sample // 2), self.sample * 3 // 2 + 1, (), generator=generator))
                at = min(end, at + size)
                ends.append(at)
        return torch.tensor(ends, dtype=torch.int32)


CASES = {
    "EVE-7B": Case(32, 32, 128, 4, 2048, 600),
    "EVE-7B, HD": Case(32, 32, 128, 2, 4096, 2000),
    "Qwen2.5-7B": Case(28, 4, 128, 4, 2048, 600),
    "Llama-3.1-8B": Case(32, 8, 128, 4, 2048, 600),
    "SmolLM2-360M": Case(15, 5, 64, 4, 2048, 600),
    "a window of 256": Case(32, 8, 128, 4, 2048, 900, window=256),
    "one sample a row": Case(32, 32, 128, 2, 4096, 8192),
    "samples of some 20 tokens": Case(32, 8, 128, 4, 2048, 20),
}
TINY = {"groups": Case(4, 2, 16, 2, 48, 12), "a window of 5": Case(4, 4, 8, 2, 48, 20, window=5)}


def make_attention(name: str, case: Case, cu_seqlens: Tensor) -> tuple[Callable[..., Tensor], str]:
    """A function of queries, keys and values (B, h, T, d) that gives (B, T, h, d), and the kernel that it would like best."""
    longest = int(cu_seqlens.diff().max())
    if name == SAMPLES:
        packed = PackedRows(cu_seqlens, longest, case.rows, case.length, name)
    else:
        packed = packed_rows(name, cu_seqlens, longest, case.rows, case.length)[1]["packed"]
    groups = case.heads // case.key_heads
    module = SimpleNamespace(num_key_value_groups=groups, config=SimpleNamespace(_attn_implementation=name))
    return lambda *inputs: packed_attention(module, *inputs, None, packed, sliding_window=case.window)[0], packed.kernel


def with_gradients(attention: Callable[..., Tensor], inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values."""
    out = attention(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight.to(out.dtype))]


def errors(got: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """|got - expected| / |expected| of each pair."""
    return [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


def milliseconds(function: Callable[[], Any], device: str, repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats + 2):
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare(label: str, case: Case, dtype: torch.dtype, names: Sequence[str], device: str, repeats: int) -> list[dict]:
    """A row of the result for each attention."""
    generator = torch.Generator(device).manual_seed(1)
    draw = lambda *size: torch.randn(size, generator=generator, device=device)  # noqa: E731
    sizes = [(case.rows, heads, case.length, case.width) for heads in (case.heads, case.key_heads, case.key_heads)]
    # As projections leave them: (B, T, h, d) in memory.
    inputs = [draw(b, t, h, d).transpose(1, 2).to(dtype).requires_grad_() for b, h, t, d in sizes]
    weight = draw(case.rows, case.length, case.heads, case.width).to(dtype)
    cu_seqlens = case.boundaries().to(device)
    samples, _ = make_attention(SAMPLES, case, cu_seqlens)
    with sdpa_kernel(SDPBackend.MATH):
        exact = [x.detach().float().requires_grad_() for x in inputs]
        expected = with_gradients(samples, exact, weight.float())
    plain = errors(with_gradients(samples, inputs, weight), expected)
    rows = []
    for name in names:
        row: dict[str, Any] = {"case": label, "dtype": str(dtype).removeprefix("torch."), "attention": name}
        try:
            attention, row["kernel"] = make_attention(name, case, cu_seqlens)
            found = errors(with_gradients(attention, inputs, weight), expected)
        except LitEveError as refusal:
            rows.append(row | {"refused": str(refusal)})
            continue
        except Exception as error:  # one kernel that fails must not hide the others
            rows.append(row | {"failed": f"{type(error).__name__}: {error}"[:500], "right": False})
            continue
        limits = [TOLERANCE[dtype], *[2 * TOLERANCE[dtype]] * 3]
        with torch.no_grad():
            forward = milliseconds(partial(attention, *inputs), device, repeats)
        both = milliseconds(partial(with_gradients, attention, inputs, weight), device, repeats)
        rows.append(
            row
            | {
                "error": dict(zip(("output", "queries", "keys", "values"), found, strict=True)),
                "plain": dict(zip(("output", "queries", "keys", "values"), plain, strict=True)),
                "right": all(error < limit for error, limit in zip(found, limits, strict=True)),
                "forward_ms": forward,
                "both_ms": both,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", nargs="+", default=[PACKED, PACKED_VARLEN, PACKED_SDPA])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small cases, for tests")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    options = parser.parse_args(arguments)
    cases = TINY if options.tiny else CASES
    rows = []
    for label, case in cases.items():
        # The varlen kernels know half precision only; float16 and float32 are tried where they are most likely to differ.
        more = [torch.float16, torch.float32] if label in ("Qwen2.5-7B", "a window of 256") or options.tiny else []
        for dtype in (torch.bfloat16, *more):
            rows += compare(label, case, dtype, options.attention, options.device, options.repeats)
    text = json.dumps({"rows": rows}, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(text)
    if wrong := [row for row in rows if row.get("right") is False]:
        raise SystemExit("\n".join(f"wrong: {json.dumps(row)}" for row in wrong))


if __name__ == "__main__":
    main()
