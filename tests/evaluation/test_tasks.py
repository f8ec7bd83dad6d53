from __future__ import annotations

from collections import Counter

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import BENCHMARKS, Question
from lit_eve.evaluation.tasks import find_tasks, load_tasks, subset
from tests.evaluation.micro import make_pope


def test_all_missing_files_are_named_with_size_and_source(tmp_path):
    data = make_pope(tmp_path / "data", 1)
    (data / "pope/coco/coco_pope_random.json").unlink()
    (data / "pope/coco/coco_pope_popular.json").unlink()
    with pytest.raises(ConfigError) as told:
        find_tasks("pope", data)
    for source in BENCHMARKS["pope"].sources[:2]:
        assert f"{source.path} ({source.size}, {source.url})" in str(told.value)
    assert "adversarial" not in str(told.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("pop", "unknown benchmark 'pop'; known: all, "),
        ("pope:val", "^pope has no split 'val'; it has: test$"),
        ([], "no benchmark is named; known: all, "),
        ("pope,pope", "named twice"),
        ("all,pope", "all benchmarks are named, and pope beside them"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, names, message):
    with pytest.raises(ConfigError, match=message):
        find_tasks(names, make_pope(tmp_path / "data", 1))


def test_a_data_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder .*nowhere; it should hold one for each benchmark: .*pope"):
        find_tasks("pope", tmp_path / "nowhere")


def test_an_image_that_is_missing_is_named_with_its_line(tmp_path):
    data = make_pope(tmp_path / "data", 2)
    (data / "pope/val2014/COCO_val2014_popular_0001.jpg").unlink()
    found = find_tasks(["pope"], data)
    with pytest.raises(LitEveError, match=r"coco_pope_popular.json, line 2: the image .*popular_0001.jpg is missing"):
        load_tasks(found, data, progress=False)
    (task,) = load_tasks(found, data, allow_partial=True, progress=False)
    assert len(task.questions) == 5 and len(task.problems) == 1


def make_questions(groups: list[int | None]) -> list[Question]:
    return [Question(i, "", (), None, "", group) for i, group in enumerate(groups)]


def test_a_subset_is_spread_evenly_and_keeps_together_what_counts_together():
    alone = make_questions([None] * 100)
    chosen = [question.id for question in subset(alone, 4)]
    assert [id // 25 for id in chosen] == [0, 1, 2, 3]
    assert chosen == [question.id for question in subset(alone, 4)]
    assert subset(alone, None) is alone and subset(alone, 100) is alone
    pairs = make_questions([i // 2 for i in range(100)])
    chosen = subset(pairs, 10)
    assert len(chosen) == 10
    assert all(sum(other.group == question.group for other in chosen) == 2 for question in chosen)
    split = make_questions([i % 50 for i in range(100)])  # the two of a group far apart
    first, second, *rest = sorted(question.group for question in subset(split, 4))
    assert first == second < 25 and rest[0] == rest[1] >= 25


def test_a_subset_has_as_many_questions_as_are_asked_for_in_whole_groups():
    mixed = make_questions([group for group in range(60) for _ in range(2 + group % 3)])
    for limit in (2, 5, 12, 50, 100):
        chosen = subset(mixed, limit)
        assert limit - 2 < len(chosen) <= limit  # where one more is wanted, there is no group of one
        sizes = Counter(question.group for question in chosen)
        assert all(size == 2 + group % 3 for group, size in sizes.items())
    assert len(subset(make_questions([0, 0, 0, 1, 1, 1]), 1)) == 3


@pytest.mark.parametrize("limit", [100, 300, 891])
def test_a_subset_of_alternating_answers_has_both(limit):
    chosen = subset(make_questions([None] * 8910), limit)
    assert len(chosen) == limit
    assert 0.4 * limit < sum(question.id % 2 for question in chosen) < 0.6 * limit
