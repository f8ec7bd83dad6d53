"""The word-level tokenizer."""

import random
from itertools import islice

import pytest
from transformers import AutoTokenizer

from lit_eve.nano.world.documents import document
from lit_eve.nano.world.prompts import LETTER, LETTERS, conversation, short, unsure, with_ocr, with_options
from lit_eve.nano.world.questions import ALL_ANSWERS, ANSWERS, Ledger, ask
from lit_eve.nano.world.scenes import scenes
from lit_eve.nano.world.tokenizer import make_tokenizer

CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many circles are there?"}]},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "what is the red shape?"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_it_knows_every_word_of_the_world(tokenizer):
    ledger, rng = Ledger(slack=100, weights=dict.fromkeys(ALL_ANSWERS, 1.0)), random.Random(0)
    for scene in islice(scenes("a", 0), 600):
        asked = ask(scene, rng, ledger, len(ALL_ANSWERS))
        for turns in (conversation(scene, asked, rng), []):
            assert tokenizer.unk_token_id not in tokenizer(document(scene, turns, rng)[1]).input_ids
    assert set(ledger.asked.values()) != {0.0}


def test_formats_and_letters_are_one_token_each(tokenizer):
    prompt = with_options("what colour is the circle?", ["red", "blue"])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt, add_special_tokens=False).input_ids)
    assert tokens == ["what", "colour", "is", "the", "circle", "shape", "?", "\nA.", "red", "\nB.", "blue", f"\n{LETTER}"]
    for form in (short, unsure, lambda text: with_ocr(text, ["red", "cross"])):
        ids = tokenizer(form("where is the red shape?"), add_special_tokens=False).input_ids
        assert len(ids) <= 11 and tokenizer.unk_token_id not in ids


def test_letters_stay_capitals_and_words_stay_words(tokenizer):
    for letter in LETTERS:
        ids = tokenizer(f" {letter}</s>", add_special_tokens=False).input_ids
        assert len(ids) == 2 and tokenizer.decode(ids, skip_special_tokens=True) == letter
    assert tokenizer.tokenize("Are there a circle") == ["are", "there", "a", "circle"]


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        ("what colour is the Circle?", "what colour is the circle shape ?"),
        ("how large is the circle shape?", "how large is the circle shape ?"),
        ("seen from the cross, where is the red shape?", "seen from the cross shape , where is the red shape ?"),
        ("how many crosses are there?", "how many cross shapes are there ?"),
        ("is there a red square?", "is there a red square ?"),
        ("a small red triangle row-1 column-2", "a small red triangle row-1 column-2"),
    ],
)
def test_things_are_named_in_one_way(tokenizer, asked, read):
    assert tokenizer.tokenize(asked) == read.split()


def test_answers_survive_a_round_trip(tokenizer):
    for answer in [word for words in ANSWERS.values() for word in words] + ["a small red circle, row-1 column-4"]:
        ids = tokenizer(f" {answer}</s>", add_special_tokens=False).input_ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == answer


def test_special_tokens(tokenizer):
    assert len({tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<s>", "</s>", "<pad>", "<unk>", "\n")}) == 6
    assert tokenizer.eos_token_id != 2, "CLIP of transformers pools the wrong position where the end token is 2"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("<image>\nHow many RED cats?").input_ids)
    assert tokens == ["<s>", "<image>", "\n", "how", "many", "red", "<unk>", "?"]


def test_chat_template(tokenizer):
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == ("<s>USER: <image>\nhow many circles are there? ASSISTANT: 3</s>USER: what is the red shape? ASSISTANT:")
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.convert_ids_to_tokens(supervised) == ["3", "</s>"], "words that are read as two move no mark"
