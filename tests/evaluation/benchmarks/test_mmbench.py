from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Hashable, Iterable
from io import BytesIO
from pathlib import Path

import openpyxl
import pytest
from PIL import Image

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks import Question
from lit_eve.evaluation.benchmarks.base import LETTER_ANSWER
from lit_eve.evaluation.benchmarks.mmbench import MMBench, judge_message
from tests.evaluation.golden import expected, inputs
from tests.evaluation.metrics.test_mmbench import references, report

COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer"),
    *("category", "image", "source", "l2-category", "comment", "split"),
)


def picture(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8 + number, 8)).save(file, "PNG")
    return file.getvalue()


def table() -> list[dict]:
    """The invented rows; every question has an image of its own, which its passes repeat."""
    return [
        {**row, "image": base64.b64encode(picture(row["index"] % 1_000_000)).decode()} for row in inputs("mmbench")["tsv_rows"]
    ]


def write_file(
    folder: Path, rows: Iterable[dict], name: str = "mmbench_dev_20230712.tsv", columns: Iterable[str] = COLUMNS
) -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def answers_of() -> dict[Hashable, str]:
    return {row["question_id"]: row["text"] for row in inputs("mmbench")["predictions_jsonl"]}


@pytest.fixture
def questions(tmp_path) -> list[Question]:
    write_file(tmp_path, table())
    return MMBench().questions(tmp_path)


def test_rows_are_asked_as_by_eve(questions):
    prompts = {question.id: question.prompt for question in questions}
    assert prompts[200] == "Invented question 0 of shared\nA. park\nB. street\nC. beach\nD. office" + LETTER_ANSWER
    assert prompts[1000242] == "Read the passage.\nInvented question 14 of shared\nA. right\nB. left" + LETTER_ANSWER
    assert [(question.id, question.fields) for question in questions] == [
        (row["question_id"], {name: row[name] for name in ("round_id", "options", "option_char")})
        for row in inputs("mmbench")["predictions_jsonl"]
    ]
    assert {question.id: question.reference for question in questions} == references()


def test_passes_of_a_question_belong_together_and_share_their_image(questions):
    assert [question.group for question in questions] == [question.id % 1_000_000 for question in questions]
    assert all(question.images == (picture(question.group),) for question in questions)
    assert len({id(question.images[0]) for question in questions}) == len({question.group for question in questions}) == 22


def test_one_copy_of_an_image_and_its_index_elsewhere(tmp_path, questions):
    """Today's file; the copy may also stand behind the rows that name it."""
    rows = [{**row, "L2-category": row["l2-category"]} for row in table()]
    for row in rows:
        if row["index"] > 1_000_000:
            row["image"] = str(row["index"] % 1_000_000)
    columns = ["index", "L2-category", *(name for name in COLUMNS if name not in ("index", "l2-category", "source", "comment"))]
    write_file(tmp_path, rows[::-1], "MMBench_DEV_EN.tsv", columns)
    found = MMBench().questions(tmp_path, "dev_en")
    assert found[::-1] == [
        Question(**{**vars(question), "place": other.place}) for question, other in zip(questions, found[::-1], strict=True)
    ]
    assert len({id(question.images[0]) for question in found}) == 22


def test_options_end_at_the_first_empty_cell(tmp_path):
    """In the prompt, as EVE's script does it; for the scorer, "none" is an option like any other, and "None" an empty cell."""
    row = table()[0]
    write_file(tmp_path, [{**row, "B": "none"}, {**row, "index": 1, "C": "None"}, {**row, "index": 2, "hint": "nan", "D": ""}])
    questions = MMBench().questions(tmp_path)
    assert [question.fields["option_char"] for question in questions] == [["A"], ["A", "B"], ["A", "B", "C"]]
    assert ["".join(question.reference.options) for question in questions] == ["ABCD", "ABD", "ABC"]
    assert all(question.prompt.startswith("Invented question 0") for question in questions)


def test_cells_in_quotes_may_hold_anything(tmp_path):
    first, *others = [row for row in table() if row["index"] % 1_000_000 == 200]
    write_file(tmp_path, [{**first, "question": 'Who said "go"?\nA\tB'}, {**first, "index": 1, "answer": "E"}, *others])
    questions, problems = MMBench().load(tmp_path, allow_partial=True)
    assert questions[0].reference.question == 'Who said "go"?\nA\tB'
    assert (questions[0].place, problems.lines[0].split(":")[0]) == (
        "mmbench_dev_20230712.tsv, line 2",
        "mmbench_dev_20230712.tsv, line 4",
    )


def test_the_spreadsheet_is_eves(tmp_path, questions):
    [path] = MMBench().submit(questions, answers_of(), tmp_path, "dev", tmp_path)
    rows = [list(row) for row in openpyxl.load_workbook(path).active.values]
    assert rows == [expected("mmbench")["xlsx_header"], *expected("mmbench")["xlsx_rows"]]
    assert type(rows[1][0]) is int


def test_answers_that_a_spreadsheet_cannot_hold_as_they_are(tmp_path, questions):
    answers = {200: "=A", 1000200: "B\x07", 2000200: "3"}
    [path] = MMBench().submit(questions, answers, tmp_path, "dev", tmp_path)
    column = [row[6] for row in openpyxl.load_workbook(path).active.iter_rows(min_row=2)]
    assert [(cell.value, cell.data_type) for cell in column[:3]] == [("=A", "s"), ("B", "s"), ("3", "s")]
    assert {cell.value for cell in column[3:]} == {None}


class ScriptedJudge:
    """Gives the replies of the golden file, and keeps for which row it was asked, and how often before."""

    concurrency = 1

    def __init__(self, questions: list[Question], replies: dict[str, list[str]] | None = None) -> None:
        answers = answers_of()
        self.rows = {judge_message(question.reference, answers[question.id]): str(question.id) for question in questions}
        assert len(self.rows) == len(questions)
        self.replies = inputs("mmbench")["judge_replies"] if replies is None else replies
        self.calls: list[list] = []

    def ask(self, message: str, *, temperature: float = 0.0, max_tokens: int | None = None, repetition: int = 0) -> str:
        row = self.rows[message]
        self.calls.append([row, repetition])
        return self.replies[row][repetition]


def test_the_judge_is_asked_as_by_vlmevalkit(questions):
    benchmark, judge = MMBench(), ScriptedJudge(questions)
    judged = benchmark.judge(questions, answers_of(), judge)
    wanted = expected("mmbench")["vlmevalkit_2024_06_circular_scripted_judge"]
    assert judge.calls == wanted["judge_calls"]
    metric = benchmark.metric(questions)
    metric.update(list(judged), list(judged.values()))
    assert report(metric.compute(), "circular") == pytest.approx(wanted["report"], abs=1e-9)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        (("hm", "hm", "C", "D"), [200]),  # the judge finds the first pass wrong: nothing else matters
        (("hm", "hm", "C", "A"), []),  # the last pass is wrong already
        (("A", "hm", "C", "hm"), [1000200, 3000200]),
    ],
)
def test_the_judge_is_asked_only_for_what_matters(questions, answers, asked):
    passes = [question for question in questions if question.group == 200]
    of_row = dict(zip([question.id for question in passes], answers, strict=True))

    class Judge:
        concurrency = 1
        rows = {judge_message(question.reference, of_row[question.id]): question for question in passes}

        def __init__(self) -> None:
            self.calls: list[Hashable] = []

        def ask(self, message: str, **kwargs) -> str:
            self.calls.append(self.rows[message].id)
            return "B" if self.calls[-1] == 200 else self.rows[message].reference.answer

    judge = Judge()
    judged = MMBench().judge(passes, of_row, judge)
    assert judge.calls == asked
    assert [judged[row] == of_row[row] for row in of_row] == [row not in asked for row in of_row]


def test_after_three_useless_replies_a_letter_is_drawn(questions):
    replies = {str(question.id): ["A or B", "hm", ""] for question in questions}
    letters = Counter()
    for _ in range(2):
        judge = ScriptedJudge(questions, replies)
        judged = MMBench().judge(questions, answers_of(), judge)
        asked = {int(row) for row, _ in judge.calls}
        assert Counter(row for row, _ in judge.calls) == Counter({str(row): 3 for row in asked})
        letters.update((row, judged[row]) for row in asked)
    assert set(letters.values()) == {2}  # the same letter each time
    assert len({letter for _, letter in letters}) > 2
    options = {question.id: {*question.reference.options, "Z"} for question in questions}
    assert all(letter in options[row] for row, letter in letters)


def test_a_question_that_lacks_an_answer_is_not_brought_to_the_judge(questions):
    answers = answers_of()
    del answers[224]
    judge = ScriptedJudge(questions)
    judged = MMBench().judge(questions, answers, judge)
    assert 224 not in judged
    assert ["224", 0] not in judge.calls


def test_bad_rows_are_named_by_their_line(tmp_path):
    row, *others = [row for row in table() if row["index"] % 1_000_000 == 200]
    bad = [
        {**row, "index": "x"},
        {**row, "index": 1, "answer": "E"},
        {**row, "index": 2, "category": ""},
        {**row, "index": 3, "image": ""},
        {**row, "index": 4, "image": base64.b64encode(b"no image").decode()},
        {**row, "index": 5, "image": "77"},
        {**row, "index": 6, "image": "abc"},
        {**row, "index": 7, "image": "é" * 99},
        row,
    ]
    write_file(tmp_path, [row, *bad, *others])
    with (tmp_path / "mmbench_dev_20230712.tsv").open("a") as file:
        file.write("7\tcut off\n")
    questions, problems = MMBench().load(tmp_path, allow_partial=True)
    assert [question.group for question in questions] == [200] * 4
    assert sorted(line.removeprefix("mmbench_dev_20230712.tsv, line ") for line in problems.lines) == [
        "10: the cell 'image' is no base64 text: string argument should contain only ASCII characters",
        "11: question 200 is there twice, first in mmbench_dev_20230712.tsv, line 2",
        "15: 2 cells, unlike the 14 of the header",
        "3: the index 'x' is no number",
        "4: the answer 'E' is none of A, B, C, D",
        "5: the cell 'category' is empty",
        "6: the cell 'image' is empty",
        "7: the cell 'image': the image cannot be opened: it is no image of a known kind",
        "8: its image is that of row 77, which has none",
        "9: the cell 'image' is no base64 text: Incorrect padding",
    ]
    with pytest.raises(LitEveError, match="MMBench: mmbench_dev_20230712.tsv, line 3: the index 'x' is no number"):
        MMBench().questions(tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [({"answer": "E"}, "left out with another question"), ({"index": "x"}, "another pass of this question is missing")],
)
def test_a_question_with_a_pass_that_cannot_be_read_is_left_out(tmp_path, damage, reason):
    rows = table()
    place = next(place for place, row in enumerate(rows) if row["index"] == 1_000_200)
    rows[place] = {**rows[place], **damage}
    write_file(tmp_path, rows)
    questions, problems = MMBench().load(tmp_path, allow_partial=True)
    assert len(questions) == len(rows) - 4 and 200 not in {question.group for question in questions}
    assert len(problems) == 4 and sum(reason in line for line in problems.lines) == 3


def test_missing_and_altered_files(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks mmbench_dev_20230712.tsv \(138 MB, https://download.openmmlab.com"):
        MMBench().questions(tmp_path)
    write_file(tmp_path, table(), columns=[name for name in COLUMNS if name != "hint"])
    with pytest.raises(ConfigError, match="is not the official file: its first line names no column 'hint'"):
        MMBench().questions(tmp_path)
    (tmp_path / "mmbench_dev_20230712.tsv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="mmbench_dev_20230712.tsv is no table: .*download it again"):
        MMBench().questions(tmp_path)
