"""Runs what needs a GPU, part by part, and writes one JSON and one table. Start it with benchmarks/gpu.sh, which says more.

Each part is a process with a time limit of its own; one that fails leaves its last lines in the JSON, and the next one starts.
Parts come in the order of their importance; what the time budget has no room for is listed as skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "gpu"  # logs and results of the parts
RESULTS = ROOT / "benchmarks" / "results"
LEAST = 20  # seconds: a part is not started with less
LAST_LINES = 25

DEVICE = """
import importlib.metadata, importlib.util, json, platform, sys, torch
here = torch.cuda.is_available()
found = {"device": torch.cuda.get_device_name() if here else None, "python": platform.python_version()}
for name in ("torch", "transformers", "lightning", "triton", "flash-attn"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
if here:
    properties = torch.cuda.get_device_properties(0)
    found |= {"capability": list(torch.cuda.get_device_capability()), "memory_gb": properties.total_memory / 1e9}
    found |= {"cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count}

    def milliseconds(function):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(13):
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times[3:])[5]

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["matmul_tflops"] = 2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9
    x = torch.empty(2**31, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    found["copy_tb_per_second"] = 2 * x.nbytes / milliseconds(lambda: y.copy_(x)) / 1e9
print(json.dumps(found))
open(sys.argv[1], "w").write(json.dumps(found))
"""


@dataclass(frozen=True)
class Part:
    """One process.

    Args:
        name: of its files.
        command: arguments of Python.
        limit: seconds.
        read: of the file that it leaves, what goes into the JSON.
    """

    name: str
    command: list[str]
    limit: float
    read: Callable[[Path], Any]

    @property
    def output(self) -> Path:
        """Where the process writes its result."""
        return WORK / f"{self.name}.out"


def parts(device: str, tiny: bool, flash: bool) -> Iterator[Part]:
    """All but the first, which asks for the device; in the order of importance."""

    patience = 10 if device == "cpu" else 1  # a rehearsal may share its cores

    def part(name: str, limit: float, *command: str) -> Part:
        limit *= patience
        return Part(name, [*command, "--device", device, "--output", str(WORK / f"{name}.out")], limit, _read_json)

    def step(name: str, *options: str, limit: float = 90) -> Part:
        size = (
            ["--model", "tiny", "--rows", "2", "--steps", "2", "--warmup", "1"] if tiny else ["--steps", "8", "--warmup", "5"]
        )
        if tiny and "--compile" in options:
            options = (*options, "--backend", "aot_eager")
        return part(name, limit, "benchmarks/train_step.py", *size, *options, "--quiet")

    prealign = ["--stage", "prealign"]
    pretrain = ["--stage", "pretrain", "--checkpointing", "--layers", "fit"]
    varlen = ["--attention", "packed" if tiny else "packed_varlen"]
    tests = WORK / "tests.out"
    pytest = ["-m", "pytest", "-m", "gpu", "-v", "--timeout=100", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    files = files_with_gpu_tests()
    if not tiny:  # a file per process
        pytest += ["--numprocesses", str(len(files)), "--dist", "loadfile"]
    yield Part("tests", [*pytest, f"--junitxml={tests}", *files], 170 * patience, _read_tests)
    yield part("attention", 60, "benchmarks/attention.py", *(["--tiny", "--repeats", "1"] if tiny else []))
    yield step("prealign", *prealign, *varlen)
    yield step("pretrain", *pretrain, *varlen)
    small = ["--model", "tiny", "--tokens", "3", "--batch", "1", "2"] if tiny else []
    yield part("decoding", 60, "benchmarks/decoding.py", *small)
    yield step("prealign_compiled", *prealign, *varlen, "--compile", limit=110)
    yield step("pretrain_compiled", *pretrain, *varlen, "--compile", limit=110)
    if flash:
        yield step("prealign_flash_attn", *prealign, "--attention", "packed")
        yield step("prealign_flash_attention_2", *prealign, "--attention", "flash_attention_2")
    yield step("prealign_sdpa", *prealign, "--attention", "packed_sdpa")
    yield step("finetune", "--stage", "finetune", *pretrain[2:], *varlen)


def files_with_gpu_tests() -> list[str]:
    """Only these are collected: the others need packages that a bare machine lacks."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _read_tests(path: Path) -> dict[str, Any]:
    """Counts, what failed with its first lines, and the numbers that tests recorded."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed, numbers, slowest = {}, {}, {}
    for case in suite.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        for bad in (*case.findall("failure"), *case.findall("error")):
            failed[name] = (bad.get("message") or "")[:600]
        if recorded := {one.get("name"): _number(one.get("value")) for one in case.iter("property")}:
            numbers[name] = recorded
        slowest[name] = float(case.get("time", 0))
    longest = sorted(slowest, key=slowest.get, reverse=True)[:5]
    return counts | {"failed": failed, "numbers": numbers, "slowest": {name: slowest[name] for name in longest}}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Start a part, wait for it, end it and all that it started when its time or ``seconds`` are over."""
    part.output.unlink(missing_ok=True)
    limit, start = min(part.limit, seconds), time.perf_counter()
    log = WORK / f"{part.name}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    entry: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    try:
        entry["result"] = part.read(part.output)
    except (OSError, ValueError, AttributeError, ElementTree.ParseError):
        entry["result"] = None
    if code == 0 and entry["result"] is not None:
        return {"status": "ok"} | entry
    lines = log.read_text(errors="replace").splitlines()
    status = f"ended after its limit of {limit:.0f} s" if code is None else f"failed with exit code {code}"
    return {"status": status} | entry | {"last_lines": lines[-LAST_LINES:]}


# ---- the table


def table(report: dict[str, Any]) -> str:
    """Markdown of a report."""
    found, results = report["machine"], report["parts"]
    device = found["device"] or "no GPU"
    lines = [f"# {device}", "", f"torch {found['torch']}, transformers {found['transformers']}, commit {report['commit']}", ""]
    if "matmul_tflops" in found:
        lines += [f"{found['matmul_tflops']:.0f} TFLOP/s in a bfloat16 product of 8192 x 8192, ", ""]
        lines[-2] += f"{found['copy_tb_per_second']:.2f} TB/s in a copy (read and written)."
    lines += ["| part | | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {_summary(one)} | {one.get('seconds', '')} |" for name, one in results.items()]
    if steps := {name: one["result"] for name, one in results.items() if "median_step_seconds" in (one.get("result") or {})}:
        lines += [
            "",
            "| training step | layers | tokens/s | images/s | MFU | peak GB | planned GB | first step s | graphs | waits |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        lines += [_step_row(name, result) for name, result in steps.items()]
    if decoding := (results.get("decoding", {}).get("result") or {}).get("rows"):
        lines += [
            "",
            "| decoding, batch | tokens/s | ms per step | prefill s | weights GB/s | peak GB |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['batch']} | {row['tokens_per_second']:.0f} | {row['milliseconds_per_step']:.1f} "
            f"| {row['prefill_seconds']:.3f} | {row['weights_gb_per_second']:.0f} | {_gb(row['peak_memory_gb'])} |"
            for row in decoding
        ]
    if kernels := (results.get("attention", {}).get("result") or {}).get("rows"):
        lines += ["", "| attention | type | asked for | kernel | forward ms | both ms | error | of plain SDPA | right |"]
        lines += ["|---|---|---|---|---|---|---|---|---|", *map(_kernel_row, kernels)]
    return "\n".join(lines) + "\n"


def _summary(part: dict[str, Any]) -> str:
    result = part.get("result") or {}
    if "failures" in result:
        bad = result["failures"] + result["errors"]
        return (
            f"{result['tests'] - bad - result['skipped']} passed, {bad} failed, {result['skipped']} skipped; {part['status']}"
        )
    return part["status"]


def _step_row(name: str, result: dict[str, Any]) -> str:
    mfu = "" if result["mfu"] is None else f"{result['mfu']:.1%}"
    waits = "" if result["waits"] is None else len(result["waits"])
    return (
        f"| {name} | {result['settings']['layers'] or 'all'} | {result['tokens_per_second']:.0f} "
        f"| {result['images_per_second']:.1f} | {mfu} | {result['peak_memory_gb']:.1f} "
        f"| {result['planned_memory_gb']['without_reserved']:.1f} | {result['first_step_seconds']} "
        f"| {result['compiled_graphs']} | {waits} |"
    )


def _kernel_row(row: dict[str, Any]) -> str:
    start = f"| {row['case']} | {row['dtype']} | {row['attention']} | {row.get('kernel', '')} |"
    if "error" not in row:
        return f"{start} | | | | {'refused' if 'refused' in row else 'FAILED'} |"
    worst, plain = (max(row[key].values()) for key in ("error", "plain"))
    numbers = f"{row['forward_ms']:.2f} | {row['both_ms']:.2f} | {worst:.1e} | {plain:.1e}"
    return f"{start} {numbers} | {'yes' if row['right'] else 'NO'} |"


def _gb(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


# ---- all of it


def write(report: dict[str, Any], folder: Path) -> None:
    """The JSON and the table, now and after each part: what was measured survives an end from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "_", (report["machine"]["device"] or "rehearsal").lower()).strip("_")
    files = {folder / f"gpu_{name}.json": json.dumps(report, indent=1) + "\n", folder / f"gpu_{name}.md": table(report)}
    for path, text in files.items():
        path.write_text(text)
    if out := os.environ.get("OUT"):
        for path in files:
            shutil.copy(path, out)
        logs = [f"==== {log.stem}\n{log.read_text(errors='replace')[-200_000:]}" for log in sorted(WORK.glob("*.log"))]
        Path(out, "gpu_logs.txt").write_text("\n".join(logs))


def _commit() -> str | None:
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # a bare machine has no git
        return None
    return run.stdout.strip() or None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="for all parts together (%(default)g)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)  # cpu: a rehearsal
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    first = Part("device", ["-c", DEVICE, str(WORK / "device.out")], 120, _read_json)
    asked = run(first, options.budget)
    if asked["result"] is None:
        raise SystemExit("\n".join(["torch could not be asked for the device:", *asked["last_lines"]]))
    machine = asked["result"]
    if options.device == "cuda" and machine["device"] is None:
        print("There is no GPU here, so nothing was measured.\n\n| part | | seconds |\n|---|---|---|")
        return
    report: dict[str, Any] = {"machine": machine, "commit": _commit(), "budget_seconds": options.budget}
    report |= {"date": time.strftime("%Y-%m-%d %H:%M"), "parts": {"device": asked}}
    for part in parts(options.device, options.tiny, flash=machine["flash-attn"] is not None):
        if options.only and part.name not in options.only:
            continue
        left = options.budget - (time.perf_counter() - start)
        report["parts"][part.name] = run(part, left) if left >= LEAST else {"status": "skipped: no time was left"}
        report["wall_seconds"] = round(time.perf_counter() - start, 1)
        write(report, options.results)
        print(f"{part.name}: {_summary(report['parts'][part.name])}", flush=True)
    print(f"\n{table(report)}")


if __name__ == "__main__":
    main()
