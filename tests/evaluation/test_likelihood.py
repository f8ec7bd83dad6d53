from __future__ import annotations

import pytest
import torch

from lit_eve.errors import SampleError
from lit_eve.evaluation import Query, answer_all
from lit_eve.evaluation.likelihood import AnswerScore, score_answers
from lit_eve.processing.templates import Chat, Segment, templates
from tests.tiny_model import make_tiny, scene_image

ANSWERS = ["yes", "the red circle", "2", "above the cross", "no", "a large blue square", "left"]


def make_pairs() -> tuple[list[Query], list[str]]:
    queries = [Query([scene_image(seed)], "is there a red circle?") for seed in range(5)]
    queries.insert(2, Query([], "how many shapes are there?"))
    queries.insert(4, Query([scene_image(1), scene_image(2)], "where is the cross?"))
    return queries, ANSWERS


@torch.no_grad()
def score_alone(model, processor, query: Query, answer: str) -> AnswerScore:
    """The open end of the processor's own prompt, one row, all logits."""
    conversation = query.conversation
    prompt = processor(images=list(query.images), conversation=conversation)["input_ids"].shape[1]
    turns = [*conversation, {"role": "assistant", "content": answer}]
    inputs = processor(images=list(query.images), conversation=turns, continue_final_message=True)
    log_probs = model(**inputs).logits[0].log_softmax(-1)
    written = inputs["input_ids"][0, prompt:]
    before = log_probs[prompt - 1 : -1]
    total = sum(float(before[i, token]) for i, token in enumerate(written))
    before[:, model.generation_config.suppress_tokens] = -torch.inf
    return AnswerScore(total, bool((before.argmax(-1) == written).all()))


@templates.register("likelihood_newline")
class EndsWithALearnedNewline(Chat):
    """As ChatML of NEO: behind the token that ends an answer, a newline is learned."""

    def render(self, messages, tokenizer, generation_prompt=False):
        segments = super().render(messages, tokenizer, generation_prompt)
        return segments if generation_prompt else [*segments, Segment("\n", supervised=True)]


@pytest.mark.parametrize(("decoder", "template"), [("llama", "chat"), ("qwen3", "chat"), ("llama", "likelihood_newline")])
def test_equals_one_row_at_a_time(decoder: str, template: str) -> None:
    model, processor = make_tiny(decoder, seed=3)
    processor.template = template
    queries, answers = make_pairs()
    expected = [score_alone(model, processor, *pair) for pair in zip(queries, answers, strict=True)]
    assert len({round(score.log_prob, 1) for score in expected}) > 4  # so an exchange would be seen
    for batch_size in (1, 3, 16):
        found = score_answers(model, processor, queries, answers, batch_size=batch_size, progress=None)
        assert [score.log_prob for score in found] == pytest.approx([score.log_prob for score in expected], abs=1e-3)
        assert [score.is_greedy for score in found] == [score.is_greedy for score in expected]


def test_what_greedy_decoding_writes_is_greedy_and_likelier_than_a_change_of_it() -> None:
    model, processor = make_tiny(seed=4)
    query = Query([scene_image()], "is there a red circle?")
    (answer,) = answer_all(model, processor, [query], max_new_tokens=5, progress=None)
    assert len(answer.split()) > 1
    other = " ".join(["cross", *answer.split()[1:]])
    assert other != answer
    best, changed = score_answers(model, processor, [query, query], [answer, other], progress=None)
    assert best.is_greedy and not changed.is_greedy
    assert best.log_prob > changed.log_prob


def test_the_token_that_would_be_suppressed_is_no_rival() -> None:
    """``generate`` never writes the image token, however likely."""
    model, processor = make_tiny(seed=3)
    query = Query([scene_image()], "is there a red circle?")
    (answer,) = answer_all(model, processor, [query], max_new_tokens=1, progress=None)
    prompt = processor(images=[scene_image()], conversation=query.conversation)
    with torch.no_grad():
        taps = []
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: taps.append(args[0]))
        model(**prompt)
        hook.remove()
        model.get_output_embeddings().weight[processor.image_token_id] = 100 * taps[0][0, -1]
        assert model(**prompt).logits[0, -1].argmax() == processor.image_token_id
    assert answer_all(model, processor, [query], max_new_tokens=1, progress=None) == [answer]
    (score,) = score_answers(model, processor, [query], [answer], progress=None)
    assert score.is_greedy


def test_only_the_last_answer_counts_and_not_the_end_of_its_turn() -> None:
    model, processor = make_tiny(seed=3)
    turns = [
        {"role": "user", "content": "is there a cross?"},
        {"role": "assistant", "content": "yes, a large blue cross above the small red circle"},  # longer than what follows it
        {"role": "user", "content": "where?"},
    ]
    (found,) = score_answers(model, processor, [Query([], turns)], ["left"], progress=None)
    assert found.log_prob == pytest.approx(score_alone(model, processor, Query([], turns), "left").log_prob, abs=1e-3)


def test_template_is_used() -> None:
    model, processor = make_tiny(seed=3)
    queries, answers = make_pairs()
    own = score_answers(model, processor, queries, answers, progress=None)
    assert score_answers(model, processor, queries, answers, template="vicuna_v1", progress=None) != own


def test_bad_pairs_are_named() -> None:
    model, processor = make_tiny()
    with pytest.raises(SampleError, match="query 1: .*empty answer"):
        score_answers(model, processor, [Query([], "is there a cross?")] * 2, ["yes", " "], progress=None)
    with pytest.raises(SampleError, match="scenes, document 7: .*2 places for images.*1 images"):
        query = Query([scene_image()], "<image><image> is there a cross?", "scenes, document 7")
        score_answers(model, processor, [query], ["yes"], progress=None)


def test_nothing_to_score() -> None:
    assert score_answers(*make_tiny(), [], []) == []
