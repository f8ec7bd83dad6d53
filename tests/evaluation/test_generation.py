from __future__ import annotations

import pytest
import torch

from lit_eve.errors import SampleError
from lit_eve.evaluation import Query, answer_all
from tests.tiny_model import make_tiny, scene_image

QUESTIONS = [
    "how many shapes are there?",
    "is there a red circle?",
    "seen from the square, where is the red shape?",
    "where is the cross?",
]


def make_queries() -> list[Query]:
    queries = [Query([scene_image(seed)], QUESTIONS[seed % 4]) for seed in range(7)]
    queries.insert(2, Query([], QUESTIONS[0]))
    queries.insert(5, Query([scene_image(1), scene_image(2)], QUESTIONS[1]))
    return queries


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_answers_do_not_depend_on_how_queries_are_batched(decoder: str) -> None:
    model, processor = make_tiny(decoder, seed=4)
    queries = make_queries()
    alone = [answer_all(model, processor, [query], max_new_tokens=8, progress=None)[0] for query in queries]
    assert len(set(alone)) > 4  # the answers differ, so an exchange would be seen
    for batch_size in (2, 4, 16):
        assert answer_all(model, processor, queries, batch_size=batch_size, max_new_tokens=8, progress=None) == alone


def test_questions_may_be_conversations_or_name_the_place_of_their_image() -> None:
    model, processor = make_tiny()
    image = scene_image()
    part = {"type": "image", "image": image}
    text = {"type": "text", "text": QUESTIONS[0]}
    same = [
        ([image], QUESTIONS[0]),
        ([image], "<image>\n" + QUESTIONS[0]),
        ([image], [{"role": "user", "content": [part, text]}]),
        ([image], [{"from": "human", "value": "<image>\n" + QUESTIONS[0]}]),
    ]
    answers = answer_all(model, processor, same, max_new_tokens=8, progress=None)
    assert len(set(answers)) == 1
    turns = [*same[2][1], {"role": "assistant", "content": "2"}, {"role": "user", "content": QUESTIONS[1]}]
    assert answer_all(model, processor, [([image], turns)], max_new_tokens=8, progress=None)[0] != answers[0]


def test_sampling_arguments_reach_generate() -> None:
    model, processor = make_tiny()
    query = [([scene_image()], QUESTIONS[0])] * 4
    torch.manual_seed(0)
    sampled = answer_all(model, processor, query, max_new_tokens=8, do_sample=True, temperature=5.0, progress=None)
    assert len(set(sampled)) > 1
    (answer,) = answer_all(model, processor, query[:1], max_new_tokens=2, min_new_tokens=2, progress=None)
    assert 1 <= len(processor.tokenizer(answer, add_special_tokens=False).input_ids) <= 2


def test_a_query_that_cannot_be_used_is_named() -> None:
    model, processor = make_tiny()
    with pytest.raises(SampleError, match="query 1.*no/such.png"):
        answer_all(model, processor, [([], "is there a cross?"), (["no/such.png"], "is there a cross?")])
    with pytest.raises(SampleError, match="query 0: .*2 places for images.*1 images"):
        answer_all(model, processor, [([scene_image()], "<image><image> is there a cross?")])


def test_nothing_to_answer() -> None:
    assert answer_all(*make_tiny(), []) == []


@pytest.mark.parametrize("reloaded", [False, True])
def test_the_image_token_is_never_written(reloaded: bool, tmp_path) -> None:
    """It would be taken for the place of an image in the next step."""
    model, processor = make_tiny()
    prompt = processor(conversation=[{"role": "user", "content": QUESTIONS[0]}])
    with torch.no_grad():  # make it the likeliest token
        state = model.get_decoder()(prompt["input_ids"]).last_hidden_state[0, -1]
        model.get_output_embeddings().weight[processor.image_token_id] = 100 * state
        assert model(**prompt).logits[0, -1].argmax() == processor.image_token_id
    if reloaded:
        model.save_pretrained(tmp_path)
        model = type(model).from_pretrained(tmp_path)
    written = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert len(written) and not (written == processor.image_token_id).any()
