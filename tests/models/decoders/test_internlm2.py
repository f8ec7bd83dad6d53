"""InternLM2 in LLaMA's layout, as docs/decoders.md copies it, against official numbers (tests/data/mono_internvl)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models import reference_mono as reference

PAGE = Path(__file__).parents[3] / "docs" / "decoders.md"


def make_internlm2(folder: Path) -> None:
    """The language model of the official tiny weights, without its visual experts, as the hub holds one."""
    prefix = "language_model."
    weights = {name.removeprefix(prefix): value for name, value in reference.weights().items() if name.startswith(prefix)}
    save_file({name: value for name, value in weights.items() if "_ve." not in name}, folder / "model.safetensors")
    config = json.loads((reference.ROOT / "weights" / "config.json").read_text())["llm_config"]
    (folder / "config.json").write_text(json.dumps(config))
    reference.tokenizer().save_pretrained(folder)


@torch.no_grad()
def test_the_copy_computes_the_same(tmp_path, monkeypatch):
    source = tmp_path / "hub"
    source.mkdir()
    make_internlm2(source)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(source))
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(import json\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})
    model, expected = AutoModelForCausalLM.from_pretrained("runs/mono_internvl/decoder"), reference.tensors("b_text")
    assert_close(model(expected["input_ids"]).logits, expected["logits"], rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained("runs/mono_internvl/decoder")
    text = "<|im_start|>user\nSay hello.<|im_end|><img></img>"
    assert tokenizer(text)["input_ids"] == reference.tokenizer()(text)["input_ids"]
