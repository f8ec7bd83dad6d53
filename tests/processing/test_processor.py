"""EveProcessor: samples for training, batches for inference, and what transformers expects of a processor."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing import EveProcessor, EveV1Geometry, Sample, image_size, load_image, patchify
from lit_eve.processing.tokenize import Tokens
from tests.processing.conftest import IMAGES, SMALL, TEACHER, load_tokenizer, make_byte_level, picture
from tests.processing.test_templates import CHATML

TALK = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A beach."}]
TWO = [
    {"from": "human", "value": "Compare <image> and <image>."},
    {"from": "gpt", "value": "Same."},
    {"from": "human", "value": "<image>\nAnd this?"},
    {"from": "gpt", "value": "Another."},
]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def random_sample(rng: random.Random, key: str) -> Sample:
    """A conversation with images, odd words and odd places of both."""
    words = ["What", " is", "  ", "\n", "a red circle", "</s>", "<unk>", "中国", "é😀", "ASSISTANT:", " USER: ", "x" * 40, "."]
    images, conversation = [], []
    for _ in range(rng.randint(1, 3)):
        question = [rng.choice(words) for _ in range(rng.randint(0, 6))]
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            question.insert(rng.randint(0, len(question)), "<image>")
            images.append(png(Image.new("RGB", (rng.randint(1, 60), rng.randint(1, 60)))))
        conversation.append({"from": "human", "value": "".join(question)})
        conversation.append({"from": "gpt", "value": "A" + "".join(rng.choice(words) for _ in range(rng.randint(0, 6)))})
    return Sample(key, conversation, images)


# ---- training


def test_encode_sample(processor):
    images = [picture(100, 30), png(picture(30, 100)), picture(50, 50)]
    encoded = processor.encode_sample(Sample("s", TWO, images), teacher=TEACHER)
    assert list(encoded) == ["input_ids", "labels", "pixel_values", "image_grid_hw", "teacher_pixel_values"]
    loaded = [load_image(image) for image in images]
    assert torch.equal(encoded["pixel_values"], torch.cat([patchify(image, SMALL)[0] for image in loaded]))
    assert encoded["image_grid_hw"].tolist() == [list(grid) for image in loaded for grid in SMALL.patch_grids(*image.size)]
    assert torch.equal(encoded["teacher_pixel_values"], torch.stack([TEACHER.canvas(image, SMALL) for image in loaded]))
    slots = (encoded["input_ids"] == processor.image_token_id).sum()
    assert slots == SMALL.num_tokens_of_grid(encoded["image_grid_hw"]).sum()
    assert encoded["input_ids"].dtype == encoded["labels"].dtype == encoded["image_grid_hw"].dtype == torch.int64
    assert encoded["pixel_values"].dtype == encoded["teacher_pixel_values"].dtype == torch.uint8
    assert "labels" not in processor.encode_sample(Sample("s", TWO, images), with_labels=False)


def test_text_only(processor):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    encoded = processor.encode_sample(Sample("s", talk), teacher=TEACHER)
    assert encoded["pixel_values"].shape == (0, 588) and encoded["pixel_values"].dtype == torch.uint8
    assert encoded["image_grid_hw"].shape == (0, 2) and encoded["image_grid_hw"].dtype == torch.int64
    assert encoded["teacher_pixel_values"].shape == (0, 3, 84, 84)


@pytest.mark.parametrize("template", ["vicuna_v1", "plain", "chat"])
@pytest.mark.parametrize("kind", ["first", "always", "byte level"])
def test_counts_equal_lengths(kind, template):
    tokenizer = make_byte_level() if kind == "byte level" else load_tokenizer(legacy=kind == "always")
    tokenizer.chat_template = CHATML.replace("<|im_end|>", tokenizer.eos_token)
    processor = EveProcessor(tokenizer, geometry=SMALL, template=template)
    rng = random.Random(0)
    samples = [random_sample(rng, str(i)) for i in range(60)]
    lengths = [len(processor.encode_sample(sample)["input_ids"]) for sample in samples]
    assert processor.count_tokens_batch(samples) == lengths
    assert [processor.count_tokens(sample) for sample in samples[:10]] == lengths[:10]
    sizes = [[image_size(image) for image in sample.images] for sample in samples]
    blind = [Sample(sample.key, sample.conversation, [None] * len(sample.images)) for sample in samples]
    assert processor.count_tokens_batch(blind, sizes) == lengths


@pytest.mark.parametrize("template", ["vicuna_v1", "plain", "chat"])
def test_random_samples_are_supervised_exactly_on_their_answers(template):
    tokenizer = make_byte_level(CHATML)
    processor = EveProcessor(tokenizer, geometry=SMALL, template=template)
    rng = random.Random(1)
    for i in range(60):
        sample = random_sample(rng, str(i))
        labels = processor.encode_sample(sample)["labels"].tolist()
        answers = [message["value"] for message in sample.conversation if message["from"] == "gpt"]
        before, end = {"vicuna_v1": (" ", "<|im_end|>"), "plain": ("", "\n"), "chat": ("", "<|im_end|>")}[template]
        text = tokenizer.decode([label for label in labels if label != -100])
        assert text == "".join(before + answer + end for answer in answers)


def test_truncation_comes_after_expansion(processor):
    sample = Sample("s", TALK, [picture(100, 60)])
    whole = processor.encode_sample(sample)
    length = len(whole["input_ids"])
    cut = processor.encode_sample(sample, max_length=length - 2)
    assert torch.equal(cut["input_ids"], whole["input_ids"][:-2]) and torch.equal(cut["labels"], whole["labels"][:-2])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    assert len(processor.encode_sample(sample, max_length=length)["input_ids"]) == length
    targets = int((whole["labels"] != -100).sum())
    assert int((processor.encode_sample(sample, max_length=length - targets + 1)["labels"] != -100).sum()) == 1
    with pytest.raises(
        SampleError, match=f"^s: nothing that is supervised lies in the first {length - targets} of its {length}"
    ):
        processor.encode_sample(sample, max_length=length - targets)
    processor.encode_sample(sample, max_length=length - targets, with_labels=False)


def test_an_answer_that_nothing_predicts_is_refused():
    """Without a beginning of its own, a sample of one token has none that comes after another."""
    assert Tokens([7, 8], [7, 8], []).truncate(2).labels == [7, 8]
    with pytest.raises(SampleError, match="nothing that is supervised lies in the first 1 of its 2 tokens"):
        Tokens([7, 8], [7, 8], []).truncate(1)


def test_no_image_is_ever_cut(processor):
    sample = Sample("s", TWO, [picture(50, 50)] * 3)
    ids = processor.encode_sample(sample)["input_ids"]
    end = int((ids == processor.image_token_id).nonzero()[-1]) + 1
    with pytest.raises(SampleError, match=f"^s: image 3 of 3 ends at token {end} and does not fit in {end - 1} tokens"):
        processor.encode_sample(sample, max_length=end - 1)
    assert len(processor.encode_sample(sample, max_length=end)["input_ids"]) == end


@pytest.mark.parametrize(("images", "count"), [([], 0), ([picture(9, 9)] * 2, 2)])
def test_images_that_do_not_match_their_places(processor, images, count):
    message = rf"^s: the text has 1 places for images \(<image>\), but there are {count} images"
    for function in (processor.encode_sample, processor.count_tokens):
        with pytest.raises(SampleError, match=message):
            function(Sample("s", TALK, images))


def test_bad_images_name_the_sample_and_the_image(processor):
    sample = Sample("s", TWO, [picture(9, 9), b"broken", picture(9, 9)])
    for function in (processor.encode_sample, processor.count_tokens):
        with pytest.raises(SampleError, match="^s, image 2 of 3: the image cannot be opened"):
            function(sample)
    with pytest.raises(SampleError, match="^s: the image of 300 x 1 pixels is narrower"):
        processor.count_tokens(Sample("s", TALK, [None]), [(300, 1)])
    limited = EveProcessor(load_tokenizer(), geometry=SMALL, max_image_pixels=100, max_aspect_ratio=3)
    with pytest.raises(SampleError, match="more than the limit of 100"):
        limited.encode_sample(Sample("s", TALK, [picture(20, 20)]))
    with pytest.raises(SampleError, match="narrower than the limit of 1:3"):
        limited.encode_sample(Sample("s", TALK, [picture(20, 2)]))


def test_bad_samples_of_a_batch_are_told_apart(processor):
    samples = [
        Sample("a", TALK, [picture(9, 9)]),
        Sample("b", TALK, []),
        Sample("c", [], []),
        Sample("d", TALK, [b"broken"]),
        Sample("e", TALK, [picture(9, 9)]),
    ]
    counts = processor.count_tokens_batch(samples)
    assert counts[0] == counts[4] == len(processor.encode_sample(samples[0])["input_ids"])
    assert [str(error).split(":")[0] for error in counts[1:4]] == ["b", "c", "d"]
    assert all(isinstance(error, SampleError) for error in counts[1:4])
    assert processor.count_tokens_batch([]) == []


def test_texts_that_give_no_token():
    backend = Tokenizer(models.WordLevel({"[unk]": 0, "yes": 1, "?": 2, "<end>": 3}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[unk]", eos_token="<end>")
    processor = EveProcessor(tokenizer, geometry=SMALL, template={"name": "plain", "end": " "})
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]
    assert processor.encode_sample(Sample("s", talk, [picture(9, 9)]))["labels"].tolist()[-2:] == [-100, 1]
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("yes", "")
    silent = EveProcessor(tokenizer, geometry=SMALL, template="plain")
    with pytest.raises(SampleError, match="^s: nothing that is supervised lies in the first 43 of its 43 tokens"):
        silent.encode_sample(Sample("s", talk, [picture(9, 9)]))
    dialogue = processor.encode_sample(Sample("s", [{"from": "human", "value": " "}, talk[1]]), template={"name": "vicuna_v1"})
    assert dialogue["labels"].tolist()[-2:] == [1, 3]


# ---- inference


def test_a_left_padded_batch_equals_one_by_one(processor):
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture(100, 40)}, {"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "And?"}, {"type": "image", "image": picture(20, 40)}]}],
    ]
    batch = processor(conversation=conversations)
    singles = [processor(conversation=one) for one in conversations]
    for row, mask, single in zip(batch["input_ids"], batch["attention_mask"], singles, strict=True):
        assert torch.equal(row[mask.bool()], single["input_ids"][0])
        assert mask.tolist() == sorted(mask.tolist())  # all padding is on the left
    assert singles[1]["pixel_values"].shape == (0, SMALL.patch_dim) and singles[1]["image_grid_hw"].shape == (0, 2)
    for key in ("pixel_values", "image_grid_hw"):
        assert torch.equal(batch[key], torch.cat([singles[0][key], singles[2][key]]))
    right = processor(conversation=conversations, padding_side="right")
    assert right["attention_mask"].tolist() == [sorted(mask, reverse=True) for mask in batch["attention_mask"].tolist()]
    ragged = processor(conversation=conversations, padding=False, return_tensors=None)
    assert ragged["input_ids"] == [single["input_ids"][0].tolist() for single in singles]


def test_where_images_come_from(processor, tmp_path):
    image = picture(30, 20)
    path = tmp_path / "image.png"
    image.save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    expected = processor(images=image, text="<image> What?")
    for source in (path, str(path), path.read_bytes(), np.array(image), f"data:image/png;base64,{data}"):
        for images in (source, [source], [[source]]):
            assert torch.equal(processor(images=images, text="<image> What?")["pixel_values"], expected["pixel_values"])
    for part in (
        {"type": "image", "image": image},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": str(path)},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    ):
        features = processor.apply_chat_template([{"role": "user", "content": [part]}], tokenize=True, return_dict=True)
        assert torch.equal(features["pixel_values"], expected["pixel_values"])


def test_padding(processor):
    texts = ["Hi", "What is shown in this image?"]
    rows = [processor(text=text)["input_ids"][0].tolist() for text in texts]
    longest, pad = max(map(len, rows)), processor.tokenizer.pad_token_id
    for options, width in (
        ({}, longest),
        ({"padding": "longest"}, longest),
        ({"pad_to_multiple_of": 16}, 16),
        ({"padding": "max_length", "max_length": 40}, 40),
        ({"padding": "max_length", "max_length": 40, "pad_to_multiple_of": 16}, 48),
        ({"max_length": 2}, longest),
        ({"truncation": True, "max_length": 40}, longest),
        ({"text_kwargs": {"padding": "max_length", "max_length": 40}}, 40),
    ):
        for side in ("left", "right"):
            ids = processor(text=texts, padding_side=side, **options)["input_ids"].tolist()
            fill = [[pad] * (width - len(row)) for row in rows]
            assert ids == [f + row if side == "left" else row + f for f, row in zip(fill, rows, strict=True)]
    with pytest.raises(SampleError, match=f"^prompt 2 has {longest} tokens, more than the 5 of max_length"):
        processor(text=texts, truncation=True, max_length=5)
    assert processor(text="Hi", padding="max_length")["input_ids"].shape == (1, processor.tokenizer.model_max_length)
    with pytest.raises(ConfigError, match="padding='max_length' needs a max_length: the tokenizer names none"):
        EveProcessor(make_byte_level(), geometry=SMALL)(text="Hi", padding="max_length")


def test_images_alone(processor):
    images = [picture(100, 40), picture(20, 40)]
    expected = processor(images, "<image><image>")
    for given in (images, [images], [images[:1], images[1:]]):
        features = processor(images=given)
        assert list(features) == ["pixel_values", "image_grid_hw"]
        assert torch.equal(features["pixel_values"], expected["pixel_values"])
    batch = np.stack([np.array(picture(30, 20))] * 2)
    assert torch.equal(processor(batch, "<image><image>")["pixel_values"], processor(list(batch))["pixel_values"])


def test_images_are_dealt_out_in_order(processor):
    images = [picture(10 * i, 50) for i in (1, 3, 5)]
    prompts = ["<image> a <image>", "b", "c <image>"]
    flat = processor(images, prompts)
    nested = processor([images[:2], [], images[2:]], prompts)
    assert flat["image_grid_hw"].tolist() == [list(SMALL.patch_grids(*image.size)[0]) for image in images]
    for key in flat:
        assert torch.equal(flat[key], nested[key])
    for wrong in (images[:2], [images], [images[:1], images[1:], []]):
        with pytest.raises(SampleError, match="images"):
            processor(wrong, prompts)


def test_raw_prompts_may_begin_with_bos(processor):
    assert processor(text="<s>Hi")["input_ids"].tolist()[0][:2] != [1, 1]
    assert processor(text="Hi")["input_ids"].tolist()[0][0] == 1


def test_the_last_answer_can_be_continued(processor):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}]
    for template in ("vicuna_v1", "eve_v1"):
        assert processor.apply_chat_template(talk, continue_final_message=True, template=template).endswith("ASSISTANT: I am")
    chat = EveProcessor(make_byte_level(CHATML), template="chat")
    for template in ("chat", "chatml", {"name": "chatml", "learn_after_turn": True}, {"name": "chatml", "after_turn": ""}):
        written = chat.apply_chat_template(talk, continue_final_message=True, template=template)
        assert written.endswith("<|im_start|>assistant\nI am")
    assert chat.apply_chat_template(talk, continue_final_message=True, template="plain") == "I am"
    with pytest.raises(SampleError, match="only an answer can be continued"):
        processor.apply_chat_template(talk[:1], continue_final_message=True)


def test_decoding_leaves_image_slots_out(processor):
    features = processor(images=[picture(9, 9)] * 2, text=["What? <image>", "<image> It is."])
    for ids in (features["input_ids"], features["input_ids"].tolist(), features["input_ids"].numpy()):
        texts = processor.post_process_image_text_to_text(ids)
        assert [text.split() for text in texts] == [["What?"], ["It", "is."]]
        assert processor.decode(ids[0], skip_special_tokens=True) == texts[0]
        assert processor.decode(ids, skip_special_tokens=True) == texts
        assert processor.post_process_image_text_to_text(ids[0]) == texts[0]
    rows = [features["input_ids"][0], features["input_ids"][1][-3:].tolist()]  # of different length
    assert processor.batch_decode(rows, skip_special_tokens=True) == processor.post_process_image_text_to_text(rows)
    assert processor.decode(rows[0][-1]) == processor.decode([rows[0][-1]]) == processor.tokenizer.decode([int(rows[0][-1])])
    assert processor.decode([]) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either text or a conversation"),
        ({"text": "a", "conversation": TALK}, "either text or a conversation"),
        ({"text": "a", "return_tensors": "np"}, "return_tensors must be 'pt' or None"),
        ({"text": []}, "a text or a list of texts .*, got an empty list"),
        ({"text": TALK}, r"messages go into conversation=.*, got list"),
        ({"text": 3}, "got int"),
        ({"text": "a", "padding": "longst"}, "padding must be one of True, 'longest', 'max_length'"),
        ({"text": "a", "truncation": "left"}, "truncation must be one of"),
        ({"text": "a", "max_length": 0}, "max_length must be at least 1, got 0"),
        ({"text": "a", "padding_side": "top"}, "padding_side must be one of 'left', 'right', got 'top'"),
    ],
)
def test_wrong_calls(processor, arguments, words):
    with pytest.raises(ConfigError, match=words):
        processor(**arguments)


def test_a_prompt_that_is_no_unicode(processor):
    with pytest.raises(SampleError, match="no Unicode: it has half of a surrogate pair"):
        processor(text="a \udce9")


def test_unknown_arguments_are_named(processor):
    question = [{"role": "user", "content": "Hi"}]
    for tokenize in (True, False):
        with pytest.raises(TypeError, match="tools"):
            processor.apply_chat_template(question, tokenize=tokenize, tools=[])
        with pytest.raises(ConfigError, match="an answer is begun or continued"):
            processor.apply_chat_template(question, tokenize=tokenize, add_generation_prompt=True, continue_final_message=True)
        processor.apply_chat_template(question, tokenize=tokenize, tools=None, return_assistant_tokens_mask=False)
    assert list(processor(text="Hi", videos=None, audio=None)) == processor.model_input_names
    with pytest.raises(SampleError, match="needs one of the keys image, url, path"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=True)


# ---- a citizen of transformers


def test_saved_and_loaded(tmp_path):
    template = {"name": "vicuna_v1", "system": "Be brief."}
    processor = EveProcessor(
        load_tokenizer(), geometry=SMALL, template=template, image_token_id=600, image_mean=[0.5] * 3, image_std=[0.2] * 3,
        max_image_pixels=10_000, max_aspect_ratio=50,
    )  # fmt: skip
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["geometry"] == SMALL.to_dict() and saved["template"] == template and saved["image_token"] == "<image>"
    loaded = EveProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.geometry == SMALL and loaded.image_mean == (0.5, 0.5, 0.5)
    sample = Sample("s", TALK, [picture(30, 20)])
    for ours, theirs in zip(
        processor.encode_sample(sample, teacher=TEACHER).values(), loaded.encode_sample(sample, teacher=TEACHER).values(),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(ours, theirs)


def test_chat_template_survives_saving(tmp_path):
    processor = EveProcessor(make_byte_level(CHATML), geometry=SMALL, template="chat")
    processor.save_pretrained(tmp_path)
    loaded = EveProcessor.from_pretrained(tmp_path)
    sample = Sample("s", TALK, [picture(30, 20)])
    assert torch.equal(loaded.encode_sample(sample)["labels"], processor.encode_sample(sample)["labels"])


def test_auto_processor(tmp_path, processor):
    import lit_eve.models  # noqa: F401 (registers it)

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EveProcessor and loaded.to_dict() == processor.to_dict()


def test_pickled_for_the_workers_of_a_loader(processor):
    """What looks like a special token stays text there too."""
    sample = Sample(
        "s", [*TALK, {"from": "human", "value": "</s>?"}, {"from": "gpt", "value": "It is </s>."}], [picture(30, 20)]
    )
    expected = processor.encode_sample(sample)
    copy = pickle.loads(pickle.dumps(processor))
    assert torch.equal(copy.encode_sample(sample)["labels"], expected["labels"])


def test_decoding_leaves_image_slots_out_of_a_vocabulary_that_has_them():
    processor = EveProcessor(make_byte_level(), geometry=SMALL)
    features = processor(images=picture(9, 9), text="What? <image> It.<|im_end|>")
    assert processor.batch_decode(features["input_ids"]) == ["What?  It.<|im_end|>"]
    assert processor.batch_decode(features["input_ids"], skip_special_tokens=True) == ["What?  It."]


def test_no_text_becomes_an_image_even_if_the_image_token_is_not_special():
    tokenizer = make_byte_level(CHATML)
    tokenizer.add_tokens(["<picture>"])
    processor = EveProcessor(tokenizer, geometry=SMALL, image_token="<picture>")
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<picture>")
    talk = [{"role": "user", "content": "Is <picture> a word?"}, {"role": "assistant", "content": "<picture>"}]
    for template in ("vicuna_v1", "chat"):
        ids = processor.encode_sample(Sample("s", talk), template=template)["input_ids"]
        assert processor.image_token_id not in ids


def test_the_image_token(tokenizer):
    assert EveProcessor(tokenizer).image_token_id == len(tokenizer) == 512
    assert EveProcessor(tokenizer, image_token_id=777).image_token_id == 777
    inside = make_byte_level()
    assert EveProcessor(inside).image_token_id == inside.convert_tokens_to_ids("<image>")


def test_the_tokenizer_is_left_as_it_is(tokenizer, processor):
    before = tokenizer.backend_tokenizer.to_str()
    processor.encode_sample(Sample("s", TALK, [picture(9, 9)]))
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("a</s>b")["input_ids"].count(2) == 1


def test_only_fast_tokenizers(tokenizer):
    class Slow(type(tokenizer)):
        backend_tokenizer = None

    slow = Slow.from_pretrained(IMAGES.parent / "tokenizer")
    with pytest.raises(ConfigError, match="a fast tokenizer is needed, got Slow"):
        EveProcessor(slow).encode_sample(Sample("s", TALK, [picture(9, 9)]))


def test_wrong_geometry(tokenizer):
    with pytest.raises(ConfigError, match="geometry 'eve_v1' has no key 'size'"):
        EveProcessor(tokenizer, geometry={"size": 3})
    assert EveProcessor(tokenizer, geometry={"image_size": 1344}).geometry == EveV1Geometry(image_size=1344)
