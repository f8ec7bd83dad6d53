"""docs/extending.md, run as it stands there: one module, outside of the repository."""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import lit_eve
from lit_eve.cli import main as lit_eve_command
from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.tasks import find_tasks
from lit_eve.losses import target_positions_of
from lit_eve.processing import templates
from lit_eve.testing import check_patch_embedding, check_variant
from lit_eve.training.cli import EveCLI
from lit_eve.training.optimizers import OPTIMIZERS
from tests.models import tiny
from tests.models.variants import REGISTRIES
from tests.training import world as micro

PAGE = (micro.ROOT / "docs/extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def command(subcommand: str) -> list[str]:
    """The arguments of a command of the page, from its subcommand on."""
    (line,) = (line for line in blocks("sh")[0].splitlines() if subcommand in line.split())
    words = line.split()
    return words[words.index(subcommand) :]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the page's module and YAML, and what its first command leaves there in a few steps."""
    place = tmp_path_factory.mktemp("mine")
    (place / "my_eve.py").write_text("\n\n".join(blocks("python")))
    (place / "my.yaml").write_text(blocks("yaml")[0])
    micro.make_decoder(place / "decoder")
    few = {"max_steps": 4, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [*sys.path])
        for registry in (*REGISTRIES.values(), templates, OPTIMIZERS):  # other tests must not find the page's parts
            patch.setattr(registry, "_variants", dict(registry._variants))
        patch.setitem(BENCHMARKS, "colours", None)
        del BENCHMARKS["colours"]
        EveCLI(args=[*command("fit"), *(f"--trainer.{key}={value}" for key, value in few.items())])
        yield place


def test_all_of_it_trains(place):
    assert len(micro.scalars(place / "runs/mine", "train/second_token_loss")) == 4
    assert not (place / "runs/mine/skipped.jsonl").exists()
    rates = {tag: micro.scalars(place / "runs/mine", f"lr/{tag}")[4] for tag in ("stage", "language_model.model.layers.1")}
    assert rates["stage"] == pytest.approx(10 * rates["language_model.model.layers.1"])
    assert json.loads((place / "runs/mine/model/config.json").read_text())["imports"] == {
        "decoder_kind": "my_eve",
        "patch_embedding": "my_eve",
        "projector": "my_eve",
        "supervision.brightness": "my_eve",
    }
    trained = lit_eve.load(place / "runs/mine")[0].state_dict()
    assert not any((value == 1).any() for name, value in trained.items() if name.endswith("layers.1.mlp.act_fn.1.weight"))
    assert len(micro.scalars(place / "runs/mine", "train/brightness_loss")) == 4
    assert (place / "runs/mine/model/brightness.safetensors").exists()
    before = torch.load(next((place / "runs/mine/checkpoints").glob("*.ckpt")), weights_only=True)
    assert "second_head.weight" in before["state_dict"] and "my_eve" in before["hyper_parameters"]["imports"]


def test_the_part_keeps_the_contract(place):
    import_module("my_eve")
    check_patch_embedding({"name": "with_rows", "width": 16})


def test_a_composition_keeps_the_contract(place):
    import_module("my_eve")
    page: dict[str, Any] = {}
    exec(blocks("py")[0], page)
    page["test_my_parts_keep_the_contract"]()
    assert check_variant({"geometry": {"name": "shrunk", "patch_size": 4}}) == {}
    assert check_variant({"positions": {"name": "one_step"}, "decoder_kind": {"name": "sloped"}}) == {}
    assert check_variant({"aligner": {"name": "last"}, "projector": {"name": "normed"}}) == {}
    assert check_variant({"image_attention": {"name": "secluded"}}, training_class=import_module("my_eve").EvenEve) == {}


def test_the_table_has_a_row_for_every_section():
    rows = re.findall(r"^\| .* \| \[.*\]\(#(.*)\) \|", PAGE, flags=re.MULTILINE)
    titles = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE)]
    assert sorted(rows) == sorted({*titles} - {"where-your-code-is", "does-it-work?"})
    kinds = {"template", "optimizer", "aligner", *REGISTRIES}
    assert kinds <= {key.split(".")[-1] for key in re.findall(r"`([\w.]+)`", PAGE[: PAGE.index("## ")])}


@pytest.mark.parametrize(
    "block", blocks("python") + blocks("py"), ids=lambda block: (re.findall(r"(?:class|def) (\w+)", block) or ["stage"])[0]
)
def test_examples_have_ten_lines(block):
    code = [line for line in block.splitlines() if line.strip()]
    assert len(code) <= 10, "blank lines are not counted, imports are"
    statements = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.stmt)]
    places = [node.lineno for node in statements]
    assert len(places) == len(set(places)), "a statement has a line of its own"
    assert max(map(len, code)) <= 128


def test_every_example_imports_what_it_needs():
    """A block that is copied alone runs; only what says that it goes on from the block above it does not."""
    alone = [block for block in blocks("python") if "import" in block]
    assert len(alone) == len(blocks("python")) - 1
    for block in alone:
        tree = ast.parse(block)
        bound = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree) for alias in getattr(node, "names", ())}
        bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        bound |= {node.id for node in named if isinstance(node.ctx, ast.Store)}
        assert {node.id for node in named} - bound - set(dir(builtins)) <= {"Exact"}  # the metric of the benchmark below it


def test_the_geometry_is_a_part_of_the_model(place, tmp_path):
    import_module("my_eve")
    geometry = {"name": "shrunk", "patch_size": 4, "divisor": 3}
    model = tiny.model(geometry=geometry).eval()
    assert model.geometry.token_grids(100, 50) == [(2, 4)]
    assert model.config.imports == {"geometry": "my_eve"}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.geometry == model.geometry


def test_the_supervision_changes_tokens(place):
    import_module("my_eve")
    model = tiny.model(supervision=[{"name": "brightness_in_the_dark"}])
    model.attach_supervision()
    batch, seen = tiny.packed([tiny.samples(model, [2, 1])]) | {"image_seeds": torch.arange(3)}, []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**batch)
    blank = ~seen[0].any(-1)
    slots = batch["input_ids"] == model.config.image_token_id
    assert 0.02 < blank.sum() / slots.sum() < 0.3 and not (blank & ~slots).any()


def test_the_benchmark_scores(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "benchmarks/colours/images").mkdir(parents=True)
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(place / f"benchmarks/colours/images/{colour}.png")
    quick = ["--output", "eval", "--accelerator", "cpu", "--devices", "1", "--max-new-tokens", "2", "--num-workers", "0"]
    assert lit_eve_command([*command("evaluate"), *quick]) == 0
    assert "Colours" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="files are missing") as refused:
        find_tasks("all", place / "benchmarks")
    assert "Colours" not in str(refused.value)  # all are those of the papers


def test_the_mask_secludes_images(place, tmp_path):
    import_module("my_eve")
    parts = {"patch_embedding": {"name": "linear", "width": 16}, "image_attention": {"name": "secluded"}}
    model = tiny.model(**parts).eval()
    rows = tiny.samples(model, [1, 2])
    plain, packed = (
        {key: value for key, value in batch.items() if key != "teacher_pixel_values"}
        for batch in (tiny.padded(rows), tiny.packed([rows]))
    )
    one = {key: value for key, value in tiny.padded(rows[:1]).items() if key not in ("labels", "teacher_pixel_values")}
    slots = one["input_ids"][0] == model.config.image_token_id
    pixels, words = one["pixel_values"].clone(), one["input_ids"].clone()
    pixels[-1] = 255 - pixels[-1]
    words[0, 1] = 3 + (words[0, 1] - 2) % 50
    with torch.no_grad():
        assert_close(model(**plain).loss, model(**packed).loss, rtol=1e-4, atol=1e-4)
        logits = model(**one).logits[0]
        other_image = (model(**one | {"pixel_values": pixels}).logits[0] - logits).abs().amax(-1)
        other_word = (model(**one | {"input_ids": words}).logits[0] - logits).abs().amax(-1)
    first, last = slots.nonzero().flatten()[[0, -1]].tolist()
    assert other_image[:first].max() == 0 and other_image[first] > 1e-4, "an image is seen from its beginning"
    assert other_word[first:last].max() < 1e-6 and other_word[last + 1] > 1e-4, "what is before it, is not"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["imports"] == {"image_attention": "my_eve"}
    again = lit_eve.EveForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(again(**plain).loss, model(**plain).loss)


def test_images_take_one_step(place, tmp_path):
    import_module("my_eve")
    model = tiny.model(patch_embedding={"name": "linear", "width": 16}, positions={"name": "one_step"}).eval()
    rows = tiny.samples(model, [1, 2])
    places = model.position_tokens(rows[1]["input_ids"][None], rows[1]["image_grid_hw"])[0]
    words = (rows[1]["input_ids"] != model.config.image_token_id).sum()
    assert places[-1].tolist() == [words + 3] * 3 + [words + 4], "two class tokens and two images are four steps"
    plain, packed = (
        {key: value for key, value in batch.items() if key != "teacher_pixel_values"}
        for batch in (tiny.padded(rows), tiny.packed([rows]))
    )
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["imports"] == {"positions": "my_eve"}
    again = lit_eve.EveForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(again(**plain).loss, model(**packed).loss, rtol=1e-4, atol=1e-4)


def test_the_model_class_is_saved_by_its_name(place, tmp_path):
    own = import_module("my_eve")
    torch.manual_seed(0)
    geometry = tiny.GEOMETRY | {"class_token": False, "split_token": False}
    model = own.EvenImages(tiny.config(patch_embedding={"name": "linear", "width": 16}, geometry=geometry)).eval()
    plain = {key: value for key, value in tiny.padded(tiny.samples(model, [1, 2])).items() if key != "teacher_pixel_values"}
    tokens = model.embed_inputs(*(plain[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))
    length = model.get_input_embeddings().weight.norm(dim=1).mean()
    slots = plain["input_ids"] == model.config.image_token_id
    assert_close(tokens[slots].norm(dim=1), length.expand(int(slots.sum())))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["imports"] == {"model": "my_eve:EvenImages"}
    loaded = own.EvenImages.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_close(loaded(**plain).loss, model(**plain).loss)


def test_the_second_token_is_that_of_the_same_sample(place):
    own = import_module("my_eve")
    model = tiny.model(patch_embedding={"name": "linear", "width": 16})
    size = model.config.text_config
    module = SimpleNamespace(second_head=torch.nn.Linear(size.hidden_size, size.vocab_size))
    rows = tiny.samples(model, [1, 0, 2])
    expected = 0.0
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        batch = tiny.padded([row])
        states = model(**{key: value for key, value in batch.items() if key != "teacher_pixel_values"}).last_hidden_state[0]
        logits = module.second_head(states).log_softmax(-1)
        expected -= sum(logits[t, ids[t + 2]] for t in range(len(ids) - 2) if labels[t + 1] >= 0 and labels[t + 2] >= 0)
    packed = {key: value for key, value in tiny.packed([rows]).items() if key != "teacher_pixel_values"}
    batch = packed | {"target_positions": target_positions_of(packed["labels"])}
    loss, per, _ = own.TwoTokenEve.auxiliary_losses(module, batch, model(**packed))["second_token_loss"]
    assert per == "tokens"
    assert_close(loss, expected, rtol=1e-4, atol=1e-4)
