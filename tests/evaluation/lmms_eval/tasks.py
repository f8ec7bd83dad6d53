"""Tasks of lmms-eval about scenes of the miniature world, with all their files in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from lit_eve.evaluation import Query
from tests.tiny_model import make_tiny, scene_image

QUESTIONS = ["how many shapes are there?", "is there a red circle?", "where is the cross?"]
CHOICES = ["yes", "no", "left"]

FUNCTIONS = """
from PIL import Image

def visuals(doc):
    return [Image.open(file) for file in doc["images"]]

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    info = (previous_round_info or 0) + 1
    last = round_idx > doc["more_rounds"]
    return visuals(doc)[:1], f"is there a {previous_output[-1]}?", last, previous_output, info

def keep(doc, results):
    return {"rounds": len(results[0])}
"""

COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {folder}/docs.jsonl
test_split: train
doc_to_text: question
"""

TASKS = {
    "scenes": """
doc_to_visual: !function functions.visuals
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  until: ["\\n\\n", "ASSISTANT:"]
  image_aspect_ratio: original
metric_list:
  - metric: exact_match
""",
    "scenes_text": """
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  do_sample: false
metric_list:
  - metric: exact_match
""",
    "scenes_choice": """
output_type: multiple_choice
doc_to_visual: !function functions.visuals
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
""",
    "scenes_rounds": """
output_type: generate_until_multi_round
doc_to_visual: !function functions.visuals
doc_to_text: !function functions.rounds
doc_to_target: answer
process_results: !function functions.keep
generation_kwargs:
  max_new_tokens: 3
metric_list:
  - metric: rounds
    aggregation: mean
    higher_is_better: true
""",
}


def write(folder: Path, count: int = 7) -> Path:
    """A model, images, ``docs.jsonl`` and the YAML of each task; returns the folder of the tasks."""
    for part in make_tiny(seed=4):
        part.save_pretrained(folder / "model")
    docs = []
    for index in range(count):
        files = [folder / f"{index}-{i}.png" for i in range(1 + (index == 2))]
        for i, file in enumerate(files):
            scene_image(10 * i + index).save(file)
        docs.append(
            {
                "images": [str(file) for file in files],
                "question": QUESTIONS[index % 3],
                "answer": "yes",
                "choices": CHOICES,
                "label": index % 3,
                "more_rounds": index % 3,
            }
        )
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "functions.py").write_text(FUNCTIONS)
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(COMMON.format(name=name, folder=folder) + text)
    return tasks


def queries(folder: Path) -> list[Query]:
    """What the documents ask."""
    docs = [json.loads(line) for line in (folder / "docs.jsonl").read_text().splitlines()]
    return [Query(doc["images"], doc["question"]) for doc in docs]
