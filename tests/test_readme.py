"""What the documents say is tried: commands, code blocks, quoted files, numbers and tables."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import yaml

from lit_eve.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DATA_FORMAT, EVALUATION, PARITY, VARIANTS = (
    (ROOT / f"docs/{name}.md").read_text() for name in ("data_format", "evaluation", "parity", "variants")
)


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """(the line of text before it, code) of every code block in a language."""
    found = re.findall(rf"([^\n]*)\n\n```{language}\n(.*?)```", text, flags=re.DOTALL)
    assert found
    return found


def quoted_files() -> Iterator[tuple[str, str]]:
    for language in ("python", "yaml"):
        for before, code in blocks(VARIANTS, language):
            if named := re.match(r"The [^`]*`((?:lit_eve|experiments|tests)/[\w/]+\.\w+)`", before):
                yield named[1], code


def commands() -> list[list[str]]:
    lines = "\n".join(code for _, code in blocks(README, "sh")).replace("\\\n", " ").splitlines()
    in_table = re.findall(r"^\| [a-z][^|]* \| `((?:lit-eve|python|launch/)[^`]*)`", README, flags=re.MULTILINE)
    lines += [line if line.startswith("launch/") else f".venv/bin/{line}" for line in in_table]
    return [shlex.split(line, comments=True) for line in lines if line]


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Path:
    """What `make nano` leaves behind, with a model of random weights."""
    from lit_eve.nano.world.benchmarks import write_benchmarks
    from tests.tiny_model import make_tiny

    folder = tmp_path_factory.mktemp("nano")
    for part in make_tiny():
        part.save_pretrained(folder / "model")
    write_benchmarks(folder / "benchmarks", questions=4)
    return folder


@pytest.fixture
def place(nano, tmp_path, monkeypatch) -> Path:
    """A folder like the repository's after `make nano`."""
    shutil.copytree(nano, tmp_path / "runs/nano")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- README


def test_quoted_files_are_what_the_files_say():
    quoted = dict(quoted_files())
    assert len(quoted) == 3
    for path, code in quoted.items():
        assert code in (ROOT / path).read_text(), f"docs/variants.md quotes {path} as it was"
    assert (
        quoted["lit_eve/models/patch_embeddings/linear.py"] == (ROOT / "lit_eve/models/patch_embeddings/linear.py").read_text()
    )


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands(command, place, capsys):
    if command[0] in ("launch/torchrun.sh", "sbatch"):  # what they do is tested in tests/training/test_fsdp.py
        script = next(word for word in command if word.startswith("launch/"))
        assert (ROOT / script).stat().st_mode & 0o111
        assert print_config(*command[command.index(script) + 1 :])["trainer"]["strategy"] == "fsdp2"
    elif command[1] in ("nano", "pack", "plan", "convert", "serve", "sweep") or "MODEL" in command:  # minutes; tested apart
        parser = ArgumentParser()
        import_module(COMMANDS[command[1]][0]).add_arguments(parser)
        assert vars(parser.parse_args(command[2:]))
    elif command[0] == "make":
        assert subprocess.run(["make", "--dry-run", *command[1:]], cwd=ROOT, capture_output=True).returncode == 0
    elif command[0] == ".venv/bin/lit-eve":
        short = ["--max-new-tokens=2"] if command[1] == "evaluate" else []  # random weights come to no end by themselves
        assert main([*command[1:], *short]) == 0
        assert capsys.readouterr().out.strip()
    else:
        assert command[:2] == [".venv/bin/python", "train.py"], "no way to test this command"
        config = print_config(*command[2:])
        assert config["model"]["lr"] == 1e-3 and config["model"]["init_from"]


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_python_blocks(place):
    from PIL import Image

    code = [code for _, code in blocks(README, "python")]
    assert len(code) == 2
    for block in code:
        names: dict = {}
        exec(compile(block, "README.md", "exec"), names)
        if "overlay" in names:
            assert isinstance(names["overlay"]("docs/scene.png", names["seen"].total(), size=512), Image.Image)


def test_variant_composes_with_a_stage():
    config = print_config("fit", "--config", "experiments/variants/linear_patches.yaml")
    assert config["model"]["patch_embedding"] == {"name": "linear", "width": 96}  # nothing of eve_v1 survives
    assert config["model"]["aligner"] and config["trainer"]["default_root_dir"] == "runs/linear_patches"


def test_variant_builds_and_trains(tmp_path):
    from tests.training.world import make_batches, make_decoder, make_module, make_teacher

    make_decoder(tmp_path / "decoder")
    make_teacher(tmp_path / "teacher")
    spec = yaml.safe_load((ROOT / "experiments/variants/linear_patches.yaml").read_text())["model"]["patch_embedding"]
    module = make_module(tmp_path, patch_embedding=spec)
    module.configure_model()
    (batch,) = make_batches(module, [[[[1]]]])
    module.model(**{key: batch[key] for key in batch if key not in ("sample_ids", "num_padding")}).loss.backward()
    assert type(module.model.patch_embedding).__name__ == "LinearPatchEmbedding"
    assert all(p.grad is not None for p in module.model.patch_embedding.parameters())


def test_parity_tables_say_what_is_asserted():
    _, *tables = re.split(r"^`tests/(models/\S+)\.py`", PARITY, flags=re.MULTILINE)
    found = {path.rpartition("/")[2] for path in tables[::2]}
    assert found >= {path.stem for path in (ROOT / "tests" / "models").glob("test_parity_*.py")}
    for path, text in zip(tables[::2], tables[1::2], strict=True):
        parity = import_module(f"tests.{path.replace('/', '.')}")
        rows = re.findall(r"^\| (?:both )?(loss|logit|gradient)[^|]* \| [^|]+ \| (1e-\d) \|$", text, flags=re.MULTILINE)
        expected = {"loss": parity.LOSS, "logit": parity.LOGITS, "gradient": parity.GRADIENT}
        assert {name: float(value) for name, value in rows} == expected and len(rows) == 3, path


def print_config(*arguments: str) -> dict:
    """What `python train.py ... --print_config` prints in the repository."""
    argv = ["train.py", *arguments, "--print_config"]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as exit,
    ):
        runpy.run_path("train.py", run_name="__main__")
    assert not exit.value.code, exit.value.code
    return yaml.safe_load(printed.getvalue())


# ---- docs/data_format.md


def test_data_format_examples(tmp_path, monkeypatch):
    from lit_eve.data.shards import ShardReader, parse_text
    from tests.tiny_model import make_tiny, scene_image

    monkeypatch.chdir(tmp_path)
    scene_image().save("cat.jpg")
    example = blocks(DATA_FORMAT, "json")[0][1]
    sample = parse_text("cat_17", {"json": example.encode()})
    assert sample.conversation[1]["value"] == "A cat." and sample.metadata["source"]
    ((_, code),) = blocks(DATA_FORMAT, "python")
    exec(compile(code, "data_format.md", "exec"), {})

    from lit_eve.data import PretrainDataModule
    from lit_eve.processing import TeacherGrid

    (shard,) = Path("shards/captions").glob("*.tar")
    assert ShardReader([shard]).read(0, 0, shard.stat().st_size).key == "cat_17"
    _, processor = make_tiny()
    data = PretrainDataModule(train="shards/captions", max_tokens=256, num_workers=0).attach(
        processor, teacher_grid=TeacherGrid(64, 8)
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    kept = sorted(re.sub(r"-[0-9a-f]{16}", "", path.name) for path in Path("shards/captions/.lit_eve").iterdir())
    assert kept == ["shard-000000.index.npz", "shard-000000.tokens.npz"]
    table = DATA_FORMAT[DATA_FORMAT.index("| key | shape and type") :]
    rows = [row.split(" | ")[:2] for row in re.findall(r"^\| (`.*) \|$", table, flags=re.MULTILINE)]
    documented = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented.pop("teacher_features")  # they come in place of the pixels
    assert set(documented) == set(batch)
    for name, kind in documented.items():
        if dtype := re.search(r"u?int\d+", kind):
            assert str(batch[name].dtype) == f"torch.{dtype[0]}", name
            assert batch[name].dim() == len([part for part in re.match(r"\((.*?)\)", kind)[1].split(",") if part.strip()]), name


def test_the_files_of_all_benchmarks_are_listed_with_their_sources():
    from lit_eve.evaluation.benchmarks import BENCHMARKS

    table = EVALUATION[EVALUATION.index("| folder | files in it |") :].split("\n\n")[0]
    for benchmark in BENCHMARKS.values():
        assert f"| `{benchmark.name}` |" in table
        for source in benchmark.sources:
            assert f"`{source.path}" in table, source.path
            assert source.url.split(":", 2)[1].lstrip("/").partition(" ")[0].rstrip(",") in table, source.url
        for size in benchmark.sizes.values():
            assert f"{size:,}" in table


# ---- docs/interpretation.md


def test_interpretation_examples(place, capsys):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from lit_eve.data import ShardWriter
    from tests.tiny_model import make_tiny, scene_image

    for name in ("test_questions", "test_captions"):
        with ShardWriter(f"runs/nano/data/{name}") as shards:
            for number in range(3):
                turns = [{"from": "human", "value": "<image>\nwhere is the red circle?"}, {"from": "gpt", "value": "row-1"}]
                shards.write({"id": str(number), "conversations": turns}, [scene_image(number)])
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**size, image_size=64, patch_size=8)).save_pretrained("runs/nano/teacher")
    for run in ("1_prealign", "2_pretrain", "3_finetune"):
        model, processor = make_tiny()
        model.attach_teacher("runs/nano/teacher", {"name": "layerwise", "layer_interval": 1})
        for part in (model, processor):
            part.save_pretrained(f"runs/nano/{run}/model")
    page = (ROOT / "docs/interpretation.md").read_text()
    names: dict = {}
    for _, code in blocks(page, "python"):
        exec(compile(code, "interpretation.md", "exec"), names)
    for name in re.findall(r'savefig\("(.*?)"\)', page):
        assert Path(name).stat().st_size > 1000
    assert capsys.readouterr().out.count("->") == 3
    assert names["hidden"].ndim == 3 and names["last_row"].shape[2] == 1
