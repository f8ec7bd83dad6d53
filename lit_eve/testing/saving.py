"""A saved model is the same when it is loaded: its composition, its weights, its losses and its answers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from lit_eve.models import EveForConditionalGeneration
from lit_eve.testing.answering import generated
from lit_eve.testing.comparing import LOGITS, LOSS, compare, compare_named
from lit_eve.testing.composition import KEYS, attach
from lit_eve.testing.samples import make_samples, packed, without_labels


@torch.no_grad()
def check_saved(model: EveForConditionalGeneration) -> None:
    """``config.json`` holds the composition; weights, logits, losses and answers are the same after loading."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        stored = json.loads(Path(folder, "config.json").read_text())
        torch.manual_seed(1)  # what is drawn anew is something else
        loaded = type(model).from_pretrained(folder).eval()
        attach(loaded)
        missing = loaded.load_heads(folder)
    for key in KEYS:
        if key != "text_config":
            value = getattr(model.config, key)
            same = key not in stored if value is None else json.loads(json.dumps(value)) == stored.get(key)
            assert same or stored.get(key) == value, f"config.json says {key} = {stored.get(key)!r}, the model has {value!r}"
    assert not missing, f"no head of the supervision {missing[0]!r} was saved"
    weights, again = model.state_dict(), loaded.state_dict()
    assert weights.keys() == again.keys(), f"saving or loading loses {', '.join(sorted(weights.keys() ^ again.keys()))}"
    for name, value in weights.items():
        assert torch.equal(value, again[name]), f"{name} is another tensor after saving and loading"
    compare_reloaded(model, loaded)


def compare_reloaded(model: EveForConditionalGeneration, loaded: EveForConditionalGeneration) -> None:
    """Logits, losses and answers of a model, and of the same one loaded."""
    samples = make_samples(model)
    batch = packed([samples[:2], samples[2:]])
    cause = "what it computes with must be a parameter, a buffer, or follow from its arguments"
    # Not to the bit: where weights lie in memory decides in which order some kernels add.
    expected = model(**without_labels(batch)).logits
    try:
        found = loaded(**without_labels(batch)).logits
    except RuntimeError as error:  # a tensor that is on the meta device still
        raise AssertionError(f"the model does not run after loading ({cause}): {error}") from error
    compare(found, expected, f"logits are others after saving and loading ({cause})", LOGITS)
    losses = []
    for one in (loaded, model):
        torch.manual_seed(0)
        losses.append({name: term.total for name, term in one(**batch).terms.items()})
    compare_named(*losses, f"{{name}} is another one after saving and loading ({cause})", LOSS)
    answers = [generated(one, samples) for one in (loaded, model)]
    assert answers[0] == answers[1], f"answers are {answers[0]} after saving and loading, {answers[1]} before"
