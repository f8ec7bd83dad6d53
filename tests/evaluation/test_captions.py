from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_eve.data import EveDataModule, ShardWriter
from lit_eve.evaluation import token_accuracy
from lit_eve.nano.world.language import caption
from lit_eve.nano.world.scenes import png, sample_scene
from lit_eve.processing import Sample
from tests.models import tiny
from tests.tiny_model import make_tiny


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "captions") as writer:
        for index in range(40):
            scene = sample_scene(f"captions/{index}")
            turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption(scene)}]
            writer.write({"id": str(index), "conversations": turns}, [png(scene)])
    return tmp_path / "captions"


@torch.no_grad()
def test_equals_samples_one_by_one(shards: Path) -> None:
    model, processor = make_tiny()
    data = EveDataModule(test=str(shards), template="plain", max_tokens=300, rows=2, num_workers=0).attach(processor)
    data.prepare_data()
    data.setup("test")
    found = token_accuracy(model, data.test_dataloader(), progress=None)

    correct, losses = [], []
    for sample in data.samples("test"):
        features = processor.encode_sample(Sample(sample.key, sample.conversation, sample.images), template="plain")
        labels = features.pop("labels")[1:]
        features["input_ids"] = features["input_ids"][None]
        logits = model(**features).logits[0, :-1][labels != -100]
        labels = labels[labels != -100]
        correct.append(logits.argmax(-1) == labels)
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    assert len(correct) == 40 and torch.cat(correct).any()
    assert found["accuracy"] == pytest.approx(torch.cat(correct).double().mean().item())
    assert found["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_the_teacher_is_not_asked_and_stays(shards: Path) -> None:
    model, processor = make_tiny()
    model.attach_teacher(tiny.teacher(), {"name": "layerwise", "layer_interval": 1, "num_heads": 4})
    data = EveDataModule(test=str(shards), template="plain", max_tokens=300, num_workers=0).attach(processor)
    data.prepare_data()
    data.setup("test")
    teacher = model.teacher
    assert token_accuracy(model, data.test_dataloader(), progress=None)["loss"] > 0  # the batches have no teacher pixels
    assert model.teacher is teacher
