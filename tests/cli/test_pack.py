"""lit-eve pack --config: tokens are counted for the training that the recipe describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lit_eve.cli import main
from lit_eve.data import ShardReader
from lit_eve.data.lengths import fingerprint, load_table
from lit_eve.data.shards.index import index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.training.recipe import read_recipe
from tests.training import world as micro


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """The recipe of stage 1 (template: plain) for a tiny decoder."""
    model = {"decoder": str(micro.make_decoder(tmp_path / "decoder")), "template": "vicuna_v1", "geometry": micro.tiny.GEOMETRY}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"base": str(micro.ROOT / "experiments/nano/1_prealign.yaml"), "model": model}))
    return path


def test_lengths_are_those_of_the_recipe(tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (3000, 1)).save(tmp_path / "narrow.png")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat on a mat."}]
    records = [{"id": f"s{i}", "image": name, "conversations": talk} for i, name in enumerate(["a.png", "narrow.png", "a.png"])]
    (tmp_path / "a.json").write_text(json.dumps(records))
    arguments = ["pack", f"--annotations={tmp_path / 'a.json'}", f"--output={tmp_path / 'out'}", "--processes=1"]
    assert main(arguments) == 0 and "indexed     1 shards" in capsys.readouterr().out
    for _ in range(2):  # for shards that are there already, and again
        assert main([*arguments, f"--config={recipe_file}"]) == 0
        text = capsys.readouterr().out

    recipe = read_recipe(str(recipe_file))
    assert recipe.template == "plain"
    (shard,) = list_shards(tmp_path / "out")
    index, reader = index_shard(shard), ShardReader([shard])
    sample = reader.read(0, int(index.offset[0]), int(index.size[0]))
    length = len(recipe.processor.encode_sample(sample, "plain")["input_ids"])
    assert f"tokens      {2 * length} of 3 samples in 1 shards" in text
    assert "unusable    1 samples with this recipe; the first: s1" in text and "narrower than the limit" in text
    assert (shard.parent / ".lit_eve" / f"{shard.stem}.tokens-{fingerprint(recipe.processor, 'plain')}.npz").exists()
    assert load_table([tmp_path / "out"], recipe.processor, recipe.template).length.tolist() == [length, 0, length]

    # the same for shards that are there already, wherever they come from
    assert main(["pack", f"--annotations={tmp_path / 'out'}", f"--config={recipe_file}", "--processes=1"]) == 0
    assert f"tokens      {2 * length} of 3 samples" in capsys.readouterr().out


def test_a_broken_recipe_is_said_before_anything_is_packed(
    tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("template", "temlate"))
    (tmp_path / "a.json").write_text("[]")
    assert (
        main(["pack", f"--annotations={tmp_path / 'a.json'}", f"--output={tmp_path / 'out'}", f"--config={recipe_file}"]) == 2
    )
    assert "temlate" in capsys.readouterr().err and not (tmp_path / "out").exists()
