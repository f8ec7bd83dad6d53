from __future__ import annotations

import shutil

import pytest

from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.checkpoints.weights import iterate_weights
from tests.models import reference, reference_v2


def load_official(teacher: bool = True, **kwargs) -> EveForConditionalGeneration:
    """The reference weights in our layout."""
    config = reference.LAYOUT.read_config(reference.WEIGHTS)
    weights = dict(iterate_weights(reference.WEIGHTS))
    aligner = {key.removeprefix("aligner."): weights.pop(key) for key in list(weights) if key.startswith("aligner.")}
    model = EveForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, **kwargs)
    if teacher:
        model.attach_teacher(config.teacher)
        model.aligner.load_state_dict(aligner)
    return model.train()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """What is no folder is not looked for on the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def model() -> EveForConditionalGeneration:
    return load_official()


@pytest.fixture
def official_folder(tmp_path):
    """A checkpoint as the official code leaves it, with a tokenizer."""
    folder = shutil.copytree(reference.WEIGHTS, tmp_path / "EVE-tiny")
    shutil.copytree(reference.TOKENIZER, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def official_v2_folder(tmp_path):
    """A checkpoint as the official EVE v2 code leaves it, with a tokenizer."""
    folder = shutil.copytree(reference_v2.WEIGHTS, tmp_path / "EVE-v2-tiny")
    (folder / "state_dict_keys.json").unlink()
    shutil.copytree(reference_v2.TOKENIZER, folder, dirs_exist_ok=True)
    return folder
