"""MM-Vet: free answers to questions that need several capabilities at once (Yu et al. 2023, arXiv 2308.02490)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import Answers, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.judge import Judge, ask_each
from lit_eve.evaluation.metrics import MMVetReference

ARCHIVE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
KEYS = {"imagename": str, "question": str, "answer": str, "capability": list}
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
PROMPT = Path(__file__).with_name("mmvet_prompt.txt").read_text(encoding="utf-8")
"""The judge's instruction and examples, word for word those of mm-vet_evaluator.py (github.com/yuweihao/MM-Vet)."""
ONCE_MORE = "\nPredict the correctness of the answer (digit): "
REPEATS = 5


class MMVet(Benchmark):
    """Ids are the numbers behind ``v1_``, as in EVE's answer files. The judge says how often it grades each answer."""

    name = "mmvet"
    title = "MM-Vet"
    sources = (
        Source("mm-vet.json", "of mm-vet.zip, 67 MB", ARCHIVE),
        Source("images", "of mm-vet.zip", ARCHIVE),
    )
    sizes = {"test": 218}
    metric_class = metrics.MMVet
    server = "huggingface.co/spaces/whyu/MM-Vet_Evaluator grades the file of answers, or any judge that you name here"
    max_new_tokens = 1024
    needs_judge = True

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        for key, row in read_json(folder / "mm-vet.json", dict).items():
            place = f"mm-vet.json, {key}"
            number = key.removeprefix("v1_")
            if number == key or not number.isdecimal():
                problems.note(place, "the ids of questions are v1_0, v1_1 and so on")
            elif row := checked(row, KEYS, place, problems):
                if unknown := [name for name in row["capability"] if name not in CAPABILITIES]:
                    problems.note(place, f"unknown capability {unknown[0]!r}; there are {', '.join(CAPABILITIES)}")
                else:
                    yield Question(
                        id=int(number),
                        prompt=row["question"],
                        images=(folder / "images" / row["imagename"],),
                        reference=MMVetReference(row["question"], row["answer"], tuple(row["capability"])),
                        place=place,
                    )

    def metric(self, questions: Sequence[Question], judge: Judge | None = None) -> metrics.MMVet:
        return metrics.MMVet({question.id: question.reference for question in questions}, judge.runs if judge else 1)

    def notes(self, scores: Mapping[str, float]) -> list[str]:
        """How often the judge graded."""
        runs = sum(name.startswith("run/") for name in scores)
        return ["one run of the judge; the paper has five" if runs == 1 else f"mean of {runs} runs of the judge"]

    def judge(self, questions: Sequence[Question], answers: Answers, judge: Judge) -> dict[Hashable, str]:
        """The grades of each answer, joined by blanks; all answers are graded once before any is graded again."""
        ids = [question.id for question in questions if question.id in answers]
        references = {question.id: question.reference for question in questions}
        asked = [(id, run) for run in range(judge.runs) for id in ids]
        grades = ask_each(
            judge, lambda item: grade(judge, references[item[0]], answers[item[0]], item[1]), asked, "MM-Vet: the judge"
        )
        return {id: " ".join(map(str, grades[place :: len(ids)])) for place, id in enumerate(ids)}

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        path = output / "mmvet.json"
        results = {f"v1_{question.id}": answers[question.id] for question in questions if question.id in answers}
        path.write_text(json.dumps(results, indent=2), encoding="utf-8")
        return [path]


def judge_message(reference: MMVetReference, answer: str) -> str:
    """The examples, and a line of their table whose last cell the judge is to fill in."""
    truth = reference.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return PROMPT + "\n" + " | ".join([reference.question, truth, answer, ""])


def grade(judge: Judge, reference: MMVetReference, answer: str, run: int = 0) -> float:
    """The judge's grade of an answer, from 0 to 1, as mm-vet_evaluator.py obtains it.

    A reply counts if what stands before its first blank is a number from 0 to 1. Else the judge is asked again, at most five
    times, at a temperature of 0 and then 0.5 more each time. The last of these replies is not looked at: the grade is 0. Unlike
    there, "nan" is no number.

    Args:
        run: which of several runs this is.
    """
    message = judge_message(reference, answer)
    reply = judge.ask(message, temperature=0.0, max_tokens=3, repetition=run)
    for repeat in range(REPEATS):
        try:
            score = float(reply.split(" ")[0])
        except ValueError:
            score = -1.0
        if 0 <= score <= 1:
            return score
        reply = judge.ask(message + ONCE_MORE, temperature=0.5 * repeat, max_tokens=3, repetition=run)
    return 0.0
