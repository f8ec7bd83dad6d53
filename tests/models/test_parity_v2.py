"""lit_eve computes what the official EVE v2 code computes, from its checkpoint and the files of images on (float32, CPU)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import lit_eve
from tests.models import reference_v2 as reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4


@pytest.mark.parametrize("name", ["b1_image", "b1_text", "b4_mixed", "b3_plain"])
def test_logits_losses_and_gradients(official_v2_folder, name):
    model, processor = lit_eve.load(official_v2_folder)
    expected, batch = reference.tensors(name), reference.batch(name, processor)
    real = expected["attention_mask"].bool()
    assert torch.equal(batch["attention_mask"].bool(), real)
    output = model(**batch, logits_to_keep=0)
    assert output.loss.item() == pytest.approx(reference.results()["batches"][name]["loss"]["value"], abs=LOSS)
    if "logits" in expected:
        assert_close(output.logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
    else:
        for kind in ("supervised", "visual"):
            row, token = expected[f"logits_{kind}_pos"].T
            assert_close(output.logits[row, token], expected[f"logits_{kind}"], rtol=0, atol=LOGITS)
        assert_close(output.logits.logsumexp(-1)[real], expected["logits_logsumexp"][real], rtol=0, atol=LOGITS)
    output.loss.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    norms = reference.results()["batches"][name].get("grad_norms", {})
    for key, norm in norms.items():
        gradient = found[reference.LAYOUT.import_name(key)]
        norm_found = 0.0 if gradient is None else gradient.norm().item()
        assert norm_found == pytest.approx(norm, rel=GRADIENT, abs=1e-6), key
    for key in (key for key in expected if key.startswith("grad.") and "embed_tokens" not in key):
        name, _, rows = key.removeprefix("grad.").partition("[:")
        ours = reference.LAYOUT.import_name(name)
        gradient = reference.LAYOUT.export_value(ours, found[ours], model.config)  # in the shape of a convolution's kernel
        gradient = gradient[: int(rows.rstrip("]"))] if rows else gradient
        assert (gradient - expected[key]).norm() <= GRADIENT * expected[key].norm(), key


@pytest.mark.parametrize("prompt", ["wide", "tall", "square", "two_images", "text_only"])
def test_greedy_answers(official_v2_folder, prompt):
    """When it answers, the official code enlarges small images."""
    model, processor = lit_eve.load(official_v2_folder)
    processor.geometry = replace(processor.geometry, rule="inference")
    expected = reference.results()["generate"][prompt]
    images = [reference.image(name) for name in expected["images"]]
    inputs = processor(text=expected["prompt"], images=[images] if images else None)
    words = [id for id in inputs["input_ids"][0].tolist() if id != processor.image_token_id]
    assert words == [id for id in expected["input_ids"] if id != reference.OFFICIAL_IMAGE_SLOT]
    assert inputs["input_ids"].shape[1] == expected["model_calls_cache"][0]["q_len"]
    answer = model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    assert answer[0, -16:].tolist() == expected["new_tokens_cache"]


@pytest.mark.parametrize("moe_part", ["self_attn-mlp", "layernorm", "self_attn", "mlp", None])
@pytest.mark.parametrize("name", ["b1_image", "b4_mixed"])
def test_losses_of_other_parts(official_v2_folder, moe_part, name):
    config = json.loads((official_v2_folder / "config.json").read_text())
    config |= {"add_moe": moe_part is not None, "moe_part": moe_part}
    (official_v2_folder / "config.json").write_text(json.dumps(config))
    expected = reference.results()["variants"][moe_part or "dense"]
    weights = load_file(official_v2_folder / "model.safetensors")
    unused = {key for key in weights if "moe_" in key and not belongs(key, moe_part or "")}
    assert len(unused) == expected["unused_moe_keys"]
    save_file({key: value for key, value in weights.items() if key not in unused}, official_v2_folder / "model.safetensors")
    model, processor = lit_eve.load(official_v2_folder)
    loss = model(**reference.batch(name, processor)).loss.item()
    assert loss == pytest.approx(expected[name]["loss"]["value"], abs=LOSS)


def belongs(key: str, moe_part: str) -> bool:
    """Whether a ``moe_*`` weight is one of these parts."""
    part = "layernorm" if "layernorm" in key else "mlp" if "moe_mlp" in key else "self_attn"
    return part in moe_part.split("-")
