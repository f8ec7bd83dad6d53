"""What every patch embedding must do; a new one is a new row of VARIANTS."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.models import PATCH_EMBEDDINGS, EveForConditionalGeneration
from tests.models import tiny

VARIANTS = [
    {"name": "eve_v1", "width": 16, "num_heads": 4},
    {"name": "linear", "width": 16},
]

variants = pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: spec["name"])


def test_every_variant_has_a_row():
    shipped = {name for name in PATCH_EMBEDDINGS if PATCH_EMBEDDINGS[name].__module__.startswith("lit_eve.")}
    assert shipped == {spec["name"] for spec in VARIANTS}


@variants
def test_initialises_every_parameter(spec):
    """Models are built on the meta device: whatever no reset_parameters reaches stays arbitrary memory."""
    model = tiny.model(patch_embedding=spec)
    for parameter in model.patch_embedding.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    model.patch_embedding.apply(model._init_weights)
    assert all(parameter.isfinite().all() for parameter in model.patch_embedding.parameters())


@variants
def test_trains(spec):
    model = tiny.model(patch_embedding=spec)
    model(**tiny.packed([tiny.samples(model, [2, 0, 1])])).loss.backward()
    for name, parameter in model.patch_embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@variants
def test_an_image_does_not_see_the_others_of_its_batch(spec):
    model = tiny.model(patch_embedding=spec).eval()
    rows = tiny.samples(model, [1, 2])
    together = model(**without_teacher(tiny.padded(rows))).logits
    for index, row in enumerate(rows):
        alone = model(**without_teacher(tiny.padded([row]))).logits[0]
        assert_close(together[index, : len(alone)], alone, rtol=0, atol=1e-4)


@variants
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("split_token", [True, False])
def test_tokens_follow_the_geometry(spec, class_token, split_token):
    model = tiny.model(patch_embedding=spec, geometry={**tiny.GEOMETRY, "class_token": class_token, "split_token": split_token})
    tokens, classes, split = model.patch_embedding(torch.zeros(24, 48), torch.zeros(6, dtype=torch.long), 1)
    assert tokens.shape == (6, spec["width"]) and model.patch_embedding.width == spec["width"]
    assert (classes is None) == (not class_token) and (split is None) == (not split_token)
    assert model(**tiny.padded(tiny.samples(model, [2]))).loss.isfinite()


@variants
def test_is_saved_by_name_and_reloaded(spec, tmp_path):
    model = tiny.model(patch_embedding=spec).eval()
    model.save_pretrained(tmp_path)
    reloaded = EveForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.patch_embedding == spec
    batch = without_teacher(tiny.padded(tiny.samples(model, [1])))
    assert_close(reloaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)


def without_teacher(batch):
    return {key: value for key, value in batch.items() if key not in ("teacher_pixel_values", "labels")}
