"""Code of the user's own, outside of the repository: brought by name, remembered by name, never imported by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.imports import find_class, import_own, module_of, path_of
from tests.training import world as micro

VARIANTS = """
import torch
from torch import nn
from lit_eve.evaluation.benchmarks import BENCHMARKS, Benchmark, Question, Source
from lit_eve.evaluation.metrics import BenchmarkMetric
from lit_eve.data import FinetuneDataModule
from lit_eve.losses import ALIGNERS, LayerwiseAligner
from lit_eve.models import PATCH_EMBEDDINGS, PROJECTORS, LinearPatchEmbedding
from lit_eve.processing import Dialogue, templates
from lit_eve.training.stages import STAGES, Rule, Stage


@PATCH_EMBEDDINGS.register("NAME_patches")
class Patches(LinearPatchEmbedding):
    pass


@PROJECTORS.register("NAME_projector")
class Projector(nn.Linear):
    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size)


@ALIGNERS.register("NAME_aligner")
class Aligner(LayerwiseAligner):
    pass


@templates.register("NAME_template")
class Short(Dialogue):
    def __init__(self) -> None:
        super().__init__(system="short.")


class Exact(BenchmarkMetric):
    def rate(self, reference, answer):
        return float(answer == reference)

    def summarize(self, values, answered):
        return {"overall": 100 * float(values[answered].mean())}


@BENCHMARKS.register
class Mine(Benchmark):
    name, title, metric_class = "NAME_benchmark", "Mine", Exact
    sources = (Source("questions.txt", "1 kB", "nowhere"),)

    def read(self, folder, split, problems):
        for number, line in enumerate((folder / "questions.txt").read_text().splitlines()):
            yield Question(number, line, (), "yes", f"questions.txt, line {number + 1}")


class Data(FinetuneDataModule):
    pass


STAGES["NAME_stage"] = Stage("NAME_stage", lr=1e-3, rules=[Rule("patch_embedding|projector|aligner")])
"""


def write_module(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(VARIANTS.replace("NAME", name))
    return path


def settings(name: str) -> dict[str, str]:
    return {
        "model.patch_embedding": f"{{name: {name}_patches, width: 16}}",
        "model.projector": f"{{name: {name}_projector}}",
        "model.aligner": f"{{name: {name}_aligner, layer_interval: 1, num_heads: 4}}",
        "model.template": f"{name}_template",
        "model.stage": f"{name}_stage",
    }


def own_arguments(world: Path, run: Path, name: str) -> list[str]:
    fit = micro.arguments(world, run, **{"trainer.max_steps": 2})
    fit = [a for a in fit if not a.startswith(("--model.patch_embedding.", "--model.aligner.", "--model.template"))]
    return [*fit, *(f"--{key}={value}" for key, value in settings(name).items()), f"--data={name}.Data", "--data.template=null"]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """An empty folder with a module and a YAML in it, and what `train.py` left there."""
    place = tmp_path_factory.mktemp("outside")
    write_module(place, "brought")
    (place / "own.yaml").write_text("imports: [brought]\n")
    run(place, sys.executable, micro.ROOT / "train.py", *own_arguments(world, place / "run", "brought"), "--config", "own.yaml")
    return place


def run(place: Path, *command: object, code: int = 0) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(micro.ROOT)}
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr + done.stdout


def test_everything_of_ones_own_trains_from_an_empty_folder(trained):
    written = yaml.safe_load((trained / "run/config.yaml").read_text())
    assert written["imports"] == ["brought"] and written["data"]["class_path"].endswith("brought.Data")
    config = json.loads((trained / "run/model/config.json").read_text())
    assert config["imports"] == {"patch_embedding": "brought", "projector": "brought", "aligner": "brought"}
    assert json.loads((trained / "run/model/processor_config.json").read_text())["template_module"] == "brought"
    (checkpoint,) = (trained / "run/checkpoints").glob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["imports"] == ["brought"]


ASK = """
import lit_eve, sys
from lit_eve.cli import main

def says(*arguments):
    print(main([*arguments]))

chat = ["chat", "--model", "run", "--max-new-tokens", "2", "what?"]
evaluate = ["evaluate", "--model", "run", "--benchmarks", "brought_benchmark", "--data", "data", "--output", "eval",
            "--accelerator", "cpu", "--devices", "1", "--max-new-tokens", "2", "--num-workers", "0"]
says(*chat)
says(*evaluate)
for load in (lambda: lit_eve.load("run"), lambda: lit_eve.EveForConditionalGeneration.from_pretrained("run/model")):
    try:
        load()
    except lit_eve.errors.ConfigError as error:
        print(error)
assert "brought" not in sys.modules
print("now with it")
says(*chat, "--import", "brought.py")
says(*evaluate, "--import", "brought")
says("plan", "recipe.yaml", "--gpus", "1", "--samples", "100")
"""


def test_what_lacks_the_module_names_it_and_what_has_it_works(trained):
    (trained / "data/brought_benchmark").mkdir(parents=True)
    (trained / "data/brought_benchmark/questions.txt").write_text("is it red?\nis it blue?\n")
    recipe = yaml.safe_load((trained / "run/config.yaml").read_text())
    (trained / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before, after = run(trained, sys.executable, "-c", ASK).split("now with it")
    assert before.count("the template 'brought_template' from `brought`: import it, or pass --import brought") == 2
    assert "the patch embedding 'brought_patches' from `brought`: import it" in before
    assert "unknown benchmark 'brought_benchmark'" in before and "Mine" in after
    assert "2\n" not in after and [line for line in after.splitlines() if line == "0"] == ["0"] * 3


# ---- what is no module


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here", "there is no module 'no_such_module_here'"),
        ("no/such.py", "there is no file no/such.py"),
        ("not a name", "'not a name' is no name of a module"),
        ("", "is no name"),
        ("os.nothing", "there is no module 'os.nothing'"),
    ],
)
def test_what_is_no_module(name, message):
    with pytest.raises(ConfigError, match=message):
        import_own([name])


def test_what_the_module_raises_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("needs_more.py").write_text("import something_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="something_not_installed"):
        import_own(["needs_more"])


def test_a_file_with_the_name_of_another_module(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # else processes that later tests start would import this json
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="rename the file"):
        import_own([str(tmp_path / "json.py")])


def test_the_yaml_takes_names_only(tmp_path, capsys):
    from lit_eve.training.cli import main

    (tmp_path / "a.yaml").write_text("imports: {a: b}\n")
    with pytest.raises(SystemExit, match="imports takes names of modules"):
        main(["fit", "--config", str(tmp_path / "a.yaml")])


def test_imports_of_all_files_add_up(tmp_path):
    from lit_eve.training.cli.config_files import own_code, with_bases

    (tmp_path / "a.yaml").write_text("imports: first\nmodel_class: first.A\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nimports: [second]\nmodel_class: second.B\n")
    given = ["fit", "--import", "zeroth", "--config", str(tmp_path / "b.yaml"), "--imports+=third", "--import=first"]
    arguments, names, model_class = own_code(with_bases(given))
    assert names == ["zeroth", "first", "second", "third"] and model_class == "second.B"
    assert arguments[-1] == '--imports=["zeroth", "first", "second", "third"]' and "--import" not in arguments


def test_no_class_takes_a_class_back(tmp_path):
    from lit_eve.training.cli.config_files import own_code, with_bases

    (tmp_path / "a.yaml").write_text("model_class: first.A\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmodel_class: null\n")
    for more in (["--config", str(tmp_path / "b.yaml")], ["--config", str(tmp_path / "a.yaml"), "--model_class=null"]):
        assert own_code(with_bases(["fit", *more]))[2] is None


def test_names_of_classes():
    assert module_of(lit_eve.EveConfig) is None and path_of(lit_eve.LitEve) is None
    assert path_of(Path) == f"{Path.__module__}:Path" and find_class(path_of(Path)) is Path
    assert find_class("never_imported:Thing") is None
