"""CONTRIBUTING.md followed to the letter: a module outside the package, a YAML file, the contract, steps, an answer."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import lit_eve
from lit_eve.cli import main as lit_eve_command
from lit_eve.models import PROJECTORS
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.training.cli import main as train
from tests.training import world as micro

PAGE = (micro.ROOT / "CONTRIBUTING.md").read_text().split("## A variant")[1].split("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the page finds in this one, and a miniature as small as can be."""
    place = tmp_path_factory.mktemp("contributing")
    shutil.copytree(micro.ROOT / "experiments", place / "experiments")
    shutil.copytree(micro.ROOT / "docs", place / "docs", ignore=shutil.ignore_patterns("_build"))
    nano, tokenizer = place / "runs/nano", make_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(nano / "language_model")
    tokenizer.save_pretrained(nano / "language_model")
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    CLIPVisionModel(vision).save_pretrained(nano / "teacher")
    for name in ("prealign", "validation_captions"):
        micro.make_shards(nano / "data" / name, 60)
    (place / "normed.py").write_text(block("python"))
    (place / "normed.yaml").write_text(block("yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [str(place), *sys.path])
        yield place
    del PROJECTORS._variants["normed_linear"]


def test_the_page_is_followed(place, capsys):
    python, fit, chat = (shlex.split(line) for line in block("sh").splitlines())
    assert python[:2] == ["python", "-c"] and fit[:2] == ["python", "train.py"] and chat[0] == "lit-eve"
    exec(python[2], {})
    cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=False", "--data.num_workers=0"]
    train([*fit[2:], *cpu])
    config = json.loads(Path("runs/normed/model/config.json").read_text())
    assert config["projector"] == {"name": "normed_linear"} and config["imports"] == {"projector": "normed"}
    assert len(micro.scalars(Path("runs/normed"), "train/loss")) > 0
    model, _ = lit_eve.load("runs/normed")
    assert type(model.projector).__name__ == "NormedLinear"
    capsys.readouterr()
    assert lit_eve_command([*chat[1:], "--max-new-tokens=3"]) == 0
    assert capsys.readouterr().out.strip()
