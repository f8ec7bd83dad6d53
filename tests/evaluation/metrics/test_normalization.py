"""Against what the official code was seen to do; the golden files of the three benchmarks exercise the combinations."""

import re

import pytest

from lit_eve.evaluation.metrics.agreement import agreement
from lit_eve.evaluation.metrics.normalization import (
    CONTRACTIONS,
    VIZWIZ_CONTRACTIONS,
    evalai_answer,
    one_line,
    plain_words,
    strip_punctuation,
)
from tests.evaluation.golden import expected, inputs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("t-shirt", "t shirt"),
        ("t - shirt", "t  shirt"),
        ("1,000-2,000", "10002000"),
        ("1000-2000", "1000 2000"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("a-b c- d", "ab c d"),  # one mark beside a blank: all of them are deleted
        ("3.5.", "3.5"),
        ("v.2 u.s.a.", "v.2 usa"),
        ("." * 33 + "x", ".x"),  # 32 full stops at the most
        ("a:b%c$d&e*f#g|h’i", "a:b%c$d&e*f#g|h’i"),
    ],
)
def test_punctuation(text, wanted):
    assert strip_punctuation(text) == wanted


def test_digits_of_other_scripts_are_digits_but_under_python_2():
    assert strip_punctuation("x.٣") == "x.٣"
    assert strip_punctuation("x.٣", re.ASCII) == "x٣"
    assert strip_punctuation("1,٣/2") == "1٣2"
    assert strip_punctuation("1,٣/2", re.ASCII) == "1 ٣ 2"


def test_lmms_eval_takes_several_commas_for_one():
    assert strip_punctuation("1,,2/3") == "1  2 3"
    assert strip_punctuation("1,,2/3", commas=",+") == "123"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("None of the Ten, eleven", "0 of ten, eleven"),
        ("A\u00a0cat  on an\tApple", "cat on apple"),
        ("dont Im hell its", "don't im hell its"),
        ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
        ("somebody'd ow's'at yall'd've", "somebodyd 'ow's'at y'all'd've"),
    ],
)
def test_words(text, wanted):
    assert plain_words(text) == wanted


def test_contractions_are_the_official_tables():
    assert len(CONTRACTIONS) == len(VIZWIZ_CONTRACTIONS) == 120
    assert plain_words("dont cant couldn’tve couldn'tve", curly=True) == "don’t can't couldn’tve couldn’t’ve"
    straight = {word for word in VIZWIZ_CONTRACTIONS.values() if "'" in word}
    assert straight == {"ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've"}
    assert {key for key in VIZWIZ_CONTRACTIONS if "'" in key} == {"couldn'tve", "hadn'tve"}


def test_one_line():
    assert one_line(" a\nb\tc \r") == "a b c"


def test_evalai_processor_gives_what_eve_hands_in():
    raw = [row["answer"] for row in inputs("vqav2")["raw_predictions"]]
    assert [evalai_answer(text) for text in raw] == [row["answer"] for row in expected("vqav2")["eve_submission"]]
    wanted = expected("textvqa")["eve_textvqa"]["normalised"]
    for row in inputs("textvqa")["annotations_file"]["data"]:
        assert [evalai_answer(text) for text in row["answers"]] == wanted[str(row["question_id"])]["answers"]


def test_agreement():
    people = lambda agreeing: ["yes"] * agreeing + ["no"] * (10 - agreeing)  # noqa: E731
    assert [agreement("yes", people(n)) for n in range(6)] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])
    assert [agreement("yes", people(n), leave_one_out=False) for n in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
