from __future__ import annotations

from collections.abc import Iterator

import pytest

from lit_eve.demo.web.engine import Engine
from tests.demo.web.browser import browser, pages  # noqa: F401
from tests.tiny_model import make_tiny


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Two models of random weights."""
    engine = Engine({"one": make_tiny(), "two": make_tiny(seed=1)}, batch_size=4)
    yield engine
    engine.close()
