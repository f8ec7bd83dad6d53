from __future__ import annotations

from pathlib import Path

import pytest

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Arm, Metric, read_ablation
from tests.sweeps.tiny import ARMS, write_ablation


def test_what_the_file_says(tmp_path: Path) -> None:
    paper = {"source": "EVE v1, table 4", "better": ["with"]}
    read = read_ablation(write_ablation(tmp_path, paper=paper, seeds=[3, 5], equal="flops", resources={"cores": 2, "gpus": 1}))
    assert (read.name, read.question, read.reference) == ("question", "Does a teacher help?", "without")
    assert read.base == tmp_path / "recipe" and read.stages == ("1_prealign", "2_pretrain") and read.seeds == (3, 5)
    assert [arm.name for arm in read.arms] == ["with", "without"]
    assert read.metrics[0] == Metric("caption_loss", "lower", 0.1) and read.metrics[0].sign == -1
    assert (read.paper.sign("with"), read.paper.sign("without")) == (1, 0)
    assert (read.resources.cores, read.resources.gpus) == (2, 1)


def test_what_an_arm_changes_in_all_stages_is_changed_in_each() -> None:
    arm = Arm("all", {"stages": {"model.lr": 1, "seed": 2}, "1_prealign": {"model.lr": 3}, "world": {"text": 4}})
    assert arm.of("1_prealign") == {"model.lr": 3, "seed": 2} and arm.of("2_pretrain") == {"model.lr": 1, "seed": 2}


def test_a_base_of_the_command_line_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_ablation(tmp_path / "files")
    monkeypatch.chdir(tmp_path)
    assert read_ablation(path, "other").base == Path("other")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "files" / "recipe").mkdir(parents=True)
    (tmp_path / "recipe").mkdir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrik": {}}, "no 'metrik' in the file; it takes paper, base"),
        ({"reference": "none"}, r"reference must be one of the arms \(with, without\), got 'none'"),
        ({"arms": [1]}, r"arms must be a mapping from names, got \[1\]"),
        ({"arms": {"a/b": {}}}, "'a/b' cannot be the name of a folder"),
        ({"arms": ARMS | {"x": {"1_prealign": 7}}}, "arms.x.1_prealign must be a mapping from names, got 7"),
        ({"arms": ARMS | {"x": {"seed_offset": -1}}}, "arms.x.seed_offset must be a whole number of at least 0, got -1"),
        ({"arms": ARMS | {"x": {"against": "y"}}}, r"arms.x.against must be another arm \(with, without\), got 'y'"),
        ({"arms": ARMS | {"x": {"against": "x"}}}, r"arms.x.against must be another arm \(with, without\), got 'x'"),
        ({"arms": {"with": {}, "without": {"against": "with"}}}, "got 'with'; without is the reference of all"),
        ({"arms": ARMS | {"x": {"against": "with"}}, "equal": "flops"}, "x.against: with equal: flops all arms are made equal"),
        ({"seeds": 0}, "seeds must be how many, or a list of different whole numbers of at least 0, got 0"),
        ({"seeds": [1, 1]}, r"different whole numbers of at least 0, got \[1, 1\]"),
        ({"seeds": "many"}, "got 'many'"),
        ({"metrics": {"caption_loss": {"better": "more"}}}, "metrics.caption_loss.better must be one of lower, higher"),
        ({"metrics": {"a": {"better": "lower", "difference": 0}}}, "metrics.a.difference must be a number above 0, got 0"),
        ({"equal": "money"}, "equal must be one of steps, flops, seconds, got 'money'"),
        ({"paper": {"better": ["without"]}}, "paper.better names 'without'; the arms beside the reference are with"),
        ({"resources": {"cores": 0}}, "resources.cores must be at least 1, got 0"),
        ({"resources": {"gpu": 1}}, "no 'gpu' in resources; it takes cores, gpus, memory_gb"),
        ({"base": 3}, "base must be the folder of a recipe, got 3"),
        ({"stages": "1_prealign"}, "stages must be a list of names"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, content: dict, message: str) -> None:
    path = write_ablation(tmp_path, **content)
    with pytest.raises(ConfigError, match=f"^{path}: .*{message}"):
        read_ablation(path)


def test_a_file_that_asks_nothing_is_refused(tmp_path: Path) -> None:
    path = write_ablation(tmp_path)
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(ConfigError, match="the first line must be the question"):
        read_ablation(path)
    with pytest.raises(ConfigError, match="none.yaml cannot be read"):
        read_ablation(tmp_path / "none.yaml")
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        read_ablation(path)
