from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tiny, scene_image


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of random weights, beside two images."""
    folder = tmp_path_factory.mktemp("run") / "model"
    for part in make_tiny():
        part.save_pretrained(folder)
    for seed in range(2):
        scene_image(seed).save(folder.parent / f"{seed}.png")
    return folder
