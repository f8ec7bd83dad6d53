"""Experts compute what the official EVE v2 code computes, on the same weights and embeddings (float32, CPU)."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from lit_eve.models import EveConfig, EveForConditionalGeneration
from tests.models import tiny

ROOT = Path(__file__).parents[2] / "data" / "eve_v2" / "tiny"
LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
PARTS = {"layernorm": "norms", "self_attn": "attention", "mlp": "mlp"}
ALL = "layernorm-self_attn-mlp"


@cache
def results() -> dict:
    return json.loads((ROOT / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(ROOT / f"{name}.safetensors")


def ours(name: str) -> str:
    """``model.layers.0.self_attn.moe_q_proj.weight`` -> ``language_model.model.layers.0.self_attn.q_proj.image.weight``."""
    return "language_model." + re.sub(r"moe_(\w+)", r"\1.image", name)


@cache
def load(moe_part: str | None) -> EveForConditionalGeneration:
    """The official weights with these parts twice."""
    official = json.loads((ROOT / "weights" / "config.json").read_text())
    shapes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    text = {key: official[key] for key in (*shapes, "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")}
    text |= {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": official["rope_theta"]}}
    kind = {"name": "experts", "parts": [PARTS[part] for part in moe_part.split("-")]} if moe_part else {"name": "dense"}
    around = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}
    model = EveForConditionalGeneration(EveConfig(text_config=text, decoder_kind=kind, **around))
    weights = load_file(ROOT / "weights" / "model.safetensors").items()
    weights = {ours(name): value for name, value in weights if "vision_tower" not in name}
    own = {name for name in model.state_dict() if name.startswith("language_model.")}
    assert own <= weights.keys() and (moe_part != ALL or own == weights.keys())
    model.load_state_dict({name: weights[name] for name in own}, strict=False)
    return model.train()


def run(moe_part: str | None, name: str):
    batch, model = tensors(name), load(moe_part)
    model.zero_grad()
    return model(
        inputs_embeds=batch["inputs_embeds"],
        image_mask=batch["visual_token_mask"].bool(),
        attention_mask=batch["attention_mask"].long(),
        labels=batch["labels"],
        logits_to_keep=0,
        output_hidden_states=True,
    )


@pytest.mark.parametrize(("moe_part", "name"), [(ALL, "b1_image"), (ALL, "b1_text"), (ALL, "b4_mixed"), (None, "b1_image")])
def test_logits_and_hidden_states(moe_part, name):
    output, real = run(moe_part, name), tensors(name)["attention_mask"].bool()
    expected = tensors(name) if moe_part else tensors(f"dense_{name}")
    for key, value in expected.items():
        if key.startswith("hidden"):
            layer = -1 if key == "hidden_last" else int(key.removeprefix("hidden."))
            assert_close(output.hidden_states[layer][real], value[real], rtol=0, atol=LOGITS)
    if "logits" in expected:
        assert_close(output.logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
    else:
        row, token = expected["logits_supervised_pos"].T
        assert_close(output.logits[row, token], expected["logits_supervised"], rtol=0, atol=LOGITS)
        assert_close(output.logits.logsumexp(-1)[real], expected["logits_logsumexp"][real], rtol=0, atol=LOGITS)


@pytest.mark.parametrize("name", ["b1_image", "b1_text", "b4_mixed"])
def test_losses_and_gradients(name):
    output = run(ALL, name)
    expected = results()["batches"][name]
    assert output.loss.item() == pytest.approx(expected["loss"]["value"], abs=LOSS)
    output.loss.backward()
    found = {key: parameter.grad for key, parameter in load(ALL).named_parameters()}
    inside = lambda key: "vision_tower" not in key and "embed_tokens" not in key  # noqa: E731 - embeddings are given here
    for key, norm in filter(lambda entry: inside(entry[0]), expected["grad_norms"].items()):
        assert found[ours(key)].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-6), key
    for key, value in tensors(name).items():
        if key.startswith("grad.") and inside(key):
            key, _, rows = key.removeprefix("grad.").partition("[:")
            gradient = found[ours(key)]
            gradient = gradient[: int(rows.rstrip("]"))] if rows else gradient
            assert (gradient - value).norm() <= GRADIENT * value.norm(), key


@pytest.mark.parametrize("moe_part", ["self_attn-mlp", "layernorm", "self_attn", "mlp", "dense"])
@pytest.mark.parametrize("name", ["b1_image", "b4_mixed"])
def test_losses_of_other_parts(moe_part, name):
    expected = results()["variants"][moe_part][name]["loss"]["value"]
    assert run(None if moe_part == "dense" else moe_part, name).loss.item() == pytest.approx(expected, abs=LOSS)


@pytest.mark.parametrize("prompt", ["wide", "text_only"])
def test_greedy_answers(prompt):
    """Generated tokens take the weights of words."""
    model, expected = load(ALL), results()["generate"][prompt]
    ids = torch.tensor(expected["input_ids"])
    embeds, mask = model.get_input_embeddings()(ids.clamp(min=0)), torch.zeros(len(ids), dtype=torch.bool)
    if prompt == "wide":  # the image of b1_image, in the place of the official slot
        batch, slot = tensors("b1_image"), int((ids == -200).nonzero())
        image = batch["inputs_embeds"][batch["visual_token_mask"].bool()]
        embeds = torch.cat([embeds[:slot], image, embeds[slot + 1 :]])
        mask = torch.cat([mask[:slot], torch.ones(len(image), dtype=torch.bool), mask[slot + 1 :]])
    answer = model.eval().generate(
        inputs_embeds=embeds[None],
        image_mask=mask[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.train()
    assert answer.sequences[0].tolist() == expected["new_tokens_cache"]
    assert_close(torch.cat(answer.logits), tensors("generate")[f"{prompt}.logits_cache"], rtol=0, atol=LOGITS)
