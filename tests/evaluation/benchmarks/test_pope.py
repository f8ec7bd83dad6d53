from __future__ import annotations

import json

import pytest

from lit_eve.errors import LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS
from tests.evaluation.micro import lines_of, make_pope


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", 7, "'image' is no text"),
        ("text", None, "'text' is no text"),
        ("question_id", [1], "'question_id' is no whole number"),
        ("label", None, "'label' is no text"),
        ("label", "maybe", "the label 'maybe' is none of yes, no"),
    ],
)
def test_a_question_that_cannot_be_used_is_told(tmp_path, key, value, message):
    path = make_pope(tmp_path, 3) / "pope/coco/coco_pope_popular.json"
    rows = lines_of(path)
    rows[1][key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LitEveError, match=f"coco_pope_popular.json, line 2: {message}"):
        BENCHMARKS["pope"].questions(tmp_path / "pope")
    assert len(BENCHMARKS["pope"].questions(tmp_path / "pope", allow_partial=True)) == 8
