"""Settings from YAML and done markers."""

import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.pretrained.language_model import LanguageModelSettings
from lit_eve.nano.progress import is_done, mark_done, read_settings, results_of
from lit_eve.nano.world.datasets import WorldSettings


def test_settings_come_from_yaml_and_overrides(tmp_path):
    path = tmp_path / "world.yaml"
    path.write_text("pretrain: 100\nscenes:\n  counts: [1, 2]\n")
    settings = read_settings(WorldSettings, path, test=8)
    assert settings.pretrain == 100 and settings.test == 8
    assert settings.scenes.counts == (1, 2)
    assert settings.scenes.long_side == WorldSettings().scenes.long_side


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("pretrian: 100", "pretrian"),
        ("scenes:\n  conts: [1]", "conts"),
        ("pretrain: many", "pretrain"),
        ("pretrain: 0", "pretrain"),
        ("scenes:\n  counts: [7]", "counts"),
    ],
)
def test_a_typo_fails_and_is_named(tmp_path, text, word):
    path = tmp_path / "world.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_settings(WorldSettings, path)


def test_work_is_done_once_and_with_the_same_settings(tmp_path):
    settings = LanguageModelSettings(steps=3)
    assert not is_done(tmp_path, settings)
    mark_done(tmp_path, settings, {"loss": 1.5})
    assert is_done(tmp_path, settings)
    assert results_of(tmp_path) == {"loss": 1.5}
    with pytest.raises(ConfigError, match="steps"):
        is_done(tmp_path, LanguageModelSettings(steps=4))
    assert [path.name for path in tmp_path.iterdir()] == ["done.json"]
