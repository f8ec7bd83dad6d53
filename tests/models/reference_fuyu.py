"""A tiny random Fuyu of transformers, its processor, and its checkpoints in each form in which they are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, FuyuConfig, FuyuForCausalLM, FuyuProcessor, PersimmonConfig
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

PATCH, SIZE = {"height": 6, "width": 6}, {"height": 54, "width": 96}
SPEAKER, NEWLINE, BEGIN, ANSWER, END = 3, 5, 1, 10, 4
PREPROCESSOR = {
    **{"do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "image_mean": 0.5, "image_std": 0.5},
    **{"image_processor_type": "FuyuImageProcessor", "padding_mode": "constant", "padding_value": 1.0, "patch_size": PATCH},
    **{"resample": 2, "rescale_factor": 0.00392156862745098, "size": SIZE},
}
"""As on the hub, with other sizes."""
CONFIG = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"hidden_act": "relu2", "layer_norm_eps": 1e-5, "max_position_embeddings": 512, "qk_layernorm": True},
    **{"rope_theta": 25000.0, "rope_scaling": None, "hidden_dropout": 0.0, "attention_dropout": 0.0, "use_cache": True},
    **{"model_type": "fuyu", "architectures": ["FuyuForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "patch_size": 6},
    **{"image_size": 300, "num_channels": 3, "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "torch_dtype": "float32",
}
"""As on the hub: the decoder's keys among the others."""


class ImageProcessor(FuyuImageProcessorPil):
    """The one of transformers that needs no torchvision; its ``patchify_image`` does not take the tensors that it is given."""

    def patchify_image(self, image, patch_size=None):
        return torch.from_numpy(super().patchify_image(np.asarray(image), patch_size))[None]


def write_tokenizer(folder: Path) -> Path:
    """A Unigram vocabulary with Fuyu's own words; as on the hub, not all of them are marked as special."""
    words = ["<unk>", "<s>", "</s>", "|SPEAKER|", "|ENDOFTEXT|", "|NEWLINE|", *(f"<0x{byte:02X}>" for byte in range(16))]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.?-0123456789,"
    pieces = [*((word, 0.0) for word in words), ("▁", -2.0), ("\n", -3.0), *((letter, -5.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁the", -3.0), ("at", -3.5), ("▁a", -3.2)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(words[:3])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 16384}))
    return folder


def processor(folder: Path) -> FuyuProcessor:
    """Transformers' own, around the tokenizer in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder, config=PersimmonConfig())
    return FuyuProcessor(ImageProcessor(patch_size=PATCH, size=SIZE), tokenizer)


def model(**changes) -> FuyuForCausalLM:
    """Random weights, larger than usual, so that differences show; norms and biases are near what they usually are."""
    torch.manual_seed(0)
    built = FuyuForCausalLM(FuyuConfig.from_dict(CONFIG | {"image_token_id": SPEAKER} | changes)).eval()
    for parameter in built.parameters():
        kept = parameter.data if parameter.ndim == 1 else 0
        parameter.data = kept + 0.2 * torch.randn(parameter.shape)
    return built


def hub_name(name: str) -> str:
    """The name of a weight in the files of the hub."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.replace("model.language_model.", "language_model.model.").replace("model.vision_embed", "vision_embed")


def write_checkpoint(folder: Path, form: str = "hub", built: FuyuForCausalLM | None = None) -> FuyuForCausalLM:
    """A checkpoint; ``form`` is "hub" (of 2023), "saved" (by transformers 5) or "memory" (its names there)."""
    write_tokenizer(folder)
    built = built or model()
    if form == "saved":
        built.save_pretrained(folder)
        processor(folder).save_pretrained(folder)
        return built
    weights = {name: value.clone() for name, value in built.state_dict().items()}
    if form == "hub":
        weights = {hub_name(name): value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": str(built.dtype).removeprefix("torch.")}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return built


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
