"""Shared by the tests of processing: the official tokenizer, a byte-level one, and processors around them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_eve.processing import EveProcessor, EveV1Geometry, TeacherGrid

REFERENCE = Path(__file__).parents[1] / "data" / "eve_v1"
IMAGES = REFERENCE / "images"
SMALL = EveV1Geometry(image_size=168, cells=6)
TEACHER = TeacherGrid(image_size=84, patch_size=14)
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]


def load_tokenizer(legacy: bool = False) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(REFERENCE / "tokenizer", legacy=legacy)


def make_byte_level(chat_template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that Qwen and SmolLM use, with "<image>" in its vocabulary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    backend.train_from_iterator(["What is shown in the image? The image shows a red circle. user assistant system"], trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ADDED])
    backend.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


@pytest.fixture(scope="session")
def processor(tokenizer) -> EveProcessor:
    return EveProcessor(tokenizer, geometry=SMALL)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A gradient, so that every direction can be told apart."""
    image = Image.merge(
        "RGB",
        [
            Image.linear_gradient("L").resize((width, height)),
            Image.linear_gradient("L").rotate(90).resize((width, height)),
            Image.radial_gradient("L").resize((width, height)),
        ],
    )
    return image.convert(mode)
