"""A tiny random LLaVA of transformers, its processor, and its checkpoints in each form in which they are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.models.reference import TOKENIZER

IMAGE, PAD, SIDE, PATCH = 512, 513, 32, 8
SQUARE = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
PREPROCESSOR = {
    **dict.fromkeys(("do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
    **{"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
    **{"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "resample": 3},
    **{"rescale_factor": 0.00392156862745098, **SQUARE},
}
"""As on the hub, with other sizes."""
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 16}
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 520}
CONFIG = {
    **{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "pad_token_id": PAD},
    **{"image_token_index": IMAGE, "projector_hidden_act": "gelu", "vision_feature_layer": -2, "torch_dtype": "float32"},
    **{"vision_feature_select_strategy": "default", "tie_word_embeddings": False, "image_seq_length": (SIDE // PATCH) ** 2},
    "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 512, **_TEXT},
    "vision_config": {
        "model_type": "clip_vision_model",
        "image_size": SIDE,
        "patch_size": PATCH,
        **_VISION,
    },
}
"""As on the hub, with other sizes."""


def model(**changes) -> LlavaForConditionalGeneration:
    """Random weights, larger than usual, so that differences show."""
    torch.manual_seed(0)
    built = LlavaForConditionalGeneration(LlavaConfig.from_dict(CONFIG | changes)).eval()
    for parameter in built.parameters():
        kept = parameter.data if parameter.ndim == 1 else 0
        parameter.data = kept + 0.2 * torch.randn(parameter.shape)
    return built


def processor(folder: Path, pad: bool = False) -> LlavaProcessor:
    """Transformers' own: its crop, or upstream's padding."""
    images = LlavaImageProcessorPil(do_pad=True, **SQUARE) if pad else CLIPImageProcessorPil(**SQUARE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def write_tokenizer(folder: Path) -> None:
    """EVE v1's, a LLaMA's, with the two words that the hub's has more."""
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == IMAGE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)


def hub_name(name: str) -> str:
    """The name of a weight in the files of the hub."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def write_checkpoint(folder: Path, form: str = "hub", built: LlavaForConditionalGeneration | None = None):
    """A checkpoint; ``form`` is "hub" (of 2023), "saved" (by transformers 5) or "memory" (its names there)."""
    built = built or model()
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    if form == "saved":
        built.save_pretrained(folder)
        processor(folder).save_pretrained(folder)
        return built
    weights = {name: value.clone() for name, value in built.state_dict().items()}
    if form == "hub":
        weights = {hub_name(name): value for name, value in weights.items()}
        weights["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": str(built.dtype).removeprefix("torch.")}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return built
