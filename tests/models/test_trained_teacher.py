"""A teacher that trains along: it begins as the frozen one, learns, and is kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import AbsentTeacher, FrozenTeacher
from lit_eve.models import EveForConditionalGeneration
from tests import towers
from tests.models import tiny

ALIGNER = {"name": "layerwise", "layer_interval": 2, "num_heads": 4}
ENTRY = {"name": "trained_teacher", "aligner": ALIGNER}


def make(entry=ENTRY, kind: str = "clip", decoder: str = "llama") -> EveForConditionalGeneration:
    """In training mode."""
    model = tiny.model(decoder, seed=0, supervision=[entry])
    torch.manual_seed(1)
    model.attach_supervision(FrozenTeacher(towers.make(kind)))
    return model.train()


@pytest.mark.parametrize(
    ("kind", "decoder"), [*((kind, "llama") for kind in towers.CONFIGS), *(("clip", decoder) for decoder in tiny.DECODERS)]
)
def test_it_begins_as_the_frozen_teacher(kind, decoder):
    """The same loss, and the same gradients of the student; each weight of the copy has one."""
    model, frozen = make(ENTRY, kind, decoder), make({"name": "patch_alignment", "aligner": ALIGNER}, kind, decoder)
    frozen.aligner.load_state_dict(model.trained_teacher["aligner"].state_dict())
    batch = tiny.packed([tiny.samples(model, [2, 0, 1])])
    (ours,), gradients = tiny.gradients(model, batch)
    (theirs,), expected = tiny.gradients(frozen, batch)
    assert_close(ours.alignment_loss, theirs.alignment_loss)
    for name, gradient in expected.items():
        ours = gradients[name.replace("aligner.", "trained_teacher.aligner.")]
        assert_close(ours, gradient, msg=name)
    tower = [f"trained_teacher.tower.{name}" for name, _ in model.trained_teacher["tower"].named_parameters()]
    assert all(gradients[name].any() for name in tower)
    assert torch.equal(model(**batch).alignment_loss, model(**batch).alignment_loss), "it says the same of the same images"


def test_the_copy_learns_and_the_named_teacher_does_not():
    model = make()
    batch = tiny.packed([tiny.samples(model, [2, 1])])
    before = {name: weight.clone() for name, weight in model.teacher.backbone.state_dict().items()}
    weights = dict(model.trained_teacher["tower"].named_parameters())
    optimizer = torch.optim.SGD(model.trained_teacher["tower"].parameters(), lr=1.0)
    first = model(**batch)
    first.loss.backward()
    optimizer.step()
    assert model(**batch).alignment_loss < first.alignment_loss
    after = model.teacher.backbone.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert any(not torch.equal(weights[name], weight) for name, weight in before.items() if name in weights)


def test_it_is_kept_beside_the_model(tmp_path):
    model = make()
    for weight in model.trained_teacher["tower"].parameters():
        weight.data.mul_(1.1)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.safetensors")} == {"model.safetensors", "trained_teacher.safetensors"}
    assert any(key.startswith("tower.") for key in load_file(tmp_path / "trained_teacher.safetensors"))
    again = EveForConditionalGeneration.from_pretrained(tmp_path)
    again.attach_supervision(FrozenTeacher(towers.make("clip")))
    batch = tiny.packed([tiny.samples(model, [1, 1])])
    assert not torch.equal(again(**batch).alignment_loss, model(**batch).alignment_loss)
    assert again.load_heads(tmp_path) == []
    assert_close(again(**batch).alignment_loss, model(**batch).alignment_loss)


def test_it_must_be_there():
    with pytest.raises(ConfigError, match="'trained_teacher' needs a teacher"):
        tiny.model(supervision=[ENTRY]).attach_supervision()
    with pytest.raises(
        ConfigError, match="'trained_teacher' looks at the teacher's images itself: with model.teacher_features there are none"
    ):
        tiny.model(supervision=[ENTRY]).attach_supervision(AbsentTeacher(tiny.teacher().config))
    model = make()
    batch = tiny.packed([tiny.samples(model, [1])])
    with pytest.raises(LitEveError, match="the batch has no teacher_pixel_values"):
        model(**{key: value for key, value in batch.items() if key != "teacher_pixel_values"})
