from __future__ import annotations

import threading
import time

import pytest
import torch

from lit_eve.demo.web.decoding import Decoder, Sampling, Writing
from lit_eve.demo.web.engine import Engine
from lit_eve.errors import LitEveError
from tests.demo.web.asking import LENGTH, QUESTIONS, expected, messages, wait_for
from tests.tiny_model import make_tiny, scene_image

GREEDY = Sampling(LENGTH)


def test_answers_of_many_users_are_those_that_each_gets_alone(engine: Engine) -> None:
    asked = [(QUESTIONS[i % 4], None if i % 5 == 0 else i) for i in range(14)]
    sizes = []
    engine.decoders["one"].model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    decoder, step = engine.decoders["one"], engine.decoders["one"].step
    decoder.step = lambda: (sizes.append(len(decoder.rows)), step())[1]
    tickets = []
    for question, seed in asked:
        images = [] if seed is None else [scene_image(seed)]
        tickets.append(engine.ask("one", messages(question, *images), GREEDY))
        time.sleep(0.01)  # so that some join while others are being written
    wait_for(tickets)
    assert [ticket.text for ticket in tickets] == [expected(*one) for one in asked]
    assert max(sizes) == engine.batch_size  # and no more
    assert all(ticket.tokens_per_second > 0 and ticket.count == len(ticket.ids) for ticket in tickets)
    assert not decoder.rows and not engine._writing


@pytest.mark.parametrize("decoder", ["mistral", "bloom", "lfm2"])
def test_decoders_of_other_kinds(decoder: str) -> None:
    engine = Engine({"one": make_tiny(decoder)}, batch_size=3)
    asked = [(QUESTIONS[i % 4], i) for i in range(8)]
    tickets = []
    for question, seed in asked:
        tickets.append(engine.ask("one", messages(question, scene_image(seed)), GREEDY))
        time.sleep(0.01)
    wait_for(tickets)
    engine.close()
    assert [ticket.text for ticket in tickets] == [expected(*one, decoder) for one in asked]


def test_caches_with_windows_are_not_joined() -> None:
    decoder = Decoder(*make_tiny("mistral"))
    decoder.add([Writing(decoder, messages(QUESTIONS[0], scene_image(0)), GREEDY)])
    assert not decoder.takes_more
    plain = Decoder(*make_tiny())
    plain.add([Writing(plain, messages(QUESTIONS[0], scene_image(0)), GREEDY)])
    assert plain.takes_more


def test_a_seed_gives_the_same_answer_in_any_company(engine: Engine) -> None:
    def ask(seed: int, companions: int) -> str:
        others = [engine.ask("one", messages(QUESTIONS[i], scene_image(i)), GREEDY) for i in range(companions)]
        ticket = engine.ask("one", messages(QUESTIONS[0], scene_image(0)), Sampling(LENGTH, 2.0, 0.95, seed))
        wait_for([ticket, *others])
        return ticket.text

    assert ask(1, companions=0) == ask(1, companions=3) != ask(2, companions=0)


def test_sampling_is_that_of_generate() -> None:
    model, processor = make_tiny()
    model.generation_config.update(repetition_penalty=1.3, top_k=7)
    decoder = Decoder(model, processor)
    inputs = processor(conversation=messages(QUESTIONS[0], scene_image(0)))
    scores = model(**inputs).logits[0, -1].detach()
    writing = Writing(decoder, messages(QUESTIONS[0], scene_image(0)), Sampling(LENGTH, 0.7, 0.8))
    found = writing._processors(inputs["input_ids"], scores[None])[0]
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 1}
    output = model.generate(**inputs, **settings, output_scores=True, return_dict_in_generate=True)
    torch.testing.assert_close(found, output.scores[0][0], atol=1e-4, rtol=1e-4)
    assert 1 < found.isfinite().sum() <= 7


def test_both_models_answer_at_the_same_time(engine: Engine) -> None:
    tickets = [engine.ask(name, messages(QUESTIONS[1], scene_image(2)), GREEDY) for name in ("one", "two")]
    wait_for(tickets)
    assert tickets[0].text == expected(QUESTIONS[1], 2) != tickets[1].text
    with pytest.raises(LitEveError, match="there is no model 'three'; there are one, two"):
        engine.ask("three", messages("what?"), GREEDY)


def blocked(engine: Engine) -> threading.Event:
    """Keep the engine's thread waiting until the event is set."""
    event, reached = threading.Event(), threading.Event()
    engine.call(lambda: (reached.set(), event.wait(30)))
    assert reached.wait(30)
    return event


def test_the_queue_has_a_bound(engine: Engine) -> None:
    engine.max_waiting = 2
    go_on = blocked(engine)
    tickets = [engine.ask("one", messages(QUESTIONS[i], scene_image(i)), GREEDY) for i in range(2)]
    assert [engine.ahead_of(ticket) for ticket in tickets] == [0, 1]
    with pytest.raises(LitEveError, match="2 questions are waiting already: ask again in a moment"):
        engine.ask("one", messages("what?"), GREEDY)
    calls = [engine.call(lambda: 3) for _ in range(2)]
    with pytest.raises(LitEveError, match="too many requests"):
        engine.call(lambda: 3)
    go_on.set()
    wait_for(tickets)
    assert [call.result(30) for call in calls] == [3, 3]


def test_an_answer_is_stopped_with_what_is_written(engine: Engine) -> None:
    go_on = blocked(engine)
    waiting = engine.ask("one", messages(QUESTIONS[0]), GREEDY)
    waiting.cancel()
    go_on.set()
    wait_for([waiting])
    assert (waiting.text, waiting.note) == ("", "stopped")

    tickets = []
    stop = lambda: tickets and tickets[0].count == 3 and tickets[0].cancel()  # noqa: E731
    asked = ("what is red?", 5)
    go_on = blocked(engine)
    tickets.append(engine.ask("one", messages(asked[0], scene_image(asked[1])), GREEDY, stop))
    tickets.append(engine.ask("one", messages(asked[0], scene_image(asked[1])), GREEDY))
    go_on.set()
    wait_for(tickets)
    assert tickets[0].count in (3, 4) and tickets[0].note == "stopped" and tickets[1].text == expected(*asked)
    assert tickets[1].text.startswith(tickets[0].text)


def test_what_does_not_fit_the_context_is_refused_and_long_answers_end_there(engine: Engine) -> None:
    model = engine.decoders["one"].model
    prompt = engine.decoders["one"].processor(conversation=messages(QUESTIONS[0]))["input_ids"].shape[1]
    model.config.text_config.max_position_embeddings = prompt + 2
    ticket, long = (engine.ask("one", messages(text), GREEDY) for text in (QUESTIONS[0], QUESTIONS[0] * 3))
    wait_for([ticket, long])
    assert len(ticket.ids) == 2 and ticket.note == "the context is full"
    assert f"but the decoder reads {prompt + 2}: clear it, or ask with fewer images or words" in long.error


def test_a_failure_of_the_model_is_told_and_the_next_question_is_answered(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = engine.decoders["one"]
    for error, sentence in ((RuntimeError("secret"), "the model failed"), (torch.OutOfMemoryError(), "the memory")):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(decoder, "step", fail)
        go_on = blocked(engine)
        tickets = [engine.ask(name, messages(QUESTIONS[0], scene_image(0)), GREEDY) for name in ("one", "one", "two")]
        go_on.set()
        wait_for(tickets)
        assert all(ticket.error.startswith(sentence) and "secret" not in ticket.error for ticket in tickets[:2])
        assert not tickets[2].error
        monkeypatch.undo()
        again = engine.ask("one", messages(QUESTIONS[0], scene_image(0)), GREEDY)
        wait_for([again])
        assert again.text == expected(QUESTIONS[0], 0) and not engine._writing
    assert "secret" in caplog.text


def test_a_conversation_that_cannot_be_read_is_told(engine: Engine) -> None:
    ticket = engine.ask("one", [{"role": "nobody", "content": "what?"}], GREEDY)
    wait_for([ticket])
    assert ticket.error and not ticket.text
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(30)


def test_who_cannot_be_told_any_more_does_no_harm(engine: Engine) -> None:
    gone = engine.ask("one", messages(QUESTIONS[0], scene_image(0)), GREEDY, lambda: 1 // 0)
    there = engine.ask("one", messages(QUESTIONS[0], scene_image(0)), GREEDY)
    wait_for([gone, there])
    assert there.text == expected(QUESTIONS[0], 0) and gone.cancelled
