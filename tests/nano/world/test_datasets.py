"""The data sets that make_world writes."""

import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lit_eve.data.shards import ShardReader
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError
from lit_eve.nano.world.blind import blind_accuracy
from lit_eve.nano.world.datasets import HELD_OUT, TRAINING, WorldSettings, chosen, held_out_layouts, make_world
from lit_eve.nano.world.language import caption
from lit_eve.nano.world.prompts import CONTEXT
from lit_eve.nano.world.questions import ANSWERS, TYPES, Question
from lit_eve.nano.world.scenes import SceneSpec, draw
from lit_eve.processing.images import load_image

SMALL = WorldSettings(text=40, prealign=10, pretrain=30, finetune=30, validation=8, test=24, workers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("run"), SMALL)


def read(folder):
    """The samples of a folder of shards, through the index that training uses."""
    from lit_eve.data.shards.index import index_shard

    shards = list_shards(folder)
    reader = ShardReader(shards)
    indices = [index_shard(shard) for shard in shards]
    return [
        reader.read(shard, int(index.offset[i]), int(index.size[i]))
        for shard, index in enumerate(indices)
        for i in range(len(index))
    ]


def test_every_set_is_there_in_its_size(data):
    assert {path.name for path in data.iterdir()} == {*HELD_OUT, *TRAINING}
    for name in ("prealign", "pretrain", "finetune", "validation_captions", "test_captions", "test_questions"):
        assert len(read(data / name)) == SMALL.size(name)
    for name in ("text", "validation_text"):
        assert len((data / name / "documents.jsonl").read_text().splitlines()) == SMALL.size(name)


def test_captions_belong_to_their_images(data):
    held_out = held_out_layouts(SMALL)
    place_last = 0
    for sample, (scene, _) in zip(read(data / "pretrain"), chosen("pretrain", SMALL, held_out), strict=True):
        place, text = sample.conversation
        assert place["value"] == "<image>"
        assert text["value"] in {caption(scene, random.Random(seed)) for seed in range(20)}
        place_last += text["value"] != caption(scene)
        assert np.array_equal(np.asarray(load_image(sample.images[0])), np.asarray(draw(scene)))
    assert 0.2 < place_last / SMALL.pretrain < 0.6


def test_test_questions_are_single_and_carry_type_and_answer(data):
    for sample in read(data / "test_questions"):
        question, answer = (turn["value"] for turn in sample.conversation)
        assert question.startswith("<image>\n") and question.endswith("?")
        assert sample.metadata["answer"] == answer
        assert answer in ANSWERS[sample.metadata["type"]]


def test_finetune_has_several_turns_and_one_image(data):
    samples = read(data / "finetune")
    assert max(len(sample.conversation) for sample in samples) == 2 * SMALL.turns
    for sample in samples:  # a few tell in words what there is to see
        assert sum("<image>" in turn["value"] for turn in sample.conversation) == len(sample.images)
        assert sample.images or sample.conversation[0]["value"].startswith(CONTEXT)
        assert all(a["from"] != b["from"] for a, b in pairwise(sample.conversation))


def test_no_held_out_layout_is_trained_on():
    crowded = SceneSpec(counts=(1,), short_sides=(32,))  # so few layouts that they repeat
    settings = WorldSettings(
        scenes=crowded, text=200, prealign=200, pretrain=200, finetune=100, turns=1, validation=20, test=20
    )
    held_out = held_out_layouts(settings)
    free = {scene.layout for scene, _ in chosen("pretrain", settings)}
    assert free & held_out, "otherwise this test shows nothing"
    for name in TRAINING:
        assert not {scene.layout for scene, _ in chosen(name, settings, held_out)} & held_out


def test_the_blind_stay_blind():
    """Without images nobody passes a third of the test questions, not even knowing all answers of the test."""
    asked = [question for _, (question,) in chosen("test_questions", WorldSettings())]
    blind = blind_accuracy(asked)
    assert blind.pop("all") <= 0.36
    bounds = {"exist": 0.62, "size": 0.56, "relation": 0.42, "count": 0.27, "count_by_attribute": 0.32}
    bounds |= {"colour": 0.20, "shape": 0.29, "place": 0.18}
    assert set(blind) == set(TYPES) == set(bounds)
    for type, accuracy in blind.items():
        assert accuracy <= bounds[type], type


def test_training_teaches_no_guess():
    """Best guesses by words, learnt from the training questions, score at chance on the test questions."""
    trained = [question for _, asked in chosen("finetune", WorldSettings(finetune=4000)) for question in asked]
    tested = [question for _, (question,) in chosen("test_questions", WorldSettings())]
    guesses: dict[str, dict[str, int]] = {}
    for question in trained:
        counts = guesses.setdefault(question.text, {})
        counts[question.answer] = counts.get(question.answer, 0) + 1

    def guess(question: Question) -> str:
        counts = guesses.get(question.text, {"": 1})
        return max(counts, key=counts.get)

    right = sum(guess(question) == question.answer for question in tested) / len(tested)
    chance = sum(1 / len(ANSWERS[question.type]) for question in tested) / len(tested)
    assert abs(right - chance) < 0.05


def test_a_world_is_made_once(data):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    make_world(data.parent, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    with pytest.raises(ConfigError, match="pretrain"):
        make_world(data.parent, WorldSettings(**{**vars(SMALL), "pretrain": 31}))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_leaves_no_worker_behind(tmp_path):
    code = f"from lit_eve.nano.world.datasets import WorldSettings, make_world; make_world({str(tmp_path)!r}, WorldSettings())"
    process = subprocess.Popen([sys.executable, "-c", code])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(workers := children.read_text().split()) < WorldSettings().workers:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.wait()
    while there := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, there
        time.sleep(0.05)
