"""Questions made of samples: what can be asked is asked, and what cannot ends neither a training nor a prediction."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from lit_eve.data import ShardWriter
from lit_eve.errors import SampleError
from lit_eve.models.generation.asking import split_answer
from lit_eve.processing import Sample
from lit_eve.training.cli import EveCLI
from tests.training import world as micro


def talk(*turns: str) -> list[dict[str, str]]:
    """Turns of a conversation; "> ..." is said by the assistant."""
    return [{"from": "gpt" if turn.startswith(">") else "human", "value": turn.lstrip("> ")} for turn in turns]


@pytest.mark.parametrize(
    ("turns", "asked", "images", "expected"),
    [
        (["<image>What?", "> red", "And?", "> blue"], 1, ["a"], "red"),
        (["> hello", "what <image>?", "> green", "<image>", "> red"], 2, ["a"], "green"),
        (["> hello <image>", "> what?", "<image>?", "> green"], 3, ["a", "b"], "green"),
    ],
)
def test_split_answer(turns, asked, images, expected):
    question = split_answer(Sample("s", talk(*turns), ["a", "b", "c"]))
    assert (list(question.conversation), list(question.images)) == (talk(*turns)[:asked], images)
    assert question.expected == expected and question.fault is None


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (["what?"], "no answer"),
        (["> hello"], "no question before an answer"),
        (["> hello", "what?"], "no question before an answer"),
    ],
)
def test_nothing_to_ask(turns, words):
    with pytest.raises(SampleError, match=f"^s: the conversation has {words}"):
        split_answer(Sample("s", talk(*turns)))


def test_samples_that_cannot_be_asked_end_nothing(world, tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    with ShardWriter(tmp_path / "odd") as writer:
        writer.write({"id": "opening", "conversations": talk("> hello", "red circle", "> green")})
        writer.write({"id": "broken", "conversations": talk("<image>small", "> red")}, [buffer.getvalue()[:2000]])
        writer.write({"id": "alone", "conversations": talk("> red circle above")})
        writer.write({"id": "usual", "conversations": talk("<image>the circle", "> green")}, [buffer.getvalue()])
        writer.write({"id": "blind", "conversations": talk("the circle", "> green")})
    overrides = {"data.validation": tmp_path / "odd", "answers.num_samples": 5, "data.max_bad_fraction": 1}
    arguments = micro.arguments(
        world, tmp_path / "run", **overrides, **{"trainer.max_steps": 2, "trainer.val_check_interval": 2}
    )
    trained = EveCLI(args=arguments)  # template plain: an answer alone is a text to learn
    events = micro.texts(tmp_path / "run")
    assert "**expected** green" in events["answers/0"] and "**expected** green" in events["answers/3"]
    assert "**not asked** broken: the image cannot be decoded" in events["answers/1"]
    assert "**not asked** alone: the conversation has no question" in events["answers/2"]
    assert "**not asked** blind: the template 'plain' leaves nothing of the conversation to ask" in events["answers/4"]

    rest = [one for one in micro.arguments(world, tmp_path / "answers", "3_finetune")[1:] if not one.startswith("--data.")]
    rest += [f"--model.init_from={tmp_path / 'run' / 'model'}", f"--data.test={tmp_path / 'odd'}", "--data.max_bad_fraction=1"]
    EveCLI(args=["predict", *rest, "--data.template=plain"])
    rows = [json.loads(line) for line in (tmp_path / "answers" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["opening", "broken", "alone", "usual", "blind"] and trained.trainer.global_step == 2
    assert ["error" in row for row in rows] == [False, True, True, False, True] and rows[0]["expected"] == "green"
    assert rows[1]["error"].startswith("broken: the image cannot be decoded") and rows[1]["answer"] == ""


@pytest.mark.parametrize(("template", "question"), [("plain", ""), ("null", "USER: "), ("eve_v1", "a curious human")])
def test_predict_asks_with_the_template_of_the_data(world, tmp_path, monkeypatch, template, question):
    module = micro.make_module(world, template="vicuna_v1")
    module.configure_model()
    for part in (module.model, module.processor):
        part.save_pretrained(tmp_path / "model")
    given = micro.arguments(world, tmp_path / "run", "3_finetune", **{"model.init_from": tmp_path / "model"})
    asked = []

    def answer(model, processor, prompts, max_new_tokens, template, **kwargs):
        texts = processor.tokenizer.batch_decode(prompts["input_ids"].clamp(max=511))
        asked.append((template, texts))
        return ["green" for _ in texts]

    monkeypatch.setattr("lit_eve.training.module.generate_answers", answer)
    EveCLI(args=["predict", *given[1:], f"--data.template={template}", "--data.limit_samples=2", "--data.num_workers=0"])
    ((used, texts), *_) = asked
    assert used == (None if template == "null" else template)
    assert all((question in text) if question else ("USER" not in text) for text in texts)
