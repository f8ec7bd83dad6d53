"""What the command line does not take, it says in one sentence."""

from __future__ import annotations

import pytest
import yaml

from lit_eve.errors import ConfigError
from lit_eve.training.cli.config_files import config_first, with_bases
from lit_eve.training.recipe import _Reader
from tests.training import world as micro

RECIPE = str(micro.ROOT / "experiments/nano/1_prealign.yaml")


@pytest.fixture(scope="module")
def parse():
    """Parse a fit of a shipped YAML with more arguments; the parser is made once."""
    parser = _Reader(args=["fit", "--config", RECIPE]).parser

    def parse(*arguments: str, config: str = RECIPE):
        return parser.parse_args(with_bases(config_first(["fit", *arguments, "--config", config]))).fit

    return parse


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--modle.lr=1", "there is no setting modle.lr; did you mean model.lr?"),
        ("--model.learning_rate=1", "there is no setting model.learning_rate; --help lists all there are"),
        ("--data.trian=x", "there is no setting data.trian; did you mean data.train?"),
        ("--trainer.max_stepss=3", "there is no setting trainer.max_stepss; did you mean trainer.max_steps?"),
        ('--data.train=[{"paht": "x"}]', "there is no setting data.train.paht; did you mean data.train.path?"),
        ("--model.lr=abc", "model.lr must be a number or null, got 'abc'"),
        ("--data.rows=x", "data.rows must be a whole number, got 'x'"),
        ("--resume=maybe", "resume must be one of auto, never, got 'maybe'"),
        ("--resume=nevr", "resume must be one of auto, never, got 'nevr'; did you mean never?"),
        ("--model.stage.lr=1.0", "model.stage: Stage needs name, rules"),
        ("--trainer.logger=WandbLoger", "trainer.logger: there is no class 'WandbLoger'; did you mean WandbLogger?"),
        (
            "--trainer.callbacks+=EarlyStoping",
            "trainer.callbacks: there is no class 'EarlyStoping'; did you mean EarlyStopping?",
        ),
        ("--data=FinetunDataModule", "data: there is no class 'FinetunDataModule'; did you mean FinetuneDataModule?"),
        ("--trainer.max_steps", "trainer.max_steps needs a value"),
        ("-model.lr=1", "-model.lr=1 is no setting: they begin with two dashes"),
        ("--trainer.detect_anomaly=5.5", "trainer.detect_anomaly must be true or false, got '5.5'"),
        ("foo", "'foo' is no setting; settings are written --key=value, with the value in quotes where it has blanks"),
    ],
)
def test_an_argument_that_is_not_taken(parse, argument, message):
    config = [] if "=" in argument else ["--config", RECIPE]
    with pytest.raises(ConfigError) as error:
        parse(*config, argument)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modle": {"lr": 3}}, "there is no setting modle.lr; did you mean model.lr?"),
        ({"model": {"lrr": 3}}, "there is no setting model.lrr; did you mean model.lr?"),
        ({"data": {"init_args": {"rowz": 3}}}, "there is no setting data.rowz; did you mean data.rows?"),
        ({"checkpoint": {"keep": "many"}}, "checkpoint.keep must be a whole number, got 'many'"),
        ("a: b: c", "--config {path} cannot be read: mapping values are not allowed here in"),
        ("- a", "--config {path} holds no settings"),
    ],
)
def test_a_file_that_is_not_taken(parse, tmp_path, content, message):
    path = tmp_path / "my.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump({"base": RECIPE} | content))
    with pytest.raises(ConfigError) as error:
        parse(config=str(path))
    assert str(error.value).startswith(message.format(path=path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data is missing: --config names a file that has it"),
        (["--confg", RECIPE, "--data.rows=1"], "no class of data is chosen, which data.rows is a setting of: .*"),
        ([f"--confg={RECIPE}", "--data=FinetuneDataModule"], "there is no setting confg; did you mean config?"),
    ],
)
def test_without_a_file(parse, arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}$".replace("?", r"\?")):
        _Reader(args=["fit", *arguments])


def test_a_choice_of_numbers_and_words(parse):
    with pytest.raises(ConfigError, match="^trainer.precision must be one of 64, 32, 16, transf.* or null, got '8'$"):
        parse("--trainer.precision=8")


def test_training_data_is_a_list_of_paths_and_of_sources(parse):
    train = parse('--data.train=["~/a", {"path": "b", "weight": 2}]').data.init_args.train
    assert train[0] == "~/a" and (train[1].path, train[1].weight) == ("b", 2)


def test_a_file_that_is_not_there(parse):
    with pytest.raises(ConfigError, match="^--config nowhere.yaml cannot be read: No such file or directory$"):
        parse(config="nowhere.yaml")


def test_settings_change_the_file_wherever_they_stand(parse):
    assert parse("--data.rows=7").data.init_args.rows == 7
    assert parse("--data.rows=7").data.class_path.endswith("PrealignDataModule")


@pytest.mark.parametrize(
    ("given", "sorted_"),
    [
        ("fit --a=1 --config f --b=2 -c g", "fit --config f -c g --a=1 --b=2"),
        ("fit --a 1 --config=f", "fit --config=f --a 1"),
        ("fit", "fit"),
        ("", ""),
        ("--help", "--help"),
        ("fit --config", "fit --config"),
    ],
)
def test_files_come_first(given, sorted_):
    assert config_first(given.split()) == sorted_.split()


def test_files_are_found_where_the_home_is(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "low.yaml").write_text(yaml.safe_dump({"base": RECIPE, "model": {"lr": 0.5}}))
    (tmp_path / "top [1].yaml").write_text("base: ~/low.yaml\nmodel: {warmup: 7}\n")
    settings = parse(config="~/top [1].yaml")
    assert (settings.model.lr, settings.model.warmup) == (0.5, 7)
