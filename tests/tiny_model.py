"""A whole model of random weights, small enough for any test: nano's tokenizer, a decoder of your choice."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig

from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.nano.world.scenes import draw, sample_scene
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.processing import EveProcessor
from tests.models.tiny import GEOMETRY


def make_tiny(
    decoder: str = "llama",
    seed: int = 0,
    kind: str = "dense",
    geometry: dict[str, Any] = GEOMETRY,
    layers: int = 3,
    **parts: Any,
) -> tuple[EveForConditionalGeneration, EveProcessor]:
    """Model (in eval mode) and processor; weights large enough for answers that depend on the image."""
    tokenizer = make_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text_config = AutoConfig.for_model(
        decoder,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.4,
        **ids,
    )
    processor = EveProcessor(tokenizer, geometry=geometry, template="chat")
    config = EveConfig(
        text_config=text_config,
        decoder_kind={"name": kind},
        patch_embedding={"name": "eve_v1", "width": 32},
        geometry=geometry,
        image_token_id=processor.image_token_id,
        **parts,
        **ids,
    )
    torch.manual_seed(seed)
    model = EveForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.projector[-1].weight, std=0.5)
    for name, parameter in model.named_parameters():
        if ".image." in name:  # experts begin as copies
            torch.nn.init.normal_(parameter, std=0.4)
    return model, processor


def scene_image(seed: int = 0) -> Image.Image:
    """A picture of the miniature world; other seeds, other sizes."""
    return draw(sample_scene(f"tiny/{seed}"))
