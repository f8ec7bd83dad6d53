"""``report.md``: how a run of the miniature EVE went, with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from PIL import Image

import lit_eve
from lit_eve.data import read_samples
from lit_eve.evaluation import normalize_answer
from lit_eve.files import write_atomically
from lit_eve.interpretation import attend, overlay, rollout
from lit_eve.interpretation.strips import beside, stacked
from lit_eve.markdown import table
from lit_eve.nano.evaluate import ANSWERS, MAX_NEW_TOKENS, RESULTS, question_of
from lit_eve.nano.figures import Example, plot_accuracy, plot_examples, plot_losses, read_curves
from lit_eve.processing import load_image
from lit_eve.training.callbacks.answers import word_map_files

EXAMPLES_PER_TYPE = 2
SIDE = 256  # longest side of an example, in pixels
QUESTIONS = 4  # of stage 3 whose word maps are shown, as many as are answered at its validations
STRIP = ("colour", "exist", "size", "count")  # types of the questions in strip.png

TEXT = """\
# Miniature EVE: report

| on {questions} questions about scenes that no training set holds | |
|---|---:|
| **answered right** | **{question_accuracy:.1%}** |
| answered right with the image of another question | {shuffled_accuracy:.1%} |
| best guess without images ({blind}) | {blind_accuracy:.1%} |
| caption tokens predicted right, after {captions_after} | {caption_accuracy:.1%} |

## Training

The losses of each stage. The thin line is every logged step, the thick one its running mean; dots are held-out scenes.

![The losses of all stages](figures/losses.png)

{learning}## Accuracy by type of question

![Accuracy by type of question, next to both baselines](figures/accuracy.png)

{by_type_table}

The best guess without images is the best of three: the most frequent answer of the training set to a question of the
same words ({majority:.1%}), which no model without eyes can beat but by luck; the model without the image
({no_image:.1%}); the model with an empty image ({blank_image:.1%}).

## Questions

The first {examples} test questions of each type, not chosen. {maps}

![Test questions with the model's answers](figures/questions.png)

All answers are in [`evaluation/answers.jsonl`](evaluation/answers.jsonl).

## Time

Where there are two cores, the teacher is trained beside the language model, within the time of that step.

{seconds}

{machine}; {versions}.

## Go on

```sh
.venv/bin/lit-eve chat --model {run}/model --image photo.png "how many shapes are there?"
.venv/bin/tensorboard --logdir {run}
.venv/bin/python train.py fit --config {config}/{captioner}.yaml --model.lr=1e-3 --trainer.default_root_dir=runs/my_pretrain
```
"""

LEARNING = """\
## Learning to see

One scene that is in no training set, at each validation of the stages before the last. The model writes its caption; above
each map are the word and the share of the attention (mean over layers and heads) that falls on the image.

![Captions and word maps of one scene over the training steps](figures/captions.png)

The same for questions in the last stage:

![Answers and word maps of some questions over the training steps](figures/answers.png)

"""

MAPS = """\
The map to the right of each image shows how much can have come
from each patch to the position that predicts the answer (attention rollout): the brightest spot gave most."""
NO_MAPS = "This model sees a photo in several views, so there is no map over it."

BASELINES = {"majority": "the most frequent answer", "no_image": "the model without the image", "blank_image": "an empty image"}


def write_report(
    run: Path,
    config: Path,
    stages: Sequence[str],
    captioner: str,
    seconds: Mapping[str, float],
    environment: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Draw the figures and write ``run/report.md``.

    Args:
        run: the run's folder, with its evaluation, model, test questions and the TensorBoard folders of the stages.
        config: where the run's YAML files are.
        stages: their names, in their order.
        captioner: the stage after which captions were evaluated.
        seconds: rows of the table of times.
        environment: ``{"machine": {...}, "versions": {...}}``.
    """
    results = json.loads((run / "evaluation" / RESULTS).read_text())
    figures = run / "figures"
    titles = {name: f"stage {number}: {name[2:].replace('_', ' ')}" for number, name in enumerate(stages, 1)}
    curves = {title: read_curves(run / name / "tensorboard") for name, title in titles.items()}
    plot_losses(figures / "losses.png", curves)
    keys = {"accuracy": "question_accuracy", "blind": "blind_accuracy", "shuffled": "shuffled_accuracy"}
    plot_accuracy(figures / "accuracy.png", results["by_type"], {name: results[key] for name, key in keys.items()})
    examples = make_examples(run)
    plot_examples(figures / "questions.png", examples)
    plot_examples(figures / "strip.png", [next(one for one in examples if one.type == type) for type in STRIP])
    drawn = draw_learning(figures, run, titles)

    best = max(results["baselines"], key=results["baselines"].__getitem__)
    rows = [
        (type.replace("_", " "), row["count"], *(f"{row[key]:.1%}" for key in ("accuracy", "shuffled", "blind")))
        for type, row in results["by_type"].items()
    ]
    times = [(step.replace("_", " "), f"{value:.0f}") for step, value in seconds.items()]
    machine = environment["machine"]
    text = TEXT.format(
        **results,
        **results["baselines"],
        blind=BASELINES[best],
        by_type_table=table(("type", "questions", "model", "other image", "no image"), rows),
        seconds=table(("step", "seconds"), times),
        machine=f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator'] or 'no GPU'}",
        versions=", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version),
        learning=LEARNING if drawn else "",
        examples=EXAMPLES_PER_TYPE,
        maps=MAPS if any(example.heat for example in examples) else NO_MAPS,
        run=run,
        config=config,
        captioner=captioner,
        captions_after=titles[captioner].partition(":")[0],
    )
    write_atomically(run / "report.md", text)
    return run / "report.md"


def draw_learning(figures: Path, run: Path, titles: Mapping[str, str]) -> bool:
    """Word maps at each validation: of one caption, one step below the other; of some questions, one step beside the other.

    Returns:
        Whether there were any: a photo in several views has none.
    """
    captions = [
        (f"{title.partition(':')[0]}\nstep {step}", Image.open(file))
        for name, title in list(titles.items())[:-1]
        for step, file in word_map_files(run / name, 0)
    ]
    questions = [
        (fill(question_of(sample), 18), beside([(f"step {step}", Image.open(file)) for step, file in files]))
        for index, sample in enumerate(read_samples(run / "data" / "validation_questions", limit=QUESTIONS))
        if (files := word_map_files(run / list(titles)[-1], index))
    ]
    figures.mkdir(parents=True, exist_ok=True)
    for name, rows in (("captions", captions), ("answers", questions)):
        if rows:
            stacked(rows).save(figures / f"{name}.png")
    return bool(captions and questions)


def make_examples(run: Path) -> list[Example]:
    """The first test questions of each type, with where the model looked when it answered."""
    model, processor = lit_eve.load(run / "model")
    samples = read_samples(run / "data" / "test_questions")
    lines = [json.loads(line) for line in (run / "evaluation" / ANSWERS).read_text().splitlines()]
    chosen: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        if len(chosen.setdefault(line["type"], [])) < EXAMPLES_PER_TYPE:
            chosen[line["type"]].append(index)
    examples = []
    for index in (index for indices in chosen.values() for index in indices):
        line, image = lines[index], model.geometry.frame(load_image(samples[index].images[0]))
        heat = None
        if model.geometry.shows_whole(image):
            seen = attend(model, processor, [image], line["question"], max_new_tokens=MAX_NEW_TOKENS)
            heat = overlay(image, rollout(model, seen)[0].mean(0), size=SIDE)
        scale = SIDE / max(image.size)
        examples.append(
            Example(
                image=image.resize([round(side * scale) for side in image.size], Image.Resampling.NEAREST),
                heat=heat,
                type=line["type"],
                question=line["question"],
                answer=line["model"],
                expected=line["expected"],
                correct=normalize_answer(line["model"]) == normalize_answer(line["expected"]),
            )
        )
    return examples
