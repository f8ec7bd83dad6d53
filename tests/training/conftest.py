from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import world as micro


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder with ``decoder``, ``teacher`` and shards in ``train`` and ``validation``."""
    folder = tmp_path_factory.mktemp("world")
    micro.make_decoder(folder / "decoder")
    micro.make_teacher(folder / "teacher")
    micro.make_shards(folder / "train", 60)
    micro.make_shards(folder / "validation", 10, seed=1)
    return folder
