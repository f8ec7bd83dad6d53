"""Miniatures of the ten benchmarks of the EVE papers, in the files and folders in which the real ones are published.

    vqav2  gqa  vizwiz  scienceqa  textvqa  pope  mme  mmbench  seedbench  mmvet

Images are scenes that no training set holds, questions are the miniature world's, with level answers. What this world has no
equal for (celebrities, words in images) is filled with other questions of the same form.
"""

from __future__ import annotations

import base64
import csv
import shutil
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from lit_eve.evaluation.tasks import WORLD
from lit_eve.nano.world.benchmark_items import (
    NUMBERS,
    Draft,
    Item,
    answer_type,
    benchmark_scenes,
    encoded,
    gqa_program,
    human_answers,
)
from lit_eve.nano.world.datasets import WorldSettings
from lit_eve.nano.world.language import glyph_map
from lit_eve.nano.world.prompts import HINT, LETTERS, UNANSWERABLE, options_of, random_words, turned, unanswerable, with_ocr
from lit_eve.nano.world.scenes import Scene, SceneSpec

BENCHMARKS: dict[str, Callable[[Draft], None]] = {}
ATTRIBUTES = ("colour", "shape", "size")


def make_benchmarks(run_dir: str | Path, settings: WorldSettings) -> Path:
    """Write the ten of a world to ``run_dir/benchmarks``."""
    return write_benchmarks(Path(run_dir) / "benchmarks", settings.benchmarks, settings.seed, settings.scenes)


def write_benchmarks(folder: str | Path, questions: int = 100, seed: int = 0, spec: SceneSpec | None = None) -> Path:
    """Write the ten into ``folder/NAME``, in place of what was there.

    Args:
        questions: of each benchmark (of POPE, of each of its three files; of MMBench without the circular passes).
        seed: of the world whose trainings have left the scenes out.
        spec: what the scenes are drawn from.

    Raises:
        ConfigError: more questions than there are scenes for.
    """
    pool = benchmark_scenes(seed, spec or SceneSpec())
    for name, write in BENCHMARKS.items():
        target, part = Path(folder) / name, Path(folder) / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        draft = Draft(name, part, questions, pool, seed)
        write(draft)
        draft.text(WORLD, "a world of shapes\n")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    return Path(folder)


def _benchmark(write: Callable[[Draft], None]) -> Callable[[Draft], None]:
    BENCHMARKS[write.__name__] = write
    return write


@_benchmark
def vqav2(draft: Draft) -> None:
    """val2014 with answers, and a smaller test2015 without; test-dev2015 asks about every other image of it."""
    types = ("exist", "count", "count_by_attribute", "colour", "shape", "size", "place")
    items = draft.items(types, turns=3)
    for split, split_items in (("val2014", items), ("test2015", draft.items(types, max(len(types), draft.size // 3), turns=3))):
        asked, annotations, seen = [], [], Counter()
        for item in split_items:
            image_id, question_id = item.number + 1, 1000 * (item.number + 1) + seen[item.number]
            seen[item.number] += 1
            draft.image(f"{split}/COCO_{split}_{image_id:012d}.jpg", item.scene)
            ids = {"image_id": image_id, "question_id": question_id}
            asked.append({**ids, "question": item.text})
            answers = human_answers(item.question, draft.rng)
            annotations.append(
                {
                    "question_type": " ".join(item.question.text.split()[:3]),
                    "multiple_choice_answer": item.answer,
                    "answers": [{**answer, "answer_id": i} for i, answer in enumerate(answers, 1)],
                    "answer_type": answer_type(item.answer),
                    **ids,
                }
            )
        head = {"info": {"description": "miniature VQA v2.0", "version": "2.0"}, "license": {"url": "", "name": ""}}
        head |= {"data_type": "mscoco", "data_subtype": split}
        file = f"v2_OpenEnded_mscoco_{split}_questions.json"
        draft.json(file, {**head, "task_type": "Open-Ended", "questions": asked})
        if split == "val2014":
            draft.json("v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})
        else:
            of_dev = set(sorted({question["image_id"] for question in asked})[::2])
            dev = [question for question in asked if question["image_id"] in of_dev]
            head |= {"data_subtype": "test-dev2015", "task_type": "Open-Ended"}
            draft.json("v2_OpenEnded_mscoco_test-dev2015_questions.json", {**head, "questions": dev})


@_benchmark
def gqa(draft: Draft) -> None:
    """Questions with their programs; testdev is balanced as a whole."""
    types = ("exist", "exist_size", "exist_place", "colour", "shape", "size", "place", "choose_colour", "choose_shape")
    types += ("both", "either", "compare")
    asked = {}
    for index, item in enumerate(draft.items(types, turns=2)):
        key = f"20{index:07d}"
        draft.image(f"images/n{item.number}.jpg", item.scene)
        asked[key] = {
            **gqa_program(item),
            "question": item.text,
            "answer": item.answer,
            "fullAnswer": f"{item.answer[0].upper()}{item.answer[1:]}.",
            "imageId": f"n{item.number}",
            "isBalanced": True,
            "entailed": [key],
            "equivalent": [key],
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        }
    draft.json("testdev_balanced_questions.json", asked)


@_benchmark
def vizwiz(draft: Draft) -> None:
    """val with answers, test without; a quarter of the questions ask about what is not there."""
    for split, size in (("val", draft.size), ("test", max(8, draft.size // 3))):
        records = []
        for index, item in enumerate(draft.items(("exist", "count", *ATTRIBUTES), size)):
            question = item.question
            if index % 4 == 0:
                question = draft.rng.choice([q for q in unanswerable(item.scene) if q.type in ATTRIBUTES])
            name = f"VizWiz_{split}_{index:08d}.jpg"
            draft.image(f"{split}/{name}", item.scene)
            record: dict[str, Any] = {"image": name, "question": Item(0, item.scene, question).text}
            if split == "val":
                answerable = question.answer != UNANSWERABLE
                record["answers"] = human_answers(question, draft.rng)
                record["answer_type"] = answer_type(question.answer) if answerable else UNANSWERABLE
                record["answerable"] = int(answerable)
            records.append(record)
        draft.json(f"{split}.json", records)


@_benchmark
def scienceqa(draft: Draft) -> None:
    """Two thirds with an image; the others tell in the hint what there is to see. A few problems of other splits."""
    subjects = ("natural science", "social science", "language science")
    problems, splits = {}, {"train": [], "val": [], "test": []}
    kinds = ("exist", "count", "count_by_attribute", "shape", "size")
    for index, item in enumerate([*draft.items(kinds, len(kinds)), *draft.items(kinds)]):
        split = ("train", "val")[index % 2] if index < len(kinds) else "test"
        has_image = split == "test" and index % 3 > 0
        options = options_of(item.question, draft.rng)
        key = str(index + 1)
        splits[split].append(key)
        if has_image:
            draft.image(f"images/test/{key}/image.png", item.scene)
        problems[key] = {
            "question": item.text,
            "choices": options,
            "answer": options.index(item.answer),
            "hint": ("", HINT)[index % 2] if has_image else glyph_map(item.scene),
            "image": "image.png" if has_image else None,
            "task": "yes or no" if len(options) == 2 and "yes" in options else "closed choice",
            "grade": f"grade{1 + index % 12}",
            "subject": subjects[index % 3],
            "topic": "shapes",
            "category": item.question.type,
            "skill": f"Find the {item.question.type.replace('_', ' ')}",
            "lecture": "",
            "solution": "",
            "split": split,
        }
    draft.json("problems.json", problems)
    draft.json("pid_splits.json", splits)


@_benchmark
def textvqa(draft: Draft) -> None:
    """Nothing is written in the scenes: the words that "were read" tell nothing, and the question is about shapes."""
    data, prompts = [], []
    for index, item in enumerate(draft.items(("count", *ATTRIBUTES), turns=2)):
        image, text = f"{item.number:016x}", item.question.text
        draft.image(f"train_images/{image}.jpg", item.scene)
        data.append(
            {
                "question": text,
                "image_id": image,
                "image_classes": sorted({thing.shape for thing in item.scene.things}),
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "image_width": item.scene.width,
                "image_height": item.scene.height,
                "answers": [answer["answer"] for answer in human_answers(item.question, draft.rng)],
                "question_tokens": text.rstrip("?").split(),
                "question_id": 34602 + index,
                "set_name": "val",
            }
        )
        prompt = with_ocr(text, random_words(draft.rng))
        prompts.append({"question_id": image, "image": f"{image}.jpg", "text": prompt, "category": "default"})
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    draft.json("TextVQA_0.5.1_val.json", {**head, "data": data})
    draft.lines("llava_textvqa_val_v051_ocr.jsonl", prompts)


@_benchmark
def pope(draft: Draft) -> None:
    """As many yes as no about each image. What is not there is any coloured shape, or a frequent one (popular), or one whose
    colour and shape are both there, in different things (adversarial).
    """
    frequent = Counter(pair for scene in draft.pool for pair in _pairs(scene))
    order = [pair for pair, _ in frequent.most_common()]
    numbers = draft.rng.sample(range(len(draft.pool)), len(draft.pool))
    lines: dict[str, list[dict[str, Any]]] = {"random": [], "popular": [], "adversarial": []}
    for number in numbers:
        scene = draft.pool[number]
        there = sorted(_pairs(scene))
        absent = [pair for pair in order if pair not in there]
        mixed = [(c, s) for c, s in absent if c in {t.colour for t in scene.things} and s in {t.shape for t in scene.things}]
        if len(mixed) < len(there):
            continue
        draft.rng.shuffle(there)
        there = there[:3]
        choices = {"random": draft.rng.sample(absent, len(there)), "adversarial": draft.rng.sample(mixed, len(there))}
        choices["popular"] = draft.rng.sample(absent[: len(order) // 3], len(there))
        name = f"COCO_val2014_{number + 1:012d}.jpg"
        draft.image(f"val2014/{name}", scene)
        for split, missing in choices.items():
            for yes, no in zip(there, missing, strict=True):
                for (colour, shape), label in ((yes, "yes"), (no, "no")):
                    record = {"question_id": len(lines[split]) + 1, "image": name, "text": f"Is there a {colour} {shape}?"}
                    lines[split].append({**record, "label": label})
        if len(lines["random"]) >= draft.size:
            break
    for split, records in lines.items():
        draft.lines(f"coco/coco_pope_{split}.json", records[: draft.size // 2 * 2])


MME_TASKS: dict[str, tuple[str, str]] = {
    "existence": ("exist", r"is there a (circle|square|triangle|cross)\?"),
    "count": ("verify_count", ""),
    "position": ("exist_place", r" in row-\d"),
    "color": ("exist", r"is there a \w+ (?!shape)\w+\?"),
    "posters": ("exist", r"is there a \w+ shape\?"),
    "celebrity": ("exist_size", ""),
    "scene": ("compare", ""),
    "landmark": ("exist_place", r" in column-\d"),
    "artwork": ("both", ""),
    "OCR": ("either", ""),
}
"""Perception: the type of question of each task, and the pattern of those that are asked."""
MME_NESTED = ("artwork", "celebrity", "landmark", "posters", "scene")  # images and questions lie in folders of their own


@_benchmark
def mme(draft: Draft) -> None:
    """Perception: of each image two questions, one to be answered by yes and one by no."""
    for task, (type, pattern) in MME_TASKS.items():
        root = f"MME_Benchmark_release_version/{task}"
        images, texts = (f"{root}/images", f"{root}/questions_answers_YN") if task in MME_NESTED else (root, root)
        items = draft.pairs(type, max(1, draft.size // (2 * len(MME_TASKS))), pattern)
        for index, (scene, pair) in enumerate(items, 1):
            draft.image(f"{images}/{index:04d}.jpg", scene)
            lines = (f"{Item(0, scene, q).text} Please answer yes or no.\t{q.answer.capitalize()}\n" for q in pair)
            draft.text(f"{texts}/{index:04d}.txt", "".join(lines))


MMBENCH = {
    "coarse_perception": ("image_scene", "choose_shape"),
    "finegrained_perception (instance-level)": ("attribute_recognition", "colour"),
    "finegrained_perception (cross-instance)": ("attribute_comparison", "choose_colour"),
    "attribute_reasoning": ("physical_property_reasoning", "colour"),
    "relation_reasoning": ("physical_relation", "relation"),
    "logic_reasoning": ("structuralized_imagetext_understanding", "place"),
}
"""l2-category: (category, type of question)."""
MMBENCH_COLUMNS = (
    "index",
    "question",
    "hint",
    *LETTERS,
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)


@_benchmark
def mmbench(draft: Draft) -> None:
    """The legacy file: every question as often as it has options, two or four, which move on by one in each pass."""
    passes: list[list[dict[str, Any]]] = [[] for _ in LETTERS]
    per_kind = max(1, draft.size // len(MMBENCH))
    for l2_category, (category, type) in MMBENCH.items():
        for item in draft.items((type,), per_kind):
            index, options = len(passes[0]), options_of(item.question, draft.rng)
            row = {"question": item.text, "hint": HINT if index % 5 == 0 else "", "category": category, "source": "nano"}
            row |= {"l2-category": l2_category, "split": "dev", "image": base64.b64encode(encoded(item.scene, "JPEG")).decode()}
            for number in range(len(options)):
                moved = turned(options, number)
                answer = LETTERS[moved.index(item.answer)]
                choices = dict(zip(LETTERS, moved, strict=False))
                passes[number].append({**row, "index": index + 1_000_000 * number, "answer": answer, **choices})
    table = StringIO()
    writer = csv.DictWriter(table, MMBENCH_COLUMNS, restval="", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for rows in passes:
        writer.writerows(rows)
    draft.text("mmbench_dev_20230712.tsv", table.getvalue())


SEEDBENCH = {
    "Scene Understanding": "count",
    "Instance Identity": "shape",
    "Instance Attributes": "shape",
    "Instance Location": "count",
    "Instances Counting": "count_by_attribute",
    "Spatial Relation": "count",
    "Instance Interaction": "shape",
    "Visual Reasoning": "count_by_attribute",
    "Text Understanding": "shape",
    "Action Recognition": None,
    "Action Prediction": None,
    "Procedure Understanding": None,
}
"""Dimensions in the order of their ids, from 1, and the type of question; the last three are about videos."""


@_benchmark
def seedbench(draft: Draft) -> None:
    """Images in files without an ending; two questions about videos, which are not there, for each of their dimensions."""
    asked = []
    per_kind = max(1, draft.size // sum(type is not None for type in SEEDBENCH.values()))
    for type_id, type in enumerate(SEEDBENCH.values(), 1):
        for item in draft.items((type or "colour",), per_kind if type else 2):
            options = options_of(item.question, draft.rng)
            record = {f"choice_{letter.lower()}": option for letter, option in zip(LETTERS, options, strict=True)}
            record |= {"answer": LETTERS[options.index(item.answer)], "question": item.text, "question_type_id": type_id}
            number = len(asked) + 1
            if type:
                data_id = f"{item.number}_{1000 + type_id}"
                draft.image(f"SEED-Bench-image/{data_id}", item.scene)
                record |= {"data_id": data_id, "data_type": "image", "question_id": str(101000 + number)}
            else:
                record |= {"data_id": f"{number}.webm", "data_type": "video", "question_id": f"v{number}"}
                record |= {"segment": [0.0, 1.5]} if type_id > 10 else {}
            asked.append(record)
    question_type = {name: index for index, name in enumerate(SEEDBENCH, 1)}
    draft.json("SEED-Bench.json", {"question_type": question_type, "questions": asked})


MMVET = {
    "colour": ["rec"],
    "shape": ["rec", "know"],
    "exist": ["rec", "gen"],
    "place": ["rec", "spat"],
    "count": ["rec", "math"],
    "count_by_attribute": ["ocr", "math"],
    "size": ["ocr", "spat"],
}
"""The type of question, and the capabilities that it stands for."""


@_benchmark
def mmvet(draft: Draft) -> None:
    """Row and column must both be right; a number may be a word, and large may be big."""
    either = {str(number): f"{number}<OR>{word}" for number, word in enumerate(NUMBERS)}
    either |= {"large": "large<OR>big", "small": "small<OR>little"}
    asked = {}
    for index, item in enumerate(draft.items(tuple(MMVET))):
        name = f"v1_{index}.png"
        draft.image(f"images/{name}", item.scene)
        answer = item.answer.replace(" ", "<AND>") if item.question.type == "place" else either.get(item.answer, item.answer)
        asked[f"v1_{index}"] = {
            "imagename": name,
            "question": item.text,
            "answer": answer,
            "imagesource": "nano",
            "capability": MMVET[item.question.type],
        }
    draft.json("mm-vet.json", asked)


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}
