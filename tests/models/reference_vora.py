"""The official VoRA numbers (see tests/data/vora/README.md) in the batch format of lit_eve."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from lit_eve.losses import FrozenTeacher
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.processing import EveProcessor
from lit_eve.processing.images import load_image
from lit_eve.processing.teacher_grid import TeacherGrid

ROOT = Path(__file__).parents[1] / "data" / "vora"
OFFICIAL_IMAGE_SLOT = -200
ROWS = {  # the images of each row
    "b_image": [["wide"]],
    "b_text": [[]],
    "b_two": [["tall", "square"]],
    "b_mixed": [["wide"], [], ["tall"]],
}
_NAMES = {
    r"llm\.": "language_model.",
    r"vision_embedding\.patchifier\.proj\.": "patch_embedding.patch_projection.",
    r"vision_embedding\.patchifier\.norm\.": "patch_embedding.norm.",
    r"vision_embedding\.pos_embed": "patch_embedding.positions.table",
    r"vision_embedding\.out_proj\.": "patch_embedding.output_projection.",
    r"aux_vision\.aux_layer_": "distillation.",
}


@cache
def results() -> dict:
    return json.loads((ROOT / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(ROOT / f"{name}.safetensors")


@cache
def official_weights() -> dict[str, Tensor]:
    return load_file(ROOT / "weights" / "model.safetensors")


def ours(name: str) -> str:
    """The name that an official weight has in lit_eve."""
    pattern = next(pattern for pattern in _NAMES if re.match(pattern, name))
    return re.sub(pattern, _NAMES[pattern], name, count=1)


def as_ours(name: str, value: Tensor) -> Tensor:
    """Its value, or its gradient, in the shape that lit_eve has: kernels as matrices, positions as a table."""
    if name.endswith("patchifier.proj.weight"):
        return value.flatten(1)
    return value.view(4, 4, -1) if name.endswith("pos_embed") else value


def config(**changes) -> EveConfig:
    official = json.loads((ROOT / "weights" / "config.json").read_text())
    text = {**official["llm"], "model_type": "qwen2"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    adapters = official["lora"]
    modules = [name.rpartition(".")[2] for name in adapters["target_modules"]]
    fields = {
        "decoder_kind": {
            **{"name": "image_adapter", "rank": adapters["r"], "layers": adapters["layers"]},
            **{"modules": modules, "bias": True},
        },
        "patch_embedding": {"name": "vora", "patch_width": 48, "positions": 4},
        "projector": {"name": "identity"},
        "image_attention": {"name": "bidirectional"},
        "geometry": {"name": "square", "image_size": 56, "background": [0, 0, 0]},
        "supervision": [{"name": "distillation"}],
        "teacher_layer": 3,
    }
    return EveConfig(text_config=text, **fields | changes)


def load(config: EveConfig, weights: dict[str, Tensor] | None = None) -> EveForConditionalGeneration:
    """A model of the official weights, with their teacher if it is supervised by one."""
    weights = official_weights() if weights is None else weights
    model = EveForConditionalGeneration(config)
    if config.supervision:
        backbone = CLIPVisionModel(CLIPVisionConfig(**json.loads((ROOT / "weights" / "config.json").read_text())["teacher"]))
        vision = {name.rpartition("vision_model.")[2]: value for name, value in weights.items() if "aux_model" in name}
        names = {name.removeprefix("vision_model."): name for name in backbone.state_dict()}  # of this transformers
        backbone.load_state_dict({names[name]: value for name, value in vision.items()})
        model.attach_supervision(FrozenTeacher(backbone, config.teacher_layer))
    own = {ours(name): as_ours(name, value) for name, value in weights.items() if "aux_model" not in name}
    model.load_state_dict({name: value for name, value in own.items() if config.supervision or "distillation" not in name})
    return model


def processor(config: EveConfig) -> EveProcessor:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "text" / "tokenizer")
    return EveProcessor(tokenizer, geometry=config.image_geometry, image_token_id=config.image_token_id)


def images(names: list[str], processor: EveProcessor) -> dict[str, Tensor]:
    """The pixels of image files, for the student and for its teacher."""
    if not names:
        return {}
    files = [str(ROOT / "images" / f"{name}.png") for name in names]
    teacher = [TeacherGrid(56, 14).canvas(load_image(file), processor.geometry) for file in files]
    return {**processor(images=files), "teacher_pixel_values": torch.stack(teacher)}


def batch(name: str, processor: EveProcessor) -> dict[str, Tensor]:
    """The reference batch from the image files on, right-padded as upstream does."""
    given, rows = tensors(name), []
    for row in range(len(ROWS[name])):
        real = given["attention_mask_text"][row].bool()
        rows.append(expand(given["input_ids"][row][real], given["labels_text"][row][real], processor))
    length = given["padding_mask"].shape[1]
    pad = lambda x, value: torch.nn.functional.pad(x, (0, length - len(x)), value=value)  # noqa: E731
    return {
        "input_ids": torch.stack([pad(ids, 0) for ids, _ in rows]),
        "labels": torch.stack([pad(labels, -100) for _, labels in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(ids), 0) for ids, _ in rows]),
        **images([one for row in ROWS[name] for one in row], processor),
    }


def expand(ids: Tensor, labels: Tensor, processor: EveProcessor) -> tuple[Tensor, Tensor]:
    """As many slots for each image as it has tokens, in place of the single official one."""
    tokens = processor.geometry.longest_side**2
    counts = torch.where(ids == OFFICIAL_IMAGE_SLOT, tokens, 1)
    ids = torch.where(ids == OFFICIAL_IMAGE_SLOT, processor.image_token_id, ids)
    return ids.repeat_interleave(counts), labels.repeat_interleave(counts)
