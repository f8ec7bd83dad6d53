"""The miniature benchmarks: official files, true and level answers, images that are there."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.nano.world.benchmark_items import benchmark_scenes
from lit_eve.nano.world.benchmarks import BENCHMARKS, MME_NESTED, MME_TASKS, write_benchmarks
from lit_eve.nano.world.datasets import WorldSettings, chosen, held_out_layouts
from lit_eve.nano.world.prompts import LETTERS, with_ocr
from lit_eve.nano.world.questions import PLURALS
from lit_eve.nano.world.scenes import SceneSpec, draw

POOL = benchmark_scenes(0, SceneSpec())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def load(path: Path):
    return json.loads(path.read_text())


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def image_format(path: Path) -> str:
    with Image.open(path) as image:
        image.load()
        return image.format


def test_the_ten_are_there_and_nothing_else(folder: Path) -> None:
    names = ["vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seedbench", "mmvet"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names) == sorted(BENCHMARKS)


def test_another_time_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again, other = write_benchmarks(tmp_path / "again"), write_benchmarks(tmp_path / "other", seed=1)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (folder / "mmvet/mm-vet.json").read_bytes() != (other / "mmvet/mm-vet.json").read_bytes()


def test_no_training_set_holds_their_scenes() -> None:
    crowded = SceneSpec(counts=(1,), short_sides=(32,))
    settings = WorldSettings(scenes=crowded, pretrain=300, validation=8, test=8)
    layouts = {scene.layout for scene in benchmark_scenes(settings.seed, crowded)}
    assert layouts <= held_out_layouts(settings)
    assert layouts & {scene.layout for scene, _ in chosen("pretrain", settings)}, "otherwise this test shows nothing"


def test_vqav2(folder: Path) -> None:
    root = folder / "vqav2"
    for split, subset in (("val2014", "val2014"), ("test2015", "test2015")):
        file = load(root / f"v2_OpenEnded_mscoco_{split}_questions.json")
        assert set(file) == {"info", "task_type", "data_type", "license", "data_subtype", "questions"}
        assert (file["task_type"], file["data_subtype"]) == ("Open-Ended", subset)
        assert len({question["question_id"] for question in file["questions"]}) == len(file["questions"])
        for question in file["questions"]:
            assert set(question) == {"image_id", "question", "question_id"}
            assert image_format(root / split / f"COCO_{split}_{question['image_id']:012d}.jpg") == "JPEG"
    questions = load(root / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    assert len(questions) == 100 and len({question["image_id"] for question in questions}) < 100
    annotations = load(root / "v2_mscoco_val2014_annotations.json")["annotations"]
    assert [a["question_id"] for a in annotations] == [question["question_id"] for question in questions]
    for annotation in annotations:
        answers = [answer["answer"] for answer in annotation["answers"]]
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert {answer["answer_confidence"] for answer in annotation["answers"]} <= {"yes", "maybe", "no"}
        assert 6 <= answers.count(annotation["multiple_choice_answer"]) <= 9
        assert annotation["answer_type"] in ("yes/no", "number", "other")
    assert {annotation["answer_type"] for annotation in annotations} == {"yes/no", "number", "other"}


def test_gqa(folder: Path) -> None:
    questions = load(folder / "gqa/testdev_balanced_questions.json")
    keys = {"semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer", "semanticStr"}
    keys |= {"annotations", "types", "fullAnswer"}
    for question in questions.values():
        assert set(question) == keys
        assert image_format(folder / "gqa/images" / f"{question['imageId']}.jpg") == "JPEG"
        for index, step in enumerate(question["semantic"]):
            assert set(step) == {"operation", "dependencies", "argument"}
            assert all(earlier < index for earlier in step["dependencies"])
        if re.fullmatch(r"Is there a red (circle|square|triangle|cross)\?", question["question"]):
            shape = question["question"].split()[-1].rstrip("?")
            assert question["semanticStr"] == f"select: {shape} (-)->filter colour: red [0]->exist: ? [1]"
    structural = Counter(question["types"]["structural"] for question in questions.values())
    assert set(structural) == {"verify", "query", "choose", "logical", "compare"}
    assert {question["types"]["semantic"] for question in questions.values()} == {"attr", "cat", "global", "obj", "rel"}
    assert {question["groups"]["global"] for question in questions.values()} >= {None, "colour", "shape", "place"}


def test_vizwiz(folder: Path) -> None:
    val, test = (load(folder / "vizwiz" / f"{split}.json") for split in ("val", "test"))
    assert all(set(record) == {"image", "question"} for record in test)
    for split, records in (("val", val), ("test", test)):
        for index, record in enumerate(records):
            assert record["image"] == f"VizWiz_{split}_{index:08d}.jpg"
            assert image_format(folder / "vizwiz" / split / record["image"]) == "JPEG"
    answerable = Counter(record["answerable"] for record in val)
    assert answerable == {1: 75, 0: 25}
    for record in val:
        answers = Counter(answer["answer"] for answer in record["answers"])
        best, count = answers.most_common(1)[0]
        assert count >= 6 and (best == "unanswerable") == (record["answer_type"] == "unanswerable") == (
            not record["answerable"]
        )


def test_scienceqa(folder: Path) -> None:
    root = folder / "scienceqa"
    problems, splits = load(root / "problems.json"), load(root / "pid_splits.json")
    assert set(splits) == {"train", "val", "test"} and sorted(sum(splits.values(), [])) == sorted(problems)
    for split, ids in splits.items():
        assert all(problems[key]["split"] == split for key in ids)
    for key in splits["test"]:
        problem = problems[key]
        assert 2 <= len(problem["choices"]) <= 4 and problem["answer"] in range(len(problem["choices"]))
        if problem["image"]:
            assert image_format(root / "images/test" / key / problem["image"]) == "PNG"
        else:
            assert ";" in problem["hint"], "what is to be seen must be told"
    with_image = sum(bool(problems[key]["image"]) for key in splits["test"])
    assert 60 <= with_image <= 70 and len(splits["test"]) == 100


def test_textvqa(folder: Path) -> None:
    root = folder / "textvqa"
    data = load(root / "TextVQA_0.5.1_val.json")["data"]
    prompts = lines(root / "llava_textvqa_val_v051_ocr.jsonl")
    assert len({(record["image_id"], record["question"]) for record in data}) == len(data) == len(prompts) == 100
    for record, prompt in zip(data, prompts, strict=True):
        assert prompt["question_id"] == record["image_id"] and len(record["answers"]) == 10
        question, tokens, _ = prompt["text"].split("\n")
        words = tokens.removeprefix("Reference OCR token:").strip()
        assert question == record["question"] and prompt["text"] == with_ocr(question, words.split(", ") if words else [])
        with Image.open(root / "train_images" / prompt["image"]) as image:
            assert image.size == (record["image_width"], record["image_height"])
    assert any("token: \n" in prompt["text"] for prompt in prompts)


def named(text: str) -> tuple[str, str]:
    return re.fullmatch(r"Is there a (\w+) (\w+)\?", text).groups()


def test_pope(folder: Path) -> None:
    files = {path.stem.removeprefix("coco_pope_"): lines(path) for path in (folder / "pope/coco").iterdir()}
    assert set(files) == {"random", "popular", "adversarial"}
    for split, records in files.items():
        assert [record["question_id"] for record in records] == list(range(1, 101))
        assert Counter(record["label"] for record in records) == {"yes": 50, "no": 50}
        for record in records:
            scene = POOL[int(record["image"][-16:-4]) - 1]
            colour, shape = named(record["text"])
            there = {(thing.colour, thing.shape) for thing in scene.things}
            assert record["label"] == ("yes" if (colour, shape) in there else "no")
            assert image_format(folder / "pope/val2014" / record["image"]) == "JPEG"
            if split == "adversarial":
                assert colour in {thing.colour for thing in scene.things} and shape in {thing.shape for thing in scene.things}
    assert [r["text"] for r in files["random"][::2]] == [r["text"] for r in files["popular"][::2]]


def test_mme(folder: Path) -> None:
    root = folder / "mme/MME_Benchmark_release_version"
    assert {path.name for path in root.iterdir()} == set(MME_TASKS)
    for task in MME_TASKS:
        images, texts = (root / task / sub for sub in (("images", "questions_answers_YN") if task in MME_NESTED else ("", "")))
        files = sorted(texts.glob("*.txt"))
        assert len(files) == 5
        for file in files:
            pairs = [line.split("\t") for line in file.read_text().splitlines()]
            assert [answer for _, answer in pairs] == ["Yes", "No"]
            assert all(question.endswith("? Please answer yes or no.") for question, _ in pairs)
            assert image_format(images / f"{file.stem}.jpg") == "JPEG"


def test_mmbench(folder: Path) -> None:
    csv.field_size_limit(2**30)
    with (folder / "mmbench/mmbench_dev_20230712.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0])[:8] == ["index", "question", "hint", "A", "B", "C", "D", "answer"]
    passes: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        passes.setdefault(int(row["index"]) % 1_000_000, []).append(row)
        assert Image.open(BytesIO(base64.b64decode(row["image"]))).format == "JPEG"
    letters = Counter()
    for group in passes.values():
        options = [[row[letter] for letter in LETTERS if row[letter]] for row in group]
        assert len(group) == len(options[0]), "as many passes as options"
        for number, (row, shown) in enumerate(zip(group, options, strict=True)):
            assert int(row["index"]) // 1_000_000 == number
            assert shown[number:] + shown[:number] == options[0]
        assert len({row[row["answer"]] for row in group}) == 1, "the same answer in every pass"
        letters.update(row["answer"] for row in group if len(group) == 4)
    assert len(set(letters.values())) == 1 and len({row["l2-category"] for row in rows}) == 6
    assert any(row["hint"] for row in rows) and not all(row["hint"] for row in rows)


def test_seedbench(folder: Path) -> None:
    file = load(folder / "seedbench/SEED-Bench.json")
    assert list(file["question_type"].values()) == list(range(1, 13)) and len(file["questions"]) == 99 + 6
    for question in file["questions"]:
        assert question["answer"] in LETTERS and len({question[f"choice_{letter}"] for letter in "abcd"}) == 4
        video = question["question_type_id"] > 9
        assert question["data_type"] == ("video" if video else "image")
        assert video == question["question_id"].startswith("v")
        assert ("segment" in question) == (question["question_type_id"] > 10)
        path = folder / "seedbench/SEED-Bench-image" / question["data_id"]
        assert not path.exists() if video else image_format(path) == "JPEG"


def test_mmvet(folder: Path) -> None:
    questions = load(folder / "mmvet/mm-vet.json")
    assert list(questions) == [f"v1_{index}" for index in range(100)]
    for question in questions.values():
        assert set(question) == {"imagename", "question", "answer", "imagesource", "capability"}
        assert image_format(folder / "mmvet/images" / question["imagename"]) == "PNG"
    answers = " ".join(question["answer"] for question in questions.values())
    assert "<AND>" in answers and "<OR>" in answers
    assert {each for q in questions.values() for each in q["capability"]} == {"rec", "ocr", "know", "gen", "spat", "math"}


def test_answers_are_true(folder: Path) -> None:
    """Counts of one attribute, read from the words alone, against what the scenes hold."""
    checked = 0
    for record in load(folder / "vqav2/v2_mscoco_val2014_annotations.json")["annotations"]:
        scene, start = POOL[record["image_id"] - 1], record["question_type"]
        if match := re.fullmatch(rf"how many ({'|'.join(PLURALS.values())})", start):
            shape = next(shape for shape, plural in PLURALS.items() if plural == match[1])
            assert record["multiple_choice_answer"] == str(sum(thing.shape == shape for thing in scene.things))
            checked += 1
    assert checked >= 3


def test_jpegs_stay_clear(folder: Path) -> None:
    for path in sorted((folder / "pope/val2014").iterdir())[:10]:
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB"), int)
        assert np.abs(seen - np.asarray(draw(POOL[int(path.stem[-12:]) - 1]), int)).mean() < 2.5


def test_guessing_letters_scores_at_chance(folder: Path) -> None:
    questions = [q for q in load(folder / "seedbench/SEED-Bench.json")["questions"] if q["data_type"] == "image"]
    assert max(Counter(question["answer"] for question in questions).values()) / len(questions) < 0.38


def test_more_questions_than_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vqav2: the 2000 scenes of the benchmarks do not give 100000 balanced questions"):
        write_benchmarks(tmp_path, questions=100000)
