"""The miniature world's CLIP or SigLIP, trained on scenes and their captions: the teacher of the patch alignment."""

from __future__ import annotations

import io
import json
import math
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedModel, SiglipConfig, SiglipModel

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically
from lit_eve.nano.pretrained.fit import ADAMW, LitPretrained, train
from lit_eve.processing import EveV1Geometry, TeacherGrid
from lit_eve.training.optimizers import check_optimizer
from lit_eve.vision_towers import Normalization, family_of

CLIP, SIGLIP = "clip", "siglip"
TEXT = 64
"""Tokens of the longest caption."""


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher and its training.

    Args:
        family: ``clip``: among the pairs of a batch, the right one by a softmax, and a class token (arXiv 2103.00020);
            ``siglip``: each pair right or wrong by a sigmoid, and no class token (arXiv 2303.15343).
        image_size, patch_size: of its square images, in pixels.
        width, layers, heads, feed_forward: size of the vision transformer; the text transformer has ``text_layers``.
        projection: width of the space that images and captions share.
        steps, batch, lr: length of the training, pairs per step, peak learning rate.
        optimizer: by name, with its arguments, as in {name: muon, weight_decay: 0.1}.
        seed: of the initial weights and of the order of the pairs.
        checkpoint_every: steps between checkpoints.
    """

    family: str = CLIP
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
        if self.family not in (CLIP, SIGLIP):
            raise ConfigError(f"family must be one of {CLIP}, {SIGLIP}, got {self.family!r}")
        check_optimizer(self.optimizer)

    def square(self, image: Image.Image) -> Tensor:
        """What this teacher sees of an image, (3, C, C) uint8: as large as a student of its own size would see it."""
        grid = TeacherGrid(self.image_size, self.patch_size)
        return grid.canvas(image, EveV1Geometry(self.patch_size, pool_size=1, image_size=self.image_size, cells=grid.side))


class LitTeacher(LitPretrained):
    """The loss of CLIP or of SigLIP over the pairs of a batch."""

    def __init__(self, settings: TeacherSettings, tokenizer: Any) -> None:
        super().__init__(settings, tokenizer)
        self.model = _model(settings, tokenizer)
        for name, values in self._pixels._asdict().items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def _pixels(self) -> Normalization:
        return family_of(self.model.config.vision_config).pixels

    def forward(self, batch: dict[str, Tensor], return_loss: bool = False) -> Any:
        """CLIP's or SigLIP's output for ``pixels`` (B, 3, C, C) uint8 and ``input_ids``, ``attention_mask`` (B, T)."""
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
        side, (mean, std) = self.settings.image_size, self._pixels
        square, flags = {"height": side, "width": side}, ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
        cut = {"crop_size": square, "do_center_crop": True, "size": {"shortest_edge": side}}
        preprocessor = {
            "image_processor_type": f"{'CLIP' if self.settings.family == CLIP else 'Siglip'}ImageProcessor",
            **(cut if self.settings.family == CLIP else {"size": square}),
            "resample": 3,
            "image_mean": mean,
            "image_std": std,
            **dict.fromkeys(flags, True),
        }
        write_atomically(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")


def _model(settings: TeacherSettings, tokenizer: Any) -> PreTrainedModel:
    shape = {
        "hidden_size": settings.width,
        "intermediate_size": settings.feed_forward,
        "num_attention_heads": settings.heads,
    }
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {"num_hidden_layers": settings.text_layers, "vocab_size": len(tokenizer), "max_position_embeddings": TEXT, **ids}
    vision = {"num_hidden_layers": settings.layers, "image_size": settings.image_size, "patch_size": settings.patch_size}
    if settings.family == CLIP:
        shape["projection_dim"] = settings.projection
        return CLIPModel(CLIPConfig(text_config=shape | text, vision_config=shape | vision, projection_dim=settings.projection))
    text["projection_size"] = settings.width  # both halves end in the width of the image's
    model = SiglipModel(SiglipConfig(text_config=shape | text, vision_config=shape | vision))
    with torch.no_grad():  # section 3.2: at first, all pairs are held for wrong ones, as nearly all are
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


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
        length = (
            {} if self.settings.family == CLIP else {"padding": "max_length", "max_length": TEXT}
        )  # it reads the last place
        text = self.tokenizer([self.captions[i] for i in indices], **{"padding": True} | length, return_tensors="pt")
        return {"pixels": torch.stack(squares), "input_ids": text.input_ids, "attention_mask": text.attention_mask}


def retrieval_at_1(teacher: LitTeacher, pairs: Pairs, batch: int = 128) -> float:
    """How many of the images find their own caption first among all captions of ``pairs``, 0 to 1."""
    chunks = [range(start, min(start + batch, len(pairs.images))) for start in range(0, len(pairs.images), batch)]
    outputs = [teacher(pairs.batch(chunk)) for chunk in chunks]
    images, texts = (torch.cat([getattr(output, name) for output in outputs]) for name in ("image_embeds", "text_embeds"))
    return (images @ texts.T).argmax(1).eq(torch.arange(len(images))).float().mean().item()


def train_teacher(run_dir: str | Path, settings: TeacherSettings = TeacherSettings()) -> Path:
    """Train on ``run_dir/data/pretrain`` and save to ``run_dir/teacher`` for transformers; see `train`.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds a teacher made with other settings.
    """
    return train(LitTeacher, settings, Path(run_dir) / "data", Path(run_dir) / "teacher")
