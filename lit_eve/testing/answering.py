"""Answers with a KV cache are those without: token by token, in batches, and with prompts that are read in pieces.

Notation: B rows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lit_eve.models import EveForConditionalGeneration
from lit_eve.testing.comparing import LOGITS, compare
from lit_eve.testing.samples import LAYOUTS, Sample, image_of_token, make_sample, make_samples, padded, without_labels

LENGTH = 4
OPTIONS = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def generated(model: EveForConditionalGeneration, samples: Sequence[Sample], **options: Any) -> list[list[int]]:
    """The greedy answers to samples, in one left-padded batch."""
    batch = without_labels(padded(samples, "left"))
    return model.generate(**batch, **OPTIONS, **options)[:, batch["input_ids"].shape[1] :].tolist()


def plain_answer(model: EveForConditionalGeneration, sample: Sample, **options: Any) -> list[int]:
    """The tokens that whole forward passes choose, one each, without a cache."""
    inputs = without_labels(padded([sample]))
    forbidden = model.generation_config.suppress_tokens or []
    for _ in range(LENGTH):
        logits = model(**inputs, logits_to_keep=1, **options).logits[:, -1]  # (1, V)
        logits[:, forbidden] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1)[:, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][0, -LENGTH:].tolist()


# ---- the checks


@torch.no_grad()
def check_answers(model: EveForConditionalGeneration) -> None:
    """Greedy answers of a left-padded batch, with a cache, are those of whole forward passes for one sample at a time."""
    samples = make_samples(model)
    expected = [plain_answer(model, sample) for sample in samples]
    for name, found, wanted in zip(LAYOUTS, generated(model, samples), expected, strict=True):
        assert found == wanted, (
            f"the answer to a sample with {name}, in a left-padded batch with a KV cache, is {found}; without both it is "
            f"{wanted}"
        )


@torch.no_grad()
def check_cache(model: EveForConditionalGeneration) -> None:
    """Logits of a sample that is read in pieces into a KV cache, text by tokens and images whole, are those of all of it."""
    for name in ("several images", "images that touch"):
        sample = make_sample(model, LAYOUTS[name])
        whole = model(**without_labels(padded([sample]))).logits[0]  # (T, V)
        ends = _ends_of_pieces(image_of_token(model, sample))
        for end, logits in zip(ends, _logits_of_pieces(model, sample, ends), strict=True):
            what = f"logits behind token {end - 1} of a sample with {name}, read into a KV cache in pieces, are not those of "
            compare(logits, whole[end - 1], what + "the whole sample", LOGITS)


def _ends_of_pieces(image: Tensor) -> list[int]:
    """Behind each word, and behind each image; the first words are one piece."""
    is_end = torch.ones(len(image), dtype=torch.bool)
    is_end[:-1] = (image[:-1] < 0) | (image[:-1] != image[1:])
    return [end for end in (is_end.nonzero().flatten() + 1).tolist() if end > 1]


def _logits_of_pieces(model: EveForConditionalGeneration, sample: Sample, ends: Sequence[int]) -> list[Tensor]:
    """(V,) behind each piece: every call of ``generate`` goes on from the cache that the one before left."""
    cache, found = DynamicCache(config=model.config), []
    slots = model.geometry.num_tokens_of_grid(sample["image_grid_hw"]).cumsum(0)  # (N,) with all images before
    patches = sample["image_grid_hw"].prod(1).cumsum(0)  # (N,)
    for end in ends:
        ids = sample["input_ids"][None, :end]
        images = int((slots <= (ids == model.config.image_token_id).sum()).sum())
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            inputs["pixel_values"] = sample["pixel_values"][: patches[images - 1]]
            inputs["image_grid_hw"] = sample["image_grid_hw"][:images]
        step = model.generate(
            **inputs,
            **OPTIONS | {"max_new_tokens": 1},
            past_key_values=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(step.logits[0][0])
    return found
