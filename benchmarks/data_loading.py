"""How fast data is indexed, planned and loaded; prints JSON.

    python benchmarks/data_loading.py                      # photos of 640 x 480 at EVE-7B's geometry, a plan of 33M samples
    python benchmarks/data_loading.py --image-size 64 --patch-size 4 --photo 48 36 --samples 5000

``plan_seconds`` is what every rank needs once per epoch. ``samples_per_second`` is reading, decoding, resizing, patches and
tokens, for ``--workers`` processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoTokenizer

from lit_eve.data import EveDataModule, ShardWriter
from lit_eve.data.lengths import prepare_shards
from lit_eve.data.plan import plan_epoch
from lit_eve.data.shards.index import ensure_indices
from lit_eve.data.shards.paths import list_shards
from lit_eve.processing import EveProcessor, EveV1Geometry, TeacherGrid

TOKENIZER = Path(__file__).parents[1] / "tests" / "data" / "eve_v1" / "tokenizer"


def caption_lengths(count: int) -> np.ndarray:
    """Tokens of captioned photos of common shapes at S = 672."""
    rng = np.random.default_rng(0)
    images = rng.choice(np.array([601, 451, 401, 551, 501, 351], np.int32), count, p=[0.15, 0.35, 0.2, 0.1, 0.1, 0.1])
    return np.minimum(images + rng.lognormal(4.3, 0.6, count).astype(np.int32), 2048)


def measure_plan(count: int, window: int | None) -> dict[str, float]:
    lengths = caption_lengths(count)
    start = time.perf_counter()
    plan = plan_epoch(lengths, 2048, shuffle_window=window)
    seconds = time.perf_counter() - start
    return {"samples": count, "window": window, "seconds": round(seconds, 2), "padding": round(plan.padding(lengths, 2048), 4)}


def make_shards(folder: Path, count: int, photo: tuple[int, int]) -> None:
    """Smooth made-up photos, which cost a decoder about what real ones do."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(16):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(photo, Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
        files.append(buffer.getvalue())
    with ShardWriter(folder, samples_per_shard=1000) as writer:
        for i in range(count):
            caption = " ".join(rng.choice(["a", "red", "circle", "under", "two", "blue", "squares"], 40))
            turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]
            writer.write({"id": f"{i:07d}", "conversations": turns}, [files[i % 16]])


def measure_loader(options: argparse.Namespace) -> dict[str, float]:
    teacher = TeacherGrid(options.teacher_size, options.teacher_patch_size)
    geometry = EveV1Geometry(options.patch_size, image_size=options.image_size, cells=teacher.side)
    processor = EveProcessor(AutoTokenizer.from_pretrained(TOKENIZER), geometry)
    result: dict[str, float] = {"workers": options.workers, "samples": options.samples}
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        make_shards(Path(name), options.samples, tuple(options.photo))
        written = time.perf_counter()
        ensure_indices(list_shards(name))
        indexed = time.perf_counter()
        prepare_shards([name], processor, "plain")
        counted = time.perf_counter()
        data = EveDataModule(train=name, template="plain", rows=4, num_workers=options.workers)
        data.attach(processor, teacher_grid=teacher if options.teacher else None).setup()
        loader = data.train_dataloader()
        begun = time.perf_counter()
        samples = sum(len(batch["sample_ids"]) for batch in loader)
        seconds = time.perf_counter() - begun
    result["write_samples_per_second"] = round(options.samples / (written - start))
    result["index_samples_per_second"] = round(options.samples / (indexed - written))
    result["count_samples_per_second"] = round(options.samples / (counted - indexed))
    result["samples_per_second"] = round(samples / seconds, 1)
    result["padding"] = round(loader.plan.padding(loader.table.length, 2048), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=int, default=33_000_000, help="samples of the plan; 0 leaves it out")
    parser.add_argument("--window", type=int, default=None, help="shuffle_window of the plan")
    parser.add_argument("--samples", type=int, default=1000, help="samples to write and load; 0 leaves it out")
    parser.add_argument("--photo", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--image-size", type=int, default=672)
    parser.add_argument("--patch-size", type=int, default=14)
    parser.add_argument("--teacher-size", type=int, default=336)
    parser.add_argument("--teacher-patch-size", type=int, default=14)
    parser.add_argument("--teacher", action="store_true", help="also make the teacher's pixels")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    result = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", "load": os.getloadavg()[0]}
    if options.plan:
        result["plan"] = measure_plan(options.plan, options.window)
    if options.samples:
        result["loader"] = measure_loader(options)
    result["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
