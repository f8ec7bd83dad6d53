"""Real shards with real images and a real tokenizer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoTokenizer

from lit_eve.data import ShardWriter
from lit_eve.processing import EveProcessor, EveV1Geometry, TeacherGrid

TOKENIZER = Path(__file__).parents[1] / "data" / "eve_v1" / "tokenizer"
GEOMETRY = EveV1Geometry(image_size=64, patch_size=4, pool_size=2, cells=8)
TEACHER = TeacherGrid(image_size=64, patch_size=8)
WORDS = ["a", "small", "red", "circle", "left", "of", "the", "large", "blue", "square", "under", "two", "yellow", "stars"]


def photo(rng: np.random.Generator, width: int | None = None, height: int | None = None, kind: str = "JPEG") -> bytes:
    """An image file of noise."""
    width, height = width or int(rng.integers(16, 80)), height or int(rng.integers(16, 80))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def record(rng: np.random.Generator, number: int, images: int = 1) -> dict:
    """A conversation of one to three turns about so many images."""
    conversation = []
    for turn in range(int(rng.integers(1, 4))):
        question = "<image>\n" * (images if turn == 0 else 0) + " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))
        answer = " ".join(rng.choice(WORDS, int(rng.integers(1, 16))))
        conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"s{number:05d}", "conversations": conversation}


def write_shards(folder: Path, count: int, first: int = 0, seed: int = 0, per_shard: int = 16) -> list[str]:
    """Shards of samples with mostly one image, some with none or two; gives their keys."""
    rng = np.random.default_rng((seed, first))
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        return [
            writer.write(record(rng, number, images), [photo(rng) for _ in range(images)])
            for number in range(first, first + count)
            for images in [int(rng.choice([0, 1, 1, 1, 1, 1, 2]))]
        ]


def make_processor() -> EveProcessor:
    return EveProcessor(AutoTokenizer.from_pretrained(TOKENIZER), GEOMETRY, template="vicuna_v1")
