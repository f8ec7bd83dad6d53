"""What stands around images: in every path, for every template, saved, and refused where the tokenizer lacks it."""

from __future__ import annotations

import pickle

import pytest
import torch

from lit_eve.data.lengths import fingerprint
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor, Sample
from tests.processing.conftest import SMALL, make_byte_level, picture
from tests.processing.test_templates import CHATML

TILES = {"name": "tiles", "image_size": 56, "max_tiles": 4, "class_token": False, "split_token": False}
PAIR = {"before": "<img>", "after": "</img>"}
TALK = [
    {"from": "human", "value": "Compare <image> and <image>."},
    {"from": "gpt", "value": "Same."},
    {"from": "human", "value": "<image>\nAnd this <img>?"},
    {"from": "gpt", "value": "Another.</img>"},
]
IMAGES = [picture(100, 30), picture(30, 100), picture(50, 50)]


def make(around=PAIR, template="vicuna_v1", geometry=SMALL, special=True) -> EveProcessor:
    tokenizer = make_byte_level(CHATML)
    tokenizer.add_tokens(["<img>", "</img>"], special_tokens=special)
    return EveProcessor(tokenizer, geometry=geometry, template=template, around_images=around)


def shape_of(ids: list[int], processor: EveProcessor) -> str:
    """The tokens around images and the images of a prompt: (i) for an image between its two tokens."""
    before, after = (processor.tokenizer.convert_tokens_to_ids(token) for token in PAIR.values())
    letters = {before: "(", after: ")", processor.image_token_id: "i"}
    shape = "".join(letters.get(id, "") for id in ids)
    while "ii" in shape:
        shape = shape.replace("ii", "i")
    return shape


@pytest.mark.parametrize("template", ["vicuna_v1", "plain", "chat", "chatml"])
@pytest.mark.parametrize("special", [True, False])
def test_every_path(template, special):
    """What users write stays text, whether or not the tokenizer calls the tokens special."""
    processor, bare = (make(around, template, special=special) for around in (PAIR, None))
    sample = Sample("s", TALK, IMAGES)
    ids, labels = (processor.encode_sample(sample)[key].tolist() for key in ("input_ids", "labels"))
    assert shape_of(ids, processor) == "(i)(i)(i)"
    assert processor.count_tokens(sample) == len(ids)
    without, labels_without = (bare.encode_sample(sample)[key].tolist() for key in ("input_ids", "labels"))
    if special:  # else, without them, the tokens may be written by users
        assert [label for label in labels if label != -100] == [label for label in labels_without if label != -100]
        assert len(ids) == len(without) + 6
    question = processor(conversation=TALK[:3], images=IMAGES)
    assert shape_of(question["input_ids"][0].tolist(), processor) == "(i)(i)(i)"
    written = processor.apply_chat_template(TALK[:3], add_generation_prompt=True)
    assert written.count("<image>") == 3 and "<img><image>" not in written
    again = processor(text=written.replace("this <img>", "this"), images=IMAGES)
    assert shape_of(again["input_ids"][0].tolist(), processor) == "(i)(i)(i)"


def test_one_pair_around_all_tiles_of_a_photo():
    processor = make(geometry=TILES)
    encoded = processor.encode_sample(Sample("s", TALK[:2], IMAGES[:2]))
    assert len(encoded["image_grid_hw"]) == 6  # two tiles and a thumbnail each
    assert shape_of(encoded["input_ids"].tolist(), processor) == "(i)(i)"
    assert (encoded["input_ids"] == processor.image_token_id).sum() == 6 * 4


def test_several_tokens_and_ordinary_text():
    processor = make({"before": "Photo: <|im_start|><img>", "after": "</img>\n", "allow_text": True})
    bare = make(None)
    sample = Sample("s", [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "That."}], IMAGES[:1])
    ids = processor.encode_sample(sample)["input_ids"].tolist()
    text = processor.tokenizer.decode([id for id in ids if id != processor.image_token_id])
    assert "USER: Photo: <|im_start|><img></img>\n\nWhat?" in text
    assert processor.count_tokens(sample) == len(ids) > bare.count_tokens(sample)


@pytest.mark.parametrize(
    ("around", "words"),
    [
        ({"before": "<vision>"}, "around_images.before: '<vision>' is no token of the tokenizer; .*allow_text: true"),
        ({"after": "</img> "}, "around_images.after: ' ' is no token"),
        ({"before": "<image>", "allow_text": True}, "around_images.before: <image> is the place of an image itself"),
        ({"before": 3}, "around_images.before must be of type str, got 3"),
        ({"allow_text": "yes"}, "around_images.allow_text must be of type bool, got 'yes'"),
        ({"first": "<img>"}, "around_images has no key 'first'; it takes: before, after, allow_text"),
    ],
)
def test_what_cannot_be_is_refused(around, words):
    with pytest.raises(ConfigError, match=words):
        make(around)


def test_saved_and_pickled(tmp_path):
    processor = make(template="plain")
    sample = Sample("s", TALK, IMAGES)
    expected = processor.encode_sample(sample)["input_ids"]
    processor.save_pretrained(tmp_path)
    for copy in (EveProcessor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(processor))):
        assert copy.to_dict() == processor.to_dict()
        assert torch.equal(copy.encode_sample(sample)["input_ids"], expected)
    assert "around_images" not in make(None).to_dict()


def test_counted_lengths_are_counted_again():
    assert fingerprint(make(PAIR)) != fingerprint(make(None)) == fingerprint(make({}))
