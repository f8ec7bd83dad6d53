"""Stages: the first rule that fits decides; what cannot be meant is refused."""

from __future__ import annotations

import pytest

from lit_eve.errors import ConfigError
from lit_eve.training import STAGES, Rule, Stage
from lit_eve.training.stages import get_stage, print_stage

NAMES = [
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.mlp.up_proj.weight",
    "language_model.model.layers.1.mlp.up_proj.weight",
    "patch_embedding.class_embedding",
    "projector.0.weight",
    "aligner.norms.0.weight",
]


def test_the_papers_stages():
    prealign = STAGES["prealign"].rates(NAMES)
    assert {name: rate for name, rate in prealign.items() if rate} == dict.fromkeys(NAMES[3:], 4e-4)
    assert set(STAGES["pretrain"].rates(NAMES).values()) == {4e-5}
    assert set(STAGES["finetune"].rates(NAMES).values()) == {2e-5}
    assert [STAGES[name].warmup for name in ("prealign", "pretrain", "finetune")] == [0.03, 0.01, 0.01]


def test_prealign_without_an_aligner_trains_the_rest():
    assert STAGES["prealign"].rates(NAMES[:-1])["projector.0.weight"] == 4e-4


def test_first_match_wins_and_the_rest_is_frozen():
    stage = Stage(
        "mine",
        lr=1e-3,
        rules=[Rule(r"language_model\..*layers\.1", lr=1e-5), Rule("language_model", trainable=False), Rule("projector")],
    )
    rates = stage.rates(NAMES)
    assert rates[NAMES[2]] == 1e-5
    assert rates[NAMES[0]] is None and rates[NAMES[1]] is None
    assert rates["projector.0.weight"] == 1e-3
    assert rates["patch_embedding.class_embedding"] is None


def test_a_pattern_without_parameters_is_an_error():
    stage = Stage("mine", lr=1e-3, rules=[Rule("projector"), Rule("patch_embeding")])
    with pytest.raises(ConfigError, match=r"'patch_embeding' fits no parameter.*patch_embedding"):
        stage.rates(NAMES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_stage("preallign"), "unknown stage 'preallign'; known: prealign, pretrain, finetune"),
        (lambda: Rule("("), "no regular expression"),
        (lambda: Rule(".*", lr=0.0), "lr of '.\\*' must be positive"),
        (lambda: get_stage("pretrain", lr=-1.0), "stage.lr must be positive"),
        (lambda: get_stage("pretrain", warmup=-0.1), "warmup must not be negative"),
        (lambda: Stage("mine", 1e-3, [Rule(".*", trainable=False)]).rates(NAMES), "freezes every parameter"),
    ],
)
def test_what_cannot_be_meant(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_stage_as_plain_data():
    data = {"name": "mine", "lr": 1e-3, "rules": [{"pattern": "projector", "lr": 1e-4}], "warmup": 10}
    assert get_stage(data, lr=2e-3) == Stage("mine", 2e-3, [Rule("projector", lr=1e-4)], 10)


def test_table_counts_what_trains(capsys):
    stage = STAGES["prealign"]
    print_stage(stage, dict.fromkeys(NAMES, 1000) | {"teacher.weight": 5}, stage.rates(NAMES))
    lines = capsys.readouterr().out.splitlines()
    row = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert "FROZEN" in row["language_model"] and "3,000" in row["language_model"]
    assert "TRAINABLE" in row["projector"] and "0.0004" in row["projector"]
    assert "FROZEN" in row["teacher"]
    assert "6,005" in row["all"] and "3,000" in row["trainable"]
