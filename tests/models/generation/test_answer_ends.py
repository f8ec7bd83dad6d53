"""Answers end where the template, the tokenizer, config.json or generation_config.json says so."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, pipeline

import lit_eve
from lit_eve.data import FinetuneDataModule
from lit_eve.demo.session import ChatSession
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.models.generation.answer_ends import TextEnd, end_answers
from lit_eve.models.generation.asking import generate_answers
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.processing import EveProcessor, Sample, templates
from lit_eve.processing.templates import Dialogue, Segment
from lit_eve.training import LitEve
from tests.models.tiny import GEOMETRY
from tests.tiny_model import make_tiny

QUESTION = [{"role": "user", "content": "what colour is it?"}]


def make_decoder(folder: Path, config_ends=0, generation_ends=None, **text) -> Path:
    """A decoder whose files name these ends of an answer; its tokenizer writes conversations with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, eos_token_id=config_ends, **text))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation_ends is not None:
        GenerationConfig(eos_token_id=generation_ends).save_pretrained(folder)
    return folder


def build(folder: Path, **kwargs) -> LitEve:
    module = LitEve(decoder=str(folder), geometry=GEOMETRY, patch_embedding={"name": "linear", "width": 32}, **kwargs)
    module.configure_model()
    return module


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(5, None, {5}), (5, 6, {5, 6}), (5, [6, 7], {5, 6, 7}), ([5, 8], 6, {5, 6, 8}), (None, None, set())],
)
@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
def test_ends_are_the_union_of_what_all_files_say(tmp_path, config, generation, expected, template):
    decoder = make_decoder(tmp_path / "decoder", config, generation)
    module = build(decoder, template=template)
    tokenizer = module.processor.tokenizer
    end = module.processor.answer_end().token
    last = module.processor.encode_sample(
        Sample("a", [*QUESTION, {"role": "assistant", "content": "red"}], ()), with_labels=True
    )["labels"]
    assert end == last[last != -100][-1] == tokenizer.eos_token_id  # nano's chat template ends with it too
    found = module.model.generation_config.eos_token_id
    assert set(found if isinstance(found, list) else [found]) == expected | {end}
    module.model.save_pretrained(tmp_path / "export")
    module.processor.save_pretrained(tmp_path / "export")
    assert json.loads((tmp_path / "export/generation_config.json").read_text())["eos_token_id"] == found
    assert lit_eve.load(tmp_path / "export")[0].generation_config.eos_token_id == found
    later = LitEve(init_from=str(tmp_path / "export"))  # the next stage
    later.configure_model()
    assert later.model.generation_config.eos_token_id == found


def test_the_end_of_a_turn_that_only_the_chat_template_names(tmp_path):
    """As in base models whose tokenizer has a chat template: eos is the end of a text, the turn ends otherwise."""
    decoder = make_decoder(tmp_path / "decoder", config_ends=0)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(decoder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    processor = EveProcessor(tokenizer, geometry=GEOMETRY, template="chat")
    assert processor.answer_end().token == end != tokenizer.eos_token_id
    model, _ = make_tiny()
    end_answers(model, processor, [[7], None, 8])
    assert {end, 7, 8, tokenizer.eos_token_id} <= set(model.generation_config.eos_token_id)


def writes(model, monkeypatch, tokens: list[int]) -> None:
    """Let a model write these tokens, one after the other, whatever it is asked."""
    forward, written = model.forward, iter(tokens * 2)

    @wraps(forward)
    def forced(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., next(written)] = 1
        return output

    monkeypatch.setattr(model, "forward", forced)


def test_every_way_to_ask_stops_there(tmp_path, monkeypatch):
    model, processor = make_tiny()
    end, word = 4, processor.tokenizer("red", add_special_tokens=False)["input_ids"][-1]
    model.config.eos_token_id = None
    model.generation_config = GenerationConfig(eos_token_id=end)
    end_answers(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    script = [word, end, word, word, word, word]

    def fresh():
        model, processor = lit_eve.load(tmp_path)
        writes(model, monkeypatch, script)
        return model, processor

    model, processor = fresh()
    inputs = processor(conversation=QUESTION)
    assert model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :].tolist() == [word, end]
    model, processor = fresh()
    assert len(generate_answers(model, processor, inputs, 6)[0].split()) == 1
    model, processor = fresh()
    assert len(ChatSession(model, processor, 6).ask("what?").split()) == 1
    model, processor = fresh()
    answer = pipeline("image-text-to-text", model=model, processor=processor)
    assert len(answer(text=QUESTION, max_new_tokens=6, return_full_text=False)[0]["generated_text"].split()) == 1


@pytest.fixture(params=["null", "absent"])
def older(tmp_path, request) -> Path:
    """An export whose files do not name the end of a turn; the tokenizer is beside them."""
    model, processor = make_tiny()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["eos_token_id"] = config["text_config"]["eos_token_id"] = None
    if request.param == "absent":
        del config["eos_token_id"], config["text_config"]["eos_token_id"]
        config.pop("pad_token_id", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    return tmp_path


def test_an_export_whose_files_name_one_end_only_is_loaded_with_all(older):
    loaded, processor = lit_eve.load(older)
    assert {9, processor.tokenizer.eos_token_id} <= set(loaded.generation_config.eos_token_id)  # LLaMA has one by default


def test_transformers_loads_it_with_all_too(older, tmp_path, monkeypatch):
    expected, processor = lit_eve.load(older)
    answer = pipeline("image-text-to-text", model=str(older))
    for model in (EveForConditionalGeneration.from_pretrained(older), answer.model):
        assert model.generation_config.eos_token_id == model.config.eos_token_id == expected.generation_config.eos_token_id
        assert model.generation_config.pad_token_id == expected.generation_config.pad_token_id
    word, end = processor.tokenizer("red", add_special_tokens=False)["input_ids"][-1], processor.tokenizer.eos_token_id
    writes(answer.model, monkeypatch, [word, end, word, word, word, word])
    said = answer(text=QUESTION, max_new_tokens=6, return_full_text=False)[0]["generated_text"]
    assert len(said.split()) == 1


def test_a_model_without_a_tokenizer_is_loaded_as_it_is(older):
    for file in older.glob("*token*"):
        file.unlink()
    assert EveForConditionalGeneration.from_pretrained(older).generation_config.eos_token_id == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no valid JSON"), ("[]", "is no JSON object"), ('{"eos_token_id": "</s>"}', "must be the id of a token")],
)
def test_ends_that_cannot_be_read_are_not_passed_over(tmp_path, content, message):
    """transformers takes a damaged generation_config.json for none."""
    decoder = make_decoder(tmp_path / "decoder")
    export = build(decoder).model
    (decoder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"decoder/generation_config.json.* {message}"):
        LitEve(decoder=str(decoder), geometry=GEOMETRY, patch_embedding={"name": "linear", "width": 32}).blueprint.check()
    export.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(decoder).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"generation_config.json.* {message}"):
        lit_eve.load(tmp_path)


# ---- ends that are text, or several tokens


class Ended(Dialogue):
    """Answers end with ``end``."""

    def __init__(self, end: list | str = "") -> None:
        super().__init__(system="")
        self.end = end

    def render(self, messages, tokenizer, generation_prompt=False):
        segments = super().render(messages, tokenizer, generation_prompt)
        own = [Segment(text, True, kind) for text, kind in self.end]
        return [new for old in segments for new in (own if old.kind == "special" else [old])]


@pytest.fixture
def ended(monkeypatch):
    monkeypatch.setitem(templates._variants, "ended", Ended)


def test_a_text_ends_an_answer(ended, monkeypatch):
    model, processor = make_tiny()
    processor.template = template = {"name": "ended", "end": [[" red blue", "text"]]}
    assert processor.answer_end() == (None, " red blue")
    words = {word: processor.tokenizer(word, add_special_tokens=False)["input_ids"][-1] for word in ("red", "blue", "green")}
    script = [words[word] for word in ("green", "red", "green", "red", "blue", "green", "green")]
    inputs = processor(conversation=QUESTION)
    writes(model, monkeypatch, script)
    (answer,) = generate_answers(model, processor, inputs, 7, template)
    assert answer.split() == ["green", "red", "green"]
    writes(model, monkeypatch, script)
    assert ChatSession(model, processor, 7).ask("what?").split() == ["green", "red", "green"]


def test_a_text_that_lies_across_tokens_is_found(tmp_path):
    """Byte by byte, with a piece of the prompt that would pass for the end."""

    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    stop, written = TextEnd(Bytes(), "ende ü", prompt_length=6), b"ende\xc3\xbc" + "das ende üb".encode()
    found = [bool(stop(torch.tensor([list(written[:length])]), None)[0]) for length in range(7, len(written) + 1)]
    assert found.index(True) == len("das ende ü".encode()) - 1


def test_several_tokens_end_an_answer(ended):
    _, processor = make_tiny()
    special = processor.tokenizer.all_special_tokens
    assert len(special) >= 2
    last = processor.tokenizer.convert_tokens_to_ids(special[1])
    end = [["!", "text"], [special[0], "special"], ["\n", "text"], [special[1], "special"]]
    assert processor.answer_end({"name": "ended", "end": end}) == (last, None)
    with pytest.raises(ConfigError, match="ends an answer with nothing"):
        processor.answer_end({"name": "ended", "end": []})


def test_captions_end_with_their_newline():
    _, processor = make_tiny()
    assert processor.answer_end("plain") == (None, "\n")


# ---- no end, no template, no padding


def test_a_tokenizer_without_chat_template_is_said_at_the_start(tmp_path):
    decoder = make_decoder(tmp_path / "decoder")
    for file in decoder.glob("chat_template*"):
        file.unlink()
    module = LitEve(decoder=str(decoder), template="chat", geometry=GEOMETRY, patch_embedding={"name": "linear", "width": 32})
    with pytest.raises(ConfigError, match="the template 'chat' needs a tokenizer with a chat template"):
        module.blueprint.check()
    plain = LitEve(decoder=str(decoder), geometry=GEOMETRY, patch_embedding={"name": "linear", "width": 32})
    plain.blueprint.check()
    with pytest.raises(ConfigError, match="needs a tokenizer with a chat template"):
        FinetuneDataModule(train="x", template="chat", max_tokens=64).attach(plain.processor)


def test_padding_with_the_end_keeps_the_end_supervised(tmp_path):
    decoder = make_decoder(tmp_path / "decoder")
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.pad_token = None
    processor = EveProcessor(tokenizer, geometry=GEOMETRY, template="chat")
    labels = processor.encode_sample(Sample("a", [*QUESTION, {"role": "assistant", "content": "red"}], ()))["labels"]
    assert labels[labels != -100][-1] == tokenizer.eos_token_id
    model, _ = make_tiny()
    model.config.pad_token_id = None
    end_answers(model, processor)
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id
