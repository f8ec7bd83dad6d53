"""The word-level tokenizer."""

import random
from itertools import islice

import pytest
from transformers import AutoTokenizer

from lit_eve.nano.language import ANSWERS, TYPES, Ledger, ask, document
from lit_eve.nano.scenes import scenes
from lit_eve.nano.tokenizer import make_tokenizer

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
    ledger, rng = Ledger(slack=100), random.Random(0)
    for scene in islice(scenes("a", 0), 300):
        for asked in (ask(scene, rng, ledger, len(TYPES)), []):
            assert tokenizer.unk_token_id not in tokenizer(document(scene, asked, rng)).input_ids


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
    assert tokenizer.convert_ids_to_tokens(supervised) == ["3", "</s>"]
