from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.answers import note_missing
from lit_eve.evaluation.benchmarks import BENCHMARKS, Problems, Question
from lit_eve.evaluation.metrics.mmbench import PASS
from lit_eve.evaluation.results import score_task
from lit_eve.evaluation.tasks import Task, find_tasks, load_tasks, subset
from lit_eve.nano.world.benchmarks import write_benchmarks
from lit_eve.processing import Sample, parse_conversation
from lit_eve.processing.sample import Slot
from tests.evaluation.micro import make_pope
from tests.tiny_model import make_tiny


def test_all_missing_files_are_named_with_size_and_source(tmp_path):
    data = make_pope(tmp_path / "data", 1)
    (data / "pope/coco/coco_pope_random.json").unlink()
    (data / "pope/coco/coco_pope_popular.json").unlink()
    with pytest.raises(ConfigError) as told:
        find_tasks("pope", data)
    for source in BENCHMARKS["pope"].sources[:2]:
        assert f"{source.path} ({source.size}, {source.url})" in str(told.value)
    assert "adversarial" not in str(told.value)
    with pytest.raises(ConfigError) as told:
        find_tasks("pope,gqa,mmbench", data)
    first, *lines, last = str(told.value).splitlines()
    assert first == "files are missing:" and [line[:6] for line in lines] == ["- POPE", "- GQA:", "- MMBe"]
    assert last.startswith("The README lists all files")


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


def test_a_split_that_is_found_by_itself_must_be_one_that_can_be_validated_on(tmp_path):
    write_benchmarks(tmp_path, questions=10)
    for path in (*tmp_path.glob("vqav2/*val*"), *tmp_path.glob("vizwiz/val*")):
        path.rename(tmp_path / path.name)
    for name, split in (("vqav2", "test-dev"), ("vizwiz", "test")):
        assert find_tasks(name, tmp_path) == [(BENCHMARKS[name], split)]
        with pytest.raises(ConfigError, match=f"only a server knows the answers to {name}:{split}: .* take {name}:val"):
            find_tasks(name, tmp_path, while_training=True)


def test_a_placeholder_in_the_text_of_a_question_is_text(tmp_path):
    (task,) = load_tasks(find_tasks("pope", make_pope(tmp_path / "data", 1)), tmp_path / "data", progress=False)
    with_image, without = (
        replace(task.questions[0], prompt="What is <image>?"),
        replace(task.questions[1], prompt="What is <image>?", images=()),
    )
    plain = replace(task.questions[0], prompt="What is it?")
    _, processor = make_tiny()
    samples = replace(task, questions=[with_image, without, plain]).samples()
    assert all(isinstance(length, int) for length in processor.count_tokens_batch(samples, with_labels=False))
    (message,) = parse_conversation(samples[0].conversation)
    assert message.parts == (Slot.IMAGE, "\nWhat is <image>?")
    old = Sample("", [{"role": "user", "content": "<image>\nWhat is it?"}])
    assert parse_conversation(samples[2].conversation) == parse_conversation(old.conversation)


@pytest.fixture
def mmbench(tmp_path) -> Task:
    write_benchmarks(tmp_path / "data", questions=10)
    (task,) = load_tasks(find_tasks("mmbench", tmp_path / "data"), tmp_path / "data", progress=False)
    return task


def test_a_question_of_which_a_pass_has_no_answer_is_in_no_score(mmbench, tmp_path):
    answers = {question.id: question.reference.answer for question in mmbench.questions}
    first, second = [question for question in mmbench.questions if question.id < PASS][:2]
    for question in mmbench.questions:  # right in the first pass alone
        if question.group in (first.group, second.group) and question.id >= PASS:
            answers[question.id] = "Z"
    whole = score_task(mmbench, answers, tmp_path)
    wrong = {id for id, answer in answers.items() if answer == "Z" and id % PASS == second.group}
    few = {id: answer for id, answer in answers.items() if id not in wrong}
    problems = Problems()
    note_missing("mine.jsonl", mmbench, few, problems)
    part = score_task(mmbench, few, tmp_path, problems=problems, allow_partial=True)
    count = sum(question.id < PASS for question in mmbench.questions)
    assert whole.score == pytest.approx(100 * (count - 2) / count)
    assert part.score == pytest.approx(100 * (count - 2) / (count - 1))
    assert part.answered == part.asked - len(wrong) - 1
    assert part.notes[1] == "1 answers left out, as others that count with them are missing"


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


def test_miniatures_say_that_they_are_of_another_world(tmp_path):
    """A score in a world of shapes beside the papers' rows would pass for one that compares."""
    write_benchmarks(tmp_path, questions=6)
    (task,) = load_tasks(find_tasks("gqa", tmp_path), tmp_path, progress=False)
    result = score_task(task, {question.id: "yes" for question in task.questions}, tmp_path)
    assert result.world == "a world of shapes"
    (tmp_path / "gqa/world.txt").unlink()
    assert score_task(task, {question.id: "yes" for question in task.questions}, tmp_path).world is None
