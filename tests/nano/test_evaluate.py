from __future__ import annotations

from lit_eve.nano.evaluate import majority_answers, question_of
from lit_eve.processing import Sample


def sample(*turns: tuple[str, str]) -> Sample:
    messages = [{"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)]
    messages[0]["value"] = "<image>\n" + messages[0]["value"]
    return Sample("key", messages)


def test_majority_is_counted_over_all_turns_by_the_words_of_the_question() -> None:
    training = [
        sample(("how many?", "1"), ("red?", "yes")),
        sample(("red?", "no"), ("how many?", "2")),
        sample(("how many?", "2"), ("red?", "no")),
    ]
    assert majority_answers(training, ["how many?", "red?", "never asked?"]) == ["2", "no", ""]


def test_the_question_is_what_the_user_says() -> None:
    assert question_of(sample(("how many?", "1"))) == "how many?"
