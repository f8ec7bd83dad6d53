"""Other interpretation libraries see in an EVE model what its own recorders see. They are an extra, ``interp``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

import lit_eve
from lit_eve.errors import LitEveError
from lit_eve.interpretation import ActivationRecorder, AttentionRecorder
from lit_eve.interpretation.transformer_lens import transformer_lens_bridge
from tests.tiny_model import make_tiny, scene_image

DECODERS = ["llama", "qwen2", "qwen3"]
QUESTION = "where is the red circle?"


@pytest.fixture(params=DECODERS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, processor = make_tiny(request.param)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def prompt_of(processor) -> str:
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_nnsight(exported: Path) -> None:
    nnsight = pytest.importorskip("nnsight")
    images = [scene_image(0), scene_image(1)]
    model, processor = lit_eve.load(exported)
    inputs = processor(text=prompt_of(processor), images=images)
    with torch.no_grad(), ActivationRecorder(model, ["hidden"]) as recorder:
        expected = model(**inputs).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the name is deprecated in favour of TransformersModel
        seen = nnsight.VisionLanguageModel(str(exported), dispatch=True)
    prompt = prompt_of(seen.processor)
    with seen.trace(text=prompt, images=images):
        hidden = seen.language_model.model.layers[1].output.save()
        logits = seen.output.logits.save()
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(hidden, recorder.calls("hidden", 1)[0])
    torch.testing.assert_close(logits, expected)

    with seen.trace(text=prompt, images=images):  # an intervention: the last block's part is taken away
        seen.language_model.model.layers[-1].mlp.output[:] = 0
        changed = seen.output.logits.save()
    assert not torch.allclose(changed, expected, atol=1e-3)

    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with seen.generate(text=prompt, images=images, max_new_tokens=4, do_sample=False) as tracer:
        ids = tracer.result.save()
    assert ids.tolist() == written.tolist()


def test_transformer_lens(exported: Path) -> None:
    pytest.importorskip("transformer_lens")
    double = {"dtype": torch.float64}  # else rounding adds up
    model, processor = lit_eve.load(exported, **double)
    inputs = processor(text=prompt_of(processor), images=[scene_image(0), scene_image(1)])
    with torch.no_grad(), ActivationRecorder(model, ["hidden", "mlp"]) as inside, AttentionRecorder(model, rows=None) as looks:
        expected = model(**inputs).logits
    bridge = transformer_lens_bridge(*lit_eve.load(exported, attn_implementation="eager", **double))
    logits, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    close = {"atol": 1e-4, "rtol": 1e-4}  # softmax and norms are float32 all the same
    torch.testing.assert_close(logits, expected, **close)
    for layer in inside.layers:
        for site, hook in {"hidden": "hook_resid_post", "mlp": "hook_mlp_out"}.items():
            torch.testing.assert_close(cache[f"blocks.{layer}.{hook}"], inside.calls(site, layer)[0], **close)
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_pattern"].float(), looks.calls(layer)[0], **close)
    with pytest.raises(LitEveError, match="eager"):
        transformer_lens_bridge(model, processor)


def test_transformer_lens_knows_dense_decoders_only() -> None:
    model, processor = make_tiny()
    model.config.decoder_kind = {"name": "experts"}
    with pytest.raises(LitEveError, match="does not know decoders of the kind 'experts'"):
        transformer_lens_bridge(model, processor)


def test_transformer_lens_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.factories.architecture_adapter_factory", None)
    with pytest.raises(LitEveError, match="pip install transformer-lens"):
        transformer_lens_bridge(*make_tiny())
