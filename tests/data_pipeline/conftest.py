from __future__ import annotations

from types import SimpleNamespace

import pytest
from made_shards import make_processor, write_shards

from lit_eve.processing import EveProcessor


@pytest.fixture(scope="session")
def processor() -> EveProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """100 samples in 7 shards."""
    folder = tmp_path_factory.mktemp("shards")
    return SimpleNamespace(path=folder, keys=write_shards(folder, 100))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the user's cache."""
    monkeypatch.setenv("LIT_EVE_CACHE", str(tmp_path_factory.mktemp("cache")))
