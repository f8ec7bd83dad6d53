"""Annotation files with images, good and bad, and what became of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from made_shards import photo, record

from lit_eve.data import ShardReader
from lit_eve.data.annotations import open_annotations
from lit_eve.data.pack import PackJob
from lit_eve.data.shards.index import index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.processing.sample import Sample

BAD = {  # what is wrong -> the reason in the report
    "missing": "there is no such image file",
    "no image": "the image cannot be opened",
    "no conversation": "no conversation",
    "role": "unknown role 'robot'",
    "count": "2 places for images (<image>), but there are 1 images",
    "no answer": "has no answer",
    "text": "is no object, but int",
}


def make_files(folder: Path, count: int, bad: bool = True) -> list[Any]:
    """Annotations ``a.json`` of LLaVA's kind with their images; every tenth record cannot be used. Gives all records."""
    rng = np.random.default_rng(count)
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "no_image.jpg").write_text("hello")
    records: list[Any] = []
    for number in range(count):
        images = int(rng.choice([0, 1, 1, 1, 2]))
        one = record(rng, number, images)
        names = [f"coco/train2017/{number}_{i}.jpg" for i in range(images)]
        for name in names:
            (folder / name).write_bytes(photo(rng, 16, 16))
        if names:
            one["image"] = names[0] if images == 1 else names
        records.append(spoil(one, list(BAD)[number // 10 % len(BAD)]) if bad and number % 10 == 9 else one)
    (folder / "a.json").write_text(json.dumps(records))
    return records


def spoil(one: dict[str, Any], how: str) -> Any:
    about = lambda text: [{"from": "human", "value": text}, {"from": "gpt", "value": "A cat."}]  # noqa: E731
    return {
        "missing": {"id": one["id"], "image": "coco/gone.jpg", "conversations": about("<image>")},
        "no image": {"id": one["id"], "image": "coco/no_image.jpg", "conversations": about("<image>")},
        "no conversation": {"id": one["id"]},
        "role": {"id": one["id"], "conversations": [{"from": "robot", "value": "Hi"}]},
        "count": {"id": one["id"], "image": "coco/gone.jpg", "conversations": about("<image><image>")},
        "no answer": {"id": one["id"], "conversations": about("Hi")[:1]},
        "text": 5,
    }[how]


def job_of(folder: Path, output: str = "out", **settings: Any) -> PackJob:
    settings = {"samples_per_shard": 16} | settings
    return PackJob(open_annotations(folder / "a.json"), folder / output, folder, **settings)


def samples_of(output: Path) -> list[Sample]:
    samples = []
    for path in list_shards(output):
        index, reader = index_shard(path), ShardReader([path])
        samples += [reader.read(0, int(index.offset[i]), int(index.size[i])) for i in range(len(index))]
    return samples


def report_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text("utf-8").split("\n")[:-1]]


def contents_of(output: Path) -> dict[str, Any]:
    """Everything in a folder of shards; of the index, its arrays without the tar's time of change."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        if path.suffix == ".npz":
            with np.load(path) as file:
                found[str(path.relative_to(output))] = {key: file[key].tolist() for key in file.files if key != "state"}
        elif path.name != "settings.json":
            found[str(path.relative_to(output))] = path.read_bytes()
    return found


def in_process(work: Callable[[], Any]) -> multiprocessing.Process:
    """A real process that does this; its exit code is what the work gives."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(int(work() or 0)))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def notes_in(output: Path) -> int:
    return len(list((output / ".pack").glob("[0-9]*.json")))
