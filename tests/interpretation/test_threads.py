"""Several threads that look into one model at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.interpretation import (
    ActivationRecorder,
    AttentionRecorder,
    ablate_heads,
    attend,
    gradient_rollout,
    logit_lens,
    rollout,
)
from tests.tiny_model import make_tiny, scene_image

SITES = ["input", "attention", "mlp", "hidden", "query", "key", "value"]


def test_a_recorder_sees_the_calls_of_its_own_thread() -> None:
    model, _ = make_tiny()
    ids, others = torch.tensor([[10, 11, 12, 13]]), torch.tensor([[13, 12, 11, 10]])
    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        with ActivationRecorder(model, SITES) as alone, AttentionRecorder(model, rows=None) as weights_alone:
            model(input_ids=ids)
        with ActivationRecorder(model, SITES) as inside, AttentionRecorder(model, rows=None) as weights:
            pool.submit(model, input_ids=others).result()
            with pytest.raises(LitEveError, match="nothing was recorded: call the model .*, from its thread"):
                inside.calls("hidden", 0)
            with pytest.raises(LitEveError, match="nothing was recorded: call the model .*, from its thread"):
                weights.calls(0)
            model(input_ids=ids)
            pool.submit(model, input_ids=others).result()
    for layer in inside.layers:
        for site in SITES:
            assert torch.equal(*alone.calls(site, layer), *inside.calls(site, layer))
        assert torch.equal(*weights_alone.calls(layer), *weights.calls(layer))


def test_threads_find_what_each_finds_alone() -> None:
    model, processor = make_tiny()
    images = [scene_image(0), scene_image(1).resize(scene_image(0).size), scene_image(2)]

    def look(image) -> list[torch.Tensor]:
        seen = attend(model, processor, [image], "where is it?", reduce=None, max_new_tokens=3)
        ways = [*rollout(model, seen), *gradient_rollout(model, seen), ablate_heads(model, seen, progress=None).drop()]
        return [*seen.maps, *ways, *logit_lens(model, processor, [image]).probabilities]

    before = [*ALL_ATTENTION_FUNCTIONS]
    expected = [look(image) for image in images]
    with ThreadPoolExecutor(len(images)) as pool:
        for _ in range(3):
            for found, alone in zip(pool.map(look, images), expected, strict=True):
                assert all(map(torch.equal, found, alone))
    assert [*ALL_ATTENTION_FUNCTIONS] == before
