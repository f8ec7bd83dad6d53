"""The adapter under lmms-eval's own classes, where it is installed (requirements-lmms-eval.txt)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lmms_eval.api.model")

from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks import TaskManager, get_task_dict

from lit_eve.errors import ConfigError, SampleError
from lit_eve.evaluation import Query, answer_all
from lit_eve.evaluation.likelihood import score_answers
from lit_eve.evaluation.lmms_eval.adapter import LitEve, LitEveChat, LitEveSimple
from tests.evaluation.lmms_eval import tasks
from tests.tiny_model import make_tiny, scene_image

PROTOCOLS = pytest.mark.parametrize("protocol", [LitEveSimple, LitEveChat])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms_eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        tasks.write(folder)
        yield folder


@cache
def manager(folder: Path) -> TaskManager:
    """Knows the tasks in the folder; it reads those of lmms-eval too, which takes seconds."""
    return TaskManager("ERROR", include_path=str(folder / "tasks"), model_name="lit_eve")


def build(cls: type[LitEve], folder: Path, *names: str, **kwargs: Any) -> tuple[LitEve, dict[str, Any]]:
    """A model and the tasks that lmms-eval builds for its protocol, made known to each other as the evaluator does it."""
    lm = cls.create_from_arg_string(f"pretrained={folder / 'model'}", {"batch_size": "3", "device": "cpu", **kwargs})
    found = get_task_dict(list(names), manager(folder), "simple" if cls.is_simple else "chat")
    for name, task in found.items():
        task.set_config("num_fewshot", 0)
        lm.task_dict[name] = task.dataset
        task.build_all_requests(rank=0, world_size=1)
    return lm, found


def test_the_registry_finds_both_classes() -> None:
    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    if "lit_eve" not in registry.list_model_names():
        pytest.fail("lmms-eval finds no model lit_eve: install this package, `pip install --editable .[lmms-eval]`")
    assert registry.get_model_class("lit_eve") is LitEveChat
    assert registry.get_model_class("lit_eve", force_simple=True) is LitEveSimple
    assert issubclass(LitEveChat, lmms) and issubclass(LitEveSimple, lmms)


@PROTOCOLS
@pytest.mark.parametrize("window", [1, 16])
def test_answers_are_those_of_answer_all(
    protocol: type[LitEve], window: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_eve.evaluation.lmms_eval.adapter.WINDOW", window)
    lm, found = build(protocol, folder, "scenes")
    answers = lm.generate_until(found["scenes"].instances)
    assert answers == answer_all(*make_tiny(seed=4), tasks.queries(folder), max_new_tokens=6, progress=None)
    assert len(set(answers)) > 3


@PROTOCOLS
def test_text_only_tasks(protocol: type[LitEve], folder: Path) -> None:
    lm, found = build(protocol, folder, "scenes_text")
    queries = [Query([], query.question) for query in tasks.queries(folder)]
    expected = answer_all(*make_tiny(seed=4), queries, max_new_tokens=4, progress=None)
    assert lm.generate_until(found["scenes_text"].instances) == expected


@PROTOCOLS
def test_each_request_has_its_own_settings_and_stop_strings(protocol: type[LitEve], folder: Path) -> None:
    """Interleaved settings come back in the order of the requests, whatever shared a batch."""
    lm, found = build(protocol, folder, "scenes")
    requests = found["scenes"].instances
    place = 1 if protocol.is_simple else 2
    queries = tasks.queries(folder)
    model, processor = make_tiny(seed=4)
    full = answer_all(model, processor, queries, max_new_tokens=6, progress=None)
    stop = full[1][1:3]
    kinds = [{"max_new_tokens": 2}, {"max_new_tokens": 6, "until": [stop]}, {"max_new_tokens": 6, "num_beams": 3}]
    for index, request in enumerate(requests):
        request.arguments = (*request.args[:place], kinds[index % 3], *request.args[place + 1 :])
    answers = lm.generate_until(requests)
    short = answer_all(model, processor, queries, max_new_tokens=2, progress=None)
    beams = answer_all(model, processor, queries, max_new_tokens=6, num_beams=3, progress=None)
    assert answers[0::3] == short[0::3]
    assert answers[1::3] == [answer.split(stop)[0].strip() for answer in full[1::3]]
    assert answers[1] == full[1][:1]
    assert answers[2::3] == beams[2::3] and beams[2::3] != full[2::3]


@PROTOCOLS
def test_rounds(protocol: type[LitEve], folder: Path) -> None:
    """Documents of 1, 2 and 3 rounds; each round asks about the answer before."""
    lm, found = build(protocol, folder, "scenes_rounds")
    results = lm.generate_until_multi_round(found["scenes_rounds"].instances)
    model, processor = make_tiny(seed=4)
    for index, query in enumerate(tasks.queries(folder)):
        expected = answer_all(model, processor, [query], max_new_tokens=3, progress=None)
        for _ in range(index % 3):
            following = Query(query.images[:1], f"is there a {expected[-1]}?")
            expected += answer_all(model, processor, [following], max_new_tokens=3, progress=None)
        assert results[index] == expected
        assert unwrap_generation_output(results[index])[0] == expected


def test_messages_with_a_single_round(folder: Path) -> None:
    lm, found = build(LitEveChat, folder, "scenes")
    for request in found["scenes"].instances:
        messages = request.args[1]
        request.arguments = (request.args[0], lambda doc, messages=messages, **state: messages(doc), *request.args[2:])
    results = lm.generate_until_multi_round(found["scenes"].instances)
    assert results == [[answer] for answer in lm.generate_until(found["scenes"].instances)]


def test_multiple_choice(folder: Path) -> None:
    """The evaluator chooses the likeliest answer, although it looks for the smallest number."""
    lm, found = build(LitEveSimple, folder, "scenes_choice")
    task = found["scenes_choice"]
    queries = tasks.queries(folder)
    results = [unwrap_generation_output(result)[0] for result in lm.loglikelihood(task.instances)]
    pairs = [(query, choice) for query in queries for choice in tasks.CHOICES]
    scores = score_answers(*make_tiny(seed=4), *zip(*pairs, strict=True), progress=None)
    assert [-value for value, _ in results] == pytest.approx([score.log_prob for score in scores], abs=1e-3)
    chosen = []
    for index, doc in enumerate(task.dataset["train"]):
        own = slice(3 * index, 3 * index + 3)
        best = max(range(3), key=lambda choice, own=own: scores[own][choice].log_prob)
        chosen.append(best)
        assert task.process_results(doc, results[own])["acc"] == float(best == doc["label"])
    assert len(set(chosen)) > 1


def test_the_likelihood_of_a_target(folder: Path) -> None:
    """``output_type: loglikelihood``: the target is a function, and perplexity needs the log-likelihood itself."""
    lm, found = build(LitEveSimple, folder, "scenes_choice")
    choice = found["scenes_choice"].instances[0]
    target = Instance(
        "loglikelihood", (choice.args[0], lambda doc: doc["answer"], *choice.args[2:]), 0, metadata=choice.metadata
    )
    (given, by_function) = (unwrap_generation_output(result)[0] for result in lm.loglikelihood([choice, target]))
    assert by_function[0] == pytest.approx(-given[0], abs=1e-4) and by_function[0] < 0


def test_ranks_deal_out_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process takes the device and the rank that accelerate gives it."""
    there = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("lit_eve.evaluation.lmms_eval.adapter.Accelerator", lambda: there)
    lm = LitEveChat(folder / "model", device="cuda:7")  # the flag would send all processes to one device
    assert (lm.rank, lm.world_size, lm.device.type) == (1, 2, "cpu") and lm.accelerator is there


def test_arguments_reach_the_model(folder: Path) -> None:
    arguments = f"pretrained={folder / 'model'},dtype=bfloat16,attn_implementation=eager,template=vicuna_v1"
    lm = LitEveChat.create_from_arg_string(arguments, {"batch_size": "4", "device": "cpu"})
    assert str(lm.model.dtype) == "torch.bfloat16" and lm.model.config._attn_implementation == "eager"
    assert lm.template == "vicuna_v1" and lm.batch_size == 4
    lm.clean()
    assert not hasattr(lm, "model")  # lmms-eval frees the memory for a judge


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": "auto"}, ConfigError, "batch_size must be a positive number, got 'auto'"),
        ({"batch_size": 0}, ConfigError, "batch_size must be a positive number, got 0"),
        ({"template": "vicuna"}, ConfigError, "vicuna"),
        ({"max_pixels": 1}, TypeError, "max_pixels"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str, folder: Path) -> None:
    with pytest.raises(error, match=message):
        LitEveChat(folder / "model", **arguments)


@PROTOCOLS
def test_a_video_is_refused_by_task_and_document(protocol: type[LitEve], folder: Path) -> None:
    lm, found = build(protocol, folder, "scenes")
    task = found["scenes"]
    task.config.doc_to_visual = lambda doc: ["clip.mp4"] if doc["label"] == 1 else [scene_image()]
    with pytest.raises(SampleError, match="scenes, document 1: lit_eve reads texts and images, but the task brings video"):
        lm.generate_until(task.instances)
