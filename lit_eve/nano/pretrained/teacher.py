"""The miniature world's CLIP, trained contrastively on scenes and their captions: the teacher of the patch alignment."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from lit_eve.files import write_atomically
from lit_eve.nano.pretrained.fit import ADAMW, LitPretrained, train
from lit_eve.processing import CLIP_MEAN, CLIP_STD, EveV1Geometry, TeacherGrid
from lit_eve.training.optimizers import check_optimizer


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher and its training.

    Args:
        image_size, patch_size: of its square images, in pixels.
        width, layers, heads, feed_forward: size of the vision transformer; the text transformer has ``text_layers``.
        projection: width of the space that images and captions share.
        steps, batch, lr: length of the training, pairs per step, peak learning rate.
        optimizer: by name, with its arguments, as in {name: muon, weight_decay: 0.1}.
        seed: of the initial weights and of the order of the pairs.
        checkpoint_every: steps between checkpoints.
    """

    image_size: int = 64
    patch_size: int = 16
    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    text_layers: int = 1
    projection: int = 64
    steps: int = 300
    batch: int = 48
    lr: float = 1.5e-3
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(ADAMW))
    seed: int = 0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    def square(self, image: Image.Image) -> Tensor:
        """What this teacher sees of an image, (3, C, C) uint8: as large as a student of its own size would see it."""
        grid = TeacherGrid(self.image_size, self.patch_size)
        return grid.canvas(image, EveV1Geometry(self.patch_size, pool_size=1, image_size=self.image_size, cells=grid.side))


class LitTeacher(LitPretrained):
    """CLIP's symmetric contrastive loss over the pairs of a batch."""

    def __init__(self, settings: TeacherSettings, tokenizer: Any) -> None:
        super().__init__(settings, tokenizer)
        shape = {
            "hidden_size": settings.width,
            "intermediate_size": settings.feed_forward,
            "num_attention_heads": settings.heads,
            "projection_dim": settings.projection,
        }
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        text = {"num_hidden_layers": settings.text_layers, "vocab_size": len(tokenizer), "max_position_embeddings": 64, **ids}
        vision = {
            "num_hidden_layers": settings.layers,
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
        }
        self.model = CLIPModel(
            CLIPConfig(text_config=shape | text, vision_config=shape | vision, projection_dim=settings.projection)
        )
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)

    def forward(self, batch: dict[str, Tensor], return_loss: bool = False) -> Any:
        """CLIP's output for ``pixels`` (B, 3, C, C) uint8 and ``input_ids``, ``attention_mask`` (B, T)."""
        pixels = (batch["pixels"] / 255 - self.mean) / self.std
        return self.model(batch["input_ids"], pixels, batch["attention_mask"], return_loss=return_loss)

    def batches(self, data: Path) -> Pairs:
        return Pairs(data / "pretrain", self.tokenizer, self.settings)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch, return_loss=True).loss

    def evaluate(self, data: Path) -> dict[str, float]:
        return {"retrieval_at_1": retrieval_at_1(self, Pairs(data / "test_captions", self.tokenizer, self.settings))}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        side = self.settings.image_size
        preprocessor = {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": side, "width": side},
            "size": {"shortest_edge": side},
            "resample": 3,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            **dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
        }
        write_atomically(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")


class Pairs:
    """Images and captions from shards of captioned images; batch number i is a pure function of i."""

    def __init__(self, folder: Path, tokenizer: Any, settings: TeacherSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.images: list[bytes] = []
        self.captions: list[str] = []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
            for name in sorted(name for name in files if name.endswith(".json")):
                self.captions.append(json.loads(files[name])["conversations"][-1]["value"] + tokenizer.eos_token)
                self.images.append(files[name.removesuffix(".json") + ".png"])

    def __call__(self, index: int) -> dict[str, Tensor]:
        """Batch ``index`` of the training: every pair once per epoch, in another order each time."""
        per_epoch = len(self.images) // self.settings.batch
        order = list(range(len(self.images)))
        random.Random(f"{self.settings.seed}/{index // per_epoch}").shuffle(order)
        start = index % per_epoch * self.settings.batch
        return self.batch(order[start : start + self.settings.batch])

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``pixels`` (B, 3, C, C) uint8, ``input_ids`` and ``attention_mask`` (B, T)."""
        squares = [self.settings.square(Image.open(io.BytesIO(self.images[i]))) for i in indices]
        text = self.tokenizer([self.captions[i] for i in indices], padding=True, return_tensors="pt")
        return {"pixels": torch.stack(squares), "input_ids": text.input_ids, "attention_mask": text.attention_mask}


def retrieval_at_1(teacher: LitTeacher, pairs: Pairs, batch: int = 128) -> float:
    """How many of the images find their own caption first among all captions of ``pairs``, 0 to 1."""
    chunks = [range(start, min(start + batch, len(pairs.images))) for start in range(0, len(pairs.images), batch)]
    outputs = [teacher(pairs.batch(chunk)) for chunk in chunks]
    images, texts = (torch.cat([getattr(output, name) for output in outputs]) for name in ("image_embeds", "text_embeds"))
    return (images @ texts.T).argmax(1).eq(torch.arange(len(images))).float().mean().item()


def train_teacher(run_dir: str | Path, settings: TeacherSettings = TeacherSettings()) -> Path:
    """Train on ``run_dir/data/pretrain`` and save to ``run_dir/teacher``, for `CLIPModel` and `CLIPVisionModel`; see `train`.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds a teacher made with other settings.
    """
    return train(LitTeacher, settings, Path(run_dir) / "data", Path(run_dir) / "teacher")
