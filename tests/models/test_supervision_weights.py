"""Weights of supervisions: numbers and schedules, and nothing is run where they are 0."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models import EveConfig
from lit_eve.models.supervision import check_entries, share_on, weight_at
from tests.models import tiny
from tests.models.test_supervision import ALIGNMENT, DISTILLATION, NEXT, supervised

FALLING, RISING = [[0.25, 2.0], [0.75, 0.0]], [[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]]


def test_a_line_between_points_and_constant_outside():
    assert [weight_at(FALLING, x / 8) for x in range(9)] == [2, 2, 2, 1.5, 1, 0.5, 0, 0, 0]
    assert [weight_at(RISING, x / 8) for x in range(9)] == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1]
    assert weight_at(0.3, 0.9) == 0.3


def test_the_share_of_a_run_is_that_of_its_steps():
    late = [[0.5, 0.0], [0.75, 1.0], [0.8, 0.0], [0.9, 0.0], [1.0, 0.5]]
    for weights in ([FALLING], [RISING], [late], [FALLING, late], [0.3], [0.0], [0.0, RISING], []):
        steps = [any(weight_at(weight, step / 1000) for weight in weights) for step in range(1000)]
        assert share_on(*weights) == pytest.approx(sum(steps) / 1000, abs=3e-3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"start": 1.0}, r"must be a number of at least 0, got {'start': 1.0} \(or a schedule, as in \[\[0.0, 1.0\]"),
        (float("nan"), "must be a number of at least 0, got nan"),
        (True, "must be a number of at least 0, got True"),
        ([], "must be points .*, two or more, .* got \\[\\]"),
        ([[0.0, 1.0]], "two or more"),
        ([[0.0, 1.0], [1.0]], "two or more"),
        ([0.0, 1.0], "two or more"),
        ([[0.5, 1.0], [0.5, 0.0]], r"the parts must grow, between 0 and 1, got \[0.5, 0.5\]"),
        ([[0.7, 1.0], [0.2, 0.0]], r"the parts must grow, between 0 and 1, got \[0.7, 0.2\]"),
        ([[0.0, 1.0], [1.5, 0.0]], "the parts must grow, between 0 and 1"),
        ([[-0.1, 1.0], [1.0, 0.0]], "the parts must grow, between 0 and 1"),
        ([["0", 1.0], [1.0, 0.0]], "the parts must grow, between 0 and 1"),
        ([[0.0, 1.0], [1.0, -1.0]], r"the weights must be numbers of at least 0 and not all 0, got \[1.0, -1.0\]"),
        ([[0.0, 1.0], [1.0, None]], "the weights must be numbers of at least 0"),
        ([[0.0, 0.0], [1.0, 0]], "not all 0"),
    ],
)
def test_impossible_weights(weight, message):
    with pytest.raises(ConfigError, match=f"the weight of 'next_patch' .*{message}|the weight of 'next_patch' {message}"):
        check_entries([{"name": "next_patch", "weight": weight}])


def test_the_config_keeps_a_schedule(tmp_path):
    config = tiny.config(supervision=[NEXT | {"weight": FALLING}])
    config.save_pretrained(tmp_path)
    assert EveConfig.from_pretrained(tmp_path).supervision == [{"name": "next_patch", "weight": FALLING}]


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.7, 0.75, 1.0])
def test_the_loss_is_weighted_by_how_far_the_run_is(progress):
    model = supervised([ALIGNMENT | {"weight": FALLING}, NEXT, DISTILLATION | {"weight": RISING}])
    looks = []
    model.teacher.register_forward_hook(lambda *_: looks.append(1))
    batch = tiny.packed([tiny.samples(model, [2, 1])])
    (output,), gradients = tiny.gradients(model, batch, progress=progress)
    weights = {"alignment_loss": weight_at(FALLING, progress), "next_patch_loss": 0.5}
    weights["distillation_loss"] = weight_at(RISING, progress)
    active = {name for name, weight in weights.items() if weight}
    assert output.terms.keys() - {"language_loss", "token_accuracy"} == active
    expected = sum(weights[name] * output.terms[name].total / 3 for name in active)
    assert_close(output.loss, output.language_loss + expected)
    assert len(looks) == 1, "one of the two looks at the teacher"
    for part, name in (("aligner", "alignment_loss"), ("distillation", "distillation_loss")):
        for key, gradient in gradients.items():
            assert not key.startswith(f"{part}.") or gradient.any() == (name in active), key


@pytest.mark.parametrize("weight", [0, 0.0, FALLING])
def test_what_weighs_nothing_is_not_run(weight):
    model = supervised([ALIGNMENT | {"weight": weight}, DISTILLATION | {"weight": weight}])
    for part in (model.teacher, model.aligner, *model.distillation):
        part.register_forward_hook(lambda *_: pytest.fail("it was run"))
    batch = tiny.packed([tiny.samples(model, [2, 1])])
    del batch["teacher_pixel_values"]
    (output,), gradients = tiny.gradients(model, batch)
    assert output.terms.keys() == {"language_loss", "token_accuracy"} and output.alignment_loss is None
    heads = [name for name, _ in model.named_parameters() if name.startswith(("aligner.", "distillation."))]
    assert heads and not any(gradients[name].any() for name in heads), "there is a gradient, as DDP waits for it"
    with model.supervised_by():
        (plain,), expected = tiny.gradients(model, batch)
    assert torch.equal(output.loss, plain.loss) and all(torch.equal(gradients[name], x) for name, x in expected.items())


def test_supervised_by_some_for_a_while():
    model = supervised([ALIGNMENT | {"weight": FALLING}, NEXT])
    batch = tiny.packed([tiny.samples(model, [1])])
    with model.supervised_by("aligner"):
        output = model(**batch)
        assert output.terms.keys() == {"language_loss", "token_accuracy", "alignment_loss"}
        assert output.terms["alignment_loss"].weight == 1
    assert model(**batch).terms.keys() == {"language_loss", "token_accuracy", "next_patch_loss"}
