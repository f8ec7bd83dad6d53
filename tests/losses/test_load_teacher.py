from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

from lit_eve.errors import CheckpointError
from lit_eve.losses import load_teacher

SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_whole_clip_is_loaded_without_noise(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(text_config={**SHAPE, "vocab_size": 9}, vision_config={**SHAPE, "image_size": 16, "patch_size": 8})
    )
    clip.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, select_layer=-2).eval()
    pixels = torch.randn(2, 3, 16, 16)
    hidden = clip.eval().vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(teacher(pixels), hidden)
    assert "REPORT" not in "".join(capfd.readouterr())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=9)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is of the type 'llama'; a vision encoder must be a CLIP"):
        load_teacher(tmp_path)
