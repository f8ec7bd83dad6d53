from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lit_eve.data import prompt_loader, share_prompts
from lit_eve.processing import Sample
from tests.tiny_model import make_tiny, scene_image


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 7, 12, 13, 31])
def test_every_prompt_counts_once_and_all_ranks_have_equally_many_batches(count, world):
    lengths = np.random.default_rng(0).integers(10, 99, count).tolist()
    ranks = [share_prompts(lengths, 4, rank, world) for rank in range(world)]
    assert len({len(rows) for rows in ranks}) == 1
    counted = Counter(index for rows in ranks for row in rows for index, counts in row if counts)
    assert counted == Counter(range(count))
    assert all(0 < len(row) <= 4 for rows in ranks for row in rows)
    assert len(ranks[0]) == -(-count // (4 * world))


def test_prompts_of_like_length_are_together_longest_first():
    lengths = [5, 90, 7, 88, 6, 91]
    rows = share_prompts(lengths, 2)
    assert [[lengths[index] for index, _ in row] for row in rows] == [[91, 90], [88, 7], [6, 5]]


def samples() -> list[Sample]:
    ask = lambda text: [{"role": "user", "content": text}]  # noqa: E731
    return [
        Sample("first", ask("<image>\nis there a cross?"), [scene_image(1)]),
        Sample("second", ask("<image>\nhow many shapes are there?"), [scene_image(2)]),
        Sample("third", ask("is there a circle?")),
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_what_the_processor_makes(workers):
    _, processor = make_tiny()
    loader = prompt_loader(samples(), [[(2, True), (0, True)], [(1, False)]], processor, None, 9, workers, "pope")
    first, second = loader
    expected = processor(images=[[], [scene_image(1)]], conversation=[samples()[2].conversation, samples()[0].conversation])
    assert first.inputs.keys() == expected.keys()
    assert all(torch.equal(first.inputs[key], expected[key]) for key in expected)
    assert (first.source, first.indices, first.counts, first.max_new_tokens) == ("pope", [2, 0], [True, True], 9)
    assert (second.indices, second.counts) == ([1], [False])


def test_a_broken_image_is_named_and_keeps_no_other_from_being_asked(tmp_path):
    _, processor = make_tiny()
    scene_image(1).save(tmp_path / "broken.png")
    whole = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    asked = samples()
    asked[0] = Sample("first", asked[0].conversation, [tmp_path / "broken.png"])
    (batch,) = prompt_loader(asked, [[(0, True), (1, True)]], processor)
    assert batch.counts == [False, True]
    assert len(batch.errors) == 1 and batch.errors[0].startswith("first")
    alone = processor(images=[[scene_image(2)]], conversation=[asked[1].conversation])
    assert torch.equal(batch.inputs["pixel_values"][-len(alone["pixel_values"]) :], alone["pixel_values"])


def test_what_a_template_leaves_nothing_of_is_told(tmp_path):
    """A tokenizer without a beginning of its own would give the model no token at all."""
    _, processor = make_tiny()
    (batch,) = prompt_loader(samples(), [[(1, True), (2, True)]], processor, "plain")
    assert batch.counts == [True, False] and batch.inputs["attention_mask"].any(1).all()
    assert batch.errors == {2: "third: the template 'plain' leaves nothing of the conversation to ask"}
    assert str(processor.count_tokens_batch(samples(), template="plain", with_labels=False)[2]) == batch.errors[2]
