"""The layout of adept/fuyu-8b, and of what ``FuyuForCausalLM`` of transformers saves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from einops import rearrange
from tokenizers import Tokenizer
from torch import Tensor
from transformers import FuyuConfig

from lit_eve.errors import CheckpointError, one_line
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.official.base import ENDS, NameTable, OfficialLayout, image_processor_of
from lit_eve.models.config import EveConfig
from lit_eve.processing.fuyu import ANSWER, BEGIN, END

_WORDS = "language_model.model.embed_tokens.weight"
_PATCHES, _SPLIT = "patch_embedding.projection.weight", "patch_embedding.split_embedding"
_NEWLINE = "|NEWLINE|"
_TOKENIZER = "tokenizer.json"

_FIXED = {
    **dict.fromkeys(("do_resize", "do_pad", "do_rescale", "do_normalize"), True),
    "padding_mode": "constant",
    "resample": 2,
    "rescale_factor": 1 / 255,
}
"""What can be told to the image processor, and every Fuyu has so."""
_SIZES = {"size": {"width": 1920, "height": 1080}, "padding_value": 1.0, "image_mean": 0.5, "image_std": 0.5}
"""What it has for adept/fuyu-8b, and where a checkpoint does not say it."""


class FuyuLayout(OfficialLayout):
    """A Persimmon, and one matrix over the pixels of a patch, which lie row by row with their colours side by side.

    A row of the picture ends with the word ``|NEWLINE|``, whose embedding becomes the split token's. The tokenizer says which
    word that is. Names are those of the hub, or those that transformers 5 has in memory.

    Args:
        newline: its row in the embeddings, known of a folder.
    """

    title = "Fuyu"
    template = "fuyu"
    special_tokens = {"eos_token": END, "extra_special_tokens": [BEGIN, ANSWER]}
    names = NameTable(
        [
            (f"{_WORDS} ({_NEWLINE})", _SPLIT),  # of what is lacking; in no file
            ("language_model.", "language_model."),
            ("vision_embed_tokens.", "patch_embedding.projection."),
            ("model.language_model.", "language_model.model."),
            ("model.vision_embed_tokens.", "patch_embedding.projection."),
            ("lm_head.", "language_model.lm_head."),
        ]
    )

    def __init__(self, newline: int | None = None) -> None:
        self.newline = newline

    def matches(self, theirs: Mapping[str, Any]) -> bool:
        return theirs.get("model_type") == "fuyu"

    def bound_to(self, folder: Path) -> FuyuLayout:
        path = folder / _TOKENIZER
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {_TOKENIZER}, which says what row of the embeddings is {_NEWLINE}")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more special
            raise CheckpointError(f"{path} is no tokenizer: {one_line(error)}") from error
        ids = {token: tokenizer.token_to_id(token) for token in (_NEWLINE, BEGIN, ANSWER, END)}
        if absent := [token for token, id in ids.items() if id is None]:
            raise CheckpointError(f"{path} is no tokenizer of Fuyu: it has no {absent[0]}")
        return FuyuLayout(ids[_NEWLINE])

    def import_value(self, name: str, value: Tensor) -> Tensor:
        if name == _SPLIT:
            return value[self.newline].clone()  # which is saved beside the embeddings
        if name == _PATCHES and value.ndim == 2 and value.shape[1] % 3 == 0:
            return rearrange(value, "d (p c) -> d (c p)", c=3)
        return value

    def import_weight(self, key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, converted in super().import_weight(key, value):
            yield name, converted
            if name == _WORDS:
                if self.newline >= len(value):
                    raise CheckpointError(f"{key!r} has {len(value)} rows, but {_NEWLINE} is row {self.newline}")
                yield _SPLIT, self.import_value(_SPLIT, value)

    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
        path = folder / "config.json"
        if image_size is not None:
            raise CheckpointError(f"{folder}: image_size has no meaning for Fuyu, whose images keep their size")
        theirs = read_json(path)
        try:
            config = FuyuConfig.from_dict(dict(theirs))
        except Exception as error:  # transformers has several of its own for values of the wrong kind
            raise CheckpointError(f"{path} describes no Fuyu: {one_line(error)}") from error
        text = copy.deepcopy(config.text_config)
        if text.model_type != "persimmon" or config.num_channels != 3:
            raise CheckpointError(
                f"{path}: Fuyu is a persimmon that sees 3 channels, not a {text.model_type} with {config.num_channels}"
            )
        text.tie_word_embeddings = config.tie_word_embeddings
        path, sizes = image_processor_of(folder)
        sizes = _SIZES | sizes
        _check_sizes(path, sizes, config.patch_size)
        mean, std = (value if isinstance(value, list) else [value] * 3 for value in (sizes["image_mean"], sizes["image_std"]))
        return EveConfig(
            text_config=text,
            patch_embedding={"name": "linear", "width": text.hidden_size},
            projector={"name": "identity"},
            geometry={
                "name": "padded",
                "patch_size": config.patch_size,
                "max_width": sizes["size"]["width"],
                "max_height": sizes["size"]["height"],
                "background": [int(sizes["padding_value"])] * 3,
            },
            image_mean=mean,
            image_std=std,
            tie_word_embeddings=config.tie_word_embeddings,
            **{key: theirs.get(key, getattr(text, key, None)) for key in ENDS},
        )


def _check_sizes(path: Path, sizes: Mapping[str, Any], patch_size: int) -> None:
    """Raise CheckpointError for what no geometry of ours does."""
    patch = {"height": patch_size, "width": patch_size}
    for key, value in (_FIXED | {"patch_size": patch}).items():
        if sizes.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {sizes[key]!r}; of a Fuyu with this config.json it can only be {value!r}")
    if sizes["padding_value"] not in range(256):
        raise CheckpointError(f"{path}: padding_value is {sizes['padding_value']!r}, no whole number of 0 to 255")
    if not isinstance(sizes["size"], dict) or not {"width", "height"} <= sizes["size"].keys():
        raise CheckpointError(f"{path}: size is {sizes['size']!r}; it must hold width and height")
