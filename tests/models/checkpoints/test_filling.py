"""A model on the meta device and a stream of weights become a model."""

from __future__ import annotations

import copy

import pytest
import torch

from lit_eve.errors import CheckpointError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.checkpoints.filling import fill
from lit_eve.models.decoders.routing import image_copies
from tests.models import tiny


def empty(model: EveForConditionalGeneration) -> EveForConditionalGeneration:
    with torch.device("meta"):
        return EveForConditionalGeneration(copy.deepcopy(model.config))


def parts(model: EveForConditionalGeneration) -> dict[str, torch.nn.Module]:
    return {name: copy.deepcopy(model.get_submodule(name)) for name in ("patch_embedding", "projector")}


@pytest.mark.parametrize("decoder", tiny.DECODERS)
def test_a_filled_model_is_the_model(decoder):
    model = tiny.model(decoder).eval()
    filled = empty(model)
    weights = {name: value for name, value in model.state_dict().items() if not (decoder == "qwen2_tied" and "lm_head" in name)}
    fill(filled, reversed(weights.items()), parts(model), (), "cpu", source="there")
    for (name, value), (_, found) in zip(model.state_dict().items(), filled.state_dict().items(), strict=True):
        assert torch.equal(value, found), name
    batch = tiny.padded(tiny.samples(model, [1, 2]))
    assert torch.equal(filled.eval()(**batch).loss, model(**batch).loss)


def test_a_part_that_may_be_new_is_taken_when_there_is_none():
    model, other = tiny.model(), tiny.model(seed=1)
    stored = {name: value for name, value in model.state_dict().items() if name.startswith("language_model.")}
    filled = empty(model)
    fill(filled, stored.items(), parts(other), ("patch_embedding", "projector"), "cpu", source="there")
    for name, value in filled.state_dict().items():
        assert torch.equal(value, (model if name in stored else other).state_dict()[name]), name


@pytest.mark.parametrize("backwards", [False, True])
def test_copies_are_filled_from_their_originals_unless_they_are_there(backwards):
    """One tensor of the stream fills both places, in whatever order they come."""
    model = tiny.model(decoder_kind={"name": "experts", "parts": ["mlp"]})
    weights, copies = model.state_dict(), image_copies(model)
    own = next(iter(copies))
    stored = {name: value for name, value in weights.items() if name == own or name not in copies}
    filled = empty(model)
    fill(filled, [*stored.items()][:: -1 if backwards else 1], parts(model), (), "cpu", "there", copies)
    for name, value in filled.state_dict().items():
        assert torch.equal(value, weights[name if name == own else copies.get(name, name)]), name


def with_one_more(weights):
    weights["projector.9.weight"] = torch.zeros(1)


def with_another_shape(weights):
    weights["projector.0.weight"] = torch.zeros(3, 5)


def with_one_less(weights):
    del weights["projector.0.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_one_more, "there: the model has no weight 'projector.9.weight'"),
        (with_another_shape, r"there: projector.0.weight has the shape \(3, 5\), but the model's has \(32, 16\)"),
        (with_one_less, "there: weights are missing: projector.0.weight$"),
    ],
)
def test_weights_of_another_model_are_named(change, message):
    """Also where the part may be new: half of it is no new part."""
    model = tiny.model()
    weights = model.state_dict()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        fill(empty(model), weights.items(), parts(model), ("projector",), "cpu", source="there")
