"""Templates beyond the official cases: formats of conversations, images anywhere, and the tokenizer's own chat template."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing import Dialogue, EveProcessor, Sample, parse_conversation, templates
from tests.processing.conftest import SMALL, load_tokenizer, make_byte_level, picture

CHATML = (  # Qwen2, SmolLM2
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING = (  # Qwen3: the last answer brings an empty block of thoughts
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TRIMMING = (  # Llama 3
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
INST = (  # Llama 2, Mistral: no generation prompt of its own
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {
    "chatml": make_byte_level(CHATML),
    "thinking": make_byte_level(THINKING),
    "trimming": make_byte_level(TRIMMING, bos_token="<|endoftext|>"),
    "inst": load_tokenizer(),
}
TOKENIZERS["inst"].chat_template = INST
TALK = [
    {"role": "user", "content": "What is shown?"},
    {"role": "assistant", "content": "A red circle."},
    {"role": "user", "content": "Where, äh …?"},
    {"role": "assistant", "content": "In the middle 中."},
]
ANSWERS = {
    "chatml": "A red circle.<|im_end|>In the middle 中.<|im_end|>",
    "thinking": "A red circle.<|im_end|><think>\n\n</think>\n\nIn the middle 中.<|im_end|>",
    "trimming": "A red circle.<|im_end|>In the middle 中.<|im_end|>",
    "inst": "A red circle. </s> In the middle 中. </s>",
}


def chat(name: str, **arguments) -> EveProcessor:
    template = {"name": "chat", **({"arguments": arguments} if arguments else {})}
    return EveProcessor(TOKENIZERS[name], geometry=SMALL, template=template)


def supervised(processor: EveProcessor, conversation: list, images: int = 0, **options) -> str:
    labels = processor.encode_sample(Sample("s", conversation, [picture(9, 9)] * images), **options)["labels"]
    return processor.tokenizer.decode([label for label in labels.tolist() if label != -100])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_chat_ids_are_those_of_the_tokenizer(name):
    processor = chat(name)
    for length, prompt in ((1, True), (2, False), (3, True), (4, False)):
        expected = processor.tokenizer.apply_chat_template(TALK[:length], add_generation_prompt=prompt, tokenize=True)
        features = processor.apply_chat_template(
            TALK[:length], add_generation_prompt=prompt, tokenize=True, return_dict=True, return_tensors=None
        )
        assert features["input_ids"] == [expected["input_ids"]]
        text = processor.tokenizer.apply_chat_template(TALK[:length], add_generation_prompt=prompt, tokenize=False)
        assert processor.apply_chat_template(TALK[:length], add_generation_prompt=prompt) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_chat_supervises_what_the_model_has_to_write(name):
    assert supervised(chat(name), TALK) == ANSWERS[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_chat_supervises_exactly_what_follows_the_generation_prompt(name):
    processor = chat(name)
    encoded = processor.encode_sample(Sample("s", TALK[:2]))
    prompt = processor(conversation=TALK[:1])["input_ids"][0].tolist()
    ids, labels = encoded["input_ids"].tolist(), encoded["labels"].tolist()
    assert ids[: len(prompt)] == prompt
    assert set(labels[: len(prompt)]) == {-100}
    end = max(i for i, label in enumerate(labels) if label != -100)
    assert labels[len(prompt) : end + 1] == ids[len(prompt) : end + 1]
    assert ids[end] == processor.tokenizer.eos_token_id


def test_chat_arguments():
    question = TALK[:1]
    assert chat("thinking").apply_chat_template(question, add_generation_prompt=True).endswith("assistant\n")
    without = chat("thinking", enable_thinking=False)
    assert without.apply_chat_template(question, add_generation_prompt=True).endswith("<think>\n\n</think>\n\n")
    assert supervised(without, TALK[:2]) == "A red circle.<|im_end|>"


def test_chat_trims_where_the_template_does():
    spaced = [{"role": "user", "content": "  What? \n"}, {"role": "assistant", "content": " It. "}]
    processor = chat("trimming")
    text = processor.tokenizer.apply_chat_template(spaced, tokenize=False)
    assert processor.apply_chat_template(spaced) == text
    assert supervised(processor, spaced) == "It.<|im_end|>"
    assert supervised(chat("chatml"), spaced) == " It. <|im_end|>"


def test_chat_with_images_anywhere():
    conversation = [
        {"from": "human", "value": "Compare <image> with <image>\nplease."},
        {"from": "gpt", "value": "Same."},
        {"from": "human", "value": "<image>\nAnd now?"},
        {"from": "gpt", "value": "Not."},
    ]
    processor = chat("chatml")
    ids = processor.encode_sample(Sample("s", conversation, [picture(9, 9), picture(99, 9), picture(9, 99)]))[
        "input_ids"
    ].tolist()
    runs = [SMALL.num_tokens(9, 9), SMALL.num_tokens(99, 9), SMALL.num_tokens(9, 99)]
    image = processor.image_token_id
    assert image == processor.tokenizer.convert_tokens_to_ids("<image>")
    lengths, position = [], 0
    while image in ids[position:]:
        start = ids.index(image, position)
        position = start + next(i for i, token in enumerate(ids[start:]) if token != image)
        lengths.append(position - start)
    assert lengths == runs
    assert supervised(processor, conversation, images=3) == "Same.<|im_end|>Not.<|im_end|>"
    text = "<|im_start|>user\nCompare <image> with <image>\nplease.<|im_end|>\n"
    assert text in processor.apply_chat_template(conversation)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_in_a_conversation_are_text(name):
    processor = chat(name)
    tokenizer = processor.tokenizer
    nasty = f"a {tokenizer.eos_token} b <image> c {tokenizer.special_tokens_map.get('bos_token', '')} \ue0000\ue001"
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": nasty}]},
        {"role": "assistant", "content": [{"type": "text", "text": nasty}]},
    ]
    encoded = processor.encode_sample(Sample("s", conversation))
    plain = processor.encode_sample(Sample("s", TALK[:2]))
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id, processor.image_token_id):
        assert encoded["input_ids"].tolist().count(token) == plain["input_ids"].tolist().count(token)
    assert nasty.strip() in supervised(processor, conversation)


def test_chat_needs_a_template():
    processor = EveProcessor(make_byte_level(), template="chat")
    with pytest.raises(ConfigError, match="needs a tokenizer with a chat template"):
        processor.encode_sample(Sample("s", TALK))


def test_chat_template_that_refuses_the_conversation():
    with pytest.raises(SampleError, match="^s: the tokenizer's chat template refuses the conversation: roles must alternate"):
        supervised(chat("inst"), [TALK[0], TALK[0], TALK[1]])


def test_chat_template_that_drops_messages():
    template = (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
    )
    processor = EveProcessor(make_byte_level(template), template="chat")
    with pytest.raises(SampleError, match="^s: the tokenizer's chat template does not write every message once"):
        processor.encode_sample(Sample("s", [{"role": "system", "content": "Be brief."}, *TALK]))


def test_chat_template_without_an_end():
    processor = EveProcessor(make_byte_level("{% for m in messages %}{{ m['content'] }}\n{% endfor %}"), template="chat")
    with pytest.raises(ConfigError, match="ends an answer without a special token"):
        processor.encode_sample(Sample("s", TALK))


# ---- conversations


def test_both_formats_give_the_same():
    llava = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "This."},
    ]
    hub = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
    openai = [hub[0], {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "What?"}]}, hub[2]]
    assert parse_conversation(llava) == parse_conversation(hub) == parse_conversation(openai)


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("What?", "USER: What? "),
        ("<image>\nWhat?", "USER: <image>\nWhat? "),
        ("What is <image> this?", "USER: <image>\nWhat is  this? "),
        ("<image>", "USER: <image> "),
        (" <image> here, <image> there \n", "USER: <image> here, <image> there "),
        ([{"type": "text", "text": "What?"}, {"type": "image"}], "USER: <image>\nWhat? "),
        ([{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}], "USER: <image><image>\nCompare. "),
        ([{"type": "text", "text": "a"}, {"type": "image"}, "b", {"type": "image"}], "USER: a\n<image>\nb\n<image> "),
    ],
)
def test_where_images_stand_in_a_dialogue(processor, content, prompt):
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text.removeprefix(templates.build({"name": "vicuna_v1"}).system + " ") == prompt + "ASSISTANT:"


def test_the_system_message_can_be_replaced_or_left_out(processor):
    question = {"from": "human", "value": "Hi"}
    talk = [{"from": "system", "value": "Be brief."}, question]
    assert processor.apply_chat_template(talk) == "Be brief. USER: Hi "
    assert processor.apply_chat_template([question], template={"name": "vicuna_v1", "system": "Go."}) == "Go. USER: Hi "
    assert processor.apply_chat_template([question], template={"name": "vicuna_v1", "system": ""}) == "USER: Hi "


def test_several_images_before_a_caption(processor):
    talk = [{"from": "human", "value": "<image> text <image>"}, {"from": "gpt", "value": "Two."}]
    assert processor.apply_chat_template(talk, template="plain") == "<image><image>Two.\n"
    assert processor.apply_chat_template(talk, template={"name": "plain", "end": "</s>"}) == "<image><image>Two.</s>"


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ([], "the conversation is empty"),
        (None, "the conversation is empty"),
        ("Hello", "the conversation is no list of messages"),
        ([{"from": "robot", "value": "Hi"}], "unknown role 'robot'; known: system, user, human, assistant, gpt"),
        ([{"role": None, "content": "Hi"}], "unknown role None"),
        ([{"from": "human", "text": "Hi"}], "a message needs the keys"),
        (["Hi"], "a message needs the keys"),
        ([{"from": "human", "value": 3}], "the content of a message must be a text or a list of parts, got int"),
        (
            [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b \ud83d"}],
            "no Unicode: it has half of a surrogate pair, .",
        ),
        ([{"role": "user", "content": ["\ude00 a"]}], "no Unicode"),
        ([{"role": "user", "content": [{"type": "text", "text": "a \ude00"}]}], "no Unicode"),
        ([{"role": "user", "content": [{"type": "video"}]}], "a part of a message must be a text or an image, got 'video'"),
        ([{"from": "human", "value": "Hi"}], "the conversation has no answer"),
        ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " \n"}], "the conversation has an empty answer"),
        ([{"from": r, "value": v} for r, v in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", ""))], "an empty answer"),
        ([{"from": "gpt", "value": "Hi"}], "nothing of the conversation is supervised"),
        (
            [{"from": "human", "value": "a"}] * 2 + [{"from": "gpt", "value": "b"}],
            "role 'user' stands where one of 'assistant'",
        ),
        ([*({"from": r, "value": "a"} for r in ("human", "gpt", "system"))], "role 'system' stands where one of 'user'"),
    ],
)
def test_conversations_that_cannot_be_used(processor, conversation, words):
    for function in (processor.encode_sample, processor.count_tokens):
        with pytest.raises(SampleError, match=f"^sample 7: .*{words}"):
            function(Sample("sample 7", conversation))


def test_a_question_without_answer_at_the_end_is_kept(processor):
    talk = [{"from": r, "value": v} for r, v in (("human", "a"), ("gpt", "b"), ("human", "c"))]
    assert supervised(processor, talk) == "b</s>"


# ---- templates of one's own


def test_a_template_of_ones_own(processor, monkeypatch):
    monkeypatch.setattr(templates, "_variants", dict(templates._variants))

    @templates.register("short")
    class Short(Dialogue):
        def __init__(self, words: int = 1) -> None:
            super().__init__(system=f"Answer in {words} word.")

    question = [{"role": "user", "content": "Hi"}]
    assert processor.apply_chat_template(question, template="short") == "Answer in 1 word. USER: Hi "
    assert processor.apply_chat_template(question, template={"name": "short", "words": 2}).startswith("Answer in 2 word.")


@pytest.mark.parametrize(
    ("template", "words"),
    [("vicuna", "unknown template 'vicuna'; known: .*vicuna_v1"), ({"name": "plain", "ende": "\n"}, "has no argument 'ende'")],
)
def test_unknown_templates(tokenizer, template, words):
    with pytest.raises(ConfigError, match=words):
        EveProcessor(tokenizer, template=template)


@pytest.mark.parametrize("template", ["vicuna_v1", "plain", "chat", "chatml"])
def test_an_answer_that_is_input_is_read_and_not_learned(template):
    processor = EveProcessor(make_byte_level(CHATML), geometry=SMALL, template=template)
    given = [TALK[0], {**TALK[1], "is_input": True}, *TALK[2:]]
    read, learned = (processor.encode_sample(Sample("s", talk)) for talk in (given, TALK))
    assert torch.equal(read["input_ids"], learned["input_ids"])
    end = {"vicuna_v1": "<|im_end|>", "plain": "\n"}.get(template, "<|im_end|>")
    assert supervised(processor, given).strip(" ") == "In the middle 中." + end
    with pytest.raises(SampleError, match="s: the conversation has no answer that is learned: all of them are is_input"):
        processor.encode_sample(Sample("s", given[:2]))
    with pytest.raises(SampleError, match="is_input of a message must be true or false, got 'yes'"):
        processor.encode_sample(Sample("s", [TALK[0], {**TALK[1], "is_input": "yes"}]))
    tables = [TALK[0], {**TALK[1], "is_input": None}]  # a table has a column for all messages
    assert torch.equal(
        processor.encode_sample(Sample("s", tables))["labels"], processor.encode_sample(Sample("s", TALK[:2]))["labels"]
    )


def test_chatml_needs_its_tokens(tokenizer):
    with pytest.raises(ConfigError, match="the template 'chatml' needs a tokenizer with the token <.im_start.>"):
        EveProcessor(tokenizer, template="chatml").answer_end()
