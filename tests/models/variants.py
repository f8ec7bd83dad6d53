"""Compositions to try: every entry of every registry beside simple parts, and the designs of experiments/, shrunk.

New entries and new designs are here by themselves. An entry whose constructor needs other arguments than `SMALL` gives, or
other parts beside it, stands in `BESIDE`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_eve.losses import ALIGNERS
from lit_eve.models import DECODER_KINDS, IMAGE_ATTENTIONS, PATCH_EMBEDDINGS, POSITIONS, PROJECTORS, SUPERVISIONS
from lit_eve.processing import GEOMETRIES
from lit_eve.registry import Registry
from lit_eve.training.blueprint import PARTS
from lit_eve.training.recipe import read_recipe

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REGISTRIES: dict[str, Registry] = {
    "geometry": GEOMETRIES,
    "patch_embedding": PATCH_EMBEDDINGS,
    "projector": PROJECTORS,
    "decoder_kind": DECODER_KINDS,
    "image_attention": IMAGE_ATTENTIONS,
    "positions": POSITIONS,
    "supervision": SUPERVISIONS,
    "aligner": ALIGNERS,
}
"""By the keys of a composition; what a registry holds is tried with each."""
SMALL: dict[str, Any] = {  # arguments, for all parts whose constructors take them
    "width": 32,  # the decoder's, for projectors that change nothing
    "patch_width": 16,
    "num_heads": 4,
    "positions": 16,
    "layer_interval": 2,
    "patch_size": 4,
    "pool_size": 2,
    "image_size": 32,
    "cells": 4,
    "max_side": 32,
    "max_size": 32,
    "min_pixels": 64,
    "max_pixels": 1024,
    "tokens": 9,
    "max_tiles": 3,
    "max_width": 32,
    "max_height": 32,
    "rank": 4,
    "layers": 1,
}
TOWER = {
    **{"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": 16, "patch_size": 4},
}
LLM = {
    **{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1},
}
BESIDE: dict[str, dict[str, Any]] = {  # other arguments and parts that an entry needs
    "tiles": {"geometry": {"image_size": 16}},
    "vision_tower": {
        "geometry": {"name": "square", "image_size": 16, "patch_size": 4, "pool_size": 2},
        "patch_embedding": {"tower": TOWER},
    },
    "llm_tower": {
        "geometry": {"name": "square", "image_size": 16, "patch_size": 4, "pool_size": 2},
        "patch_embedding": {"tower": LLM, "layers": 1},
    },
    "identity": {"patch_embedding": {"name": "linear", "width": SMALL["width"]}},
}


def _small(registry: Registry, name: str) -> dict[str, Any]:
    known = inspect.signature(registry[name]).parameters
    return {"name": name, **{key: value for key, value in SMALL.items() if key in known}}


def _entries() -> Iterator[tuple[str, dict[str, Any]]]:
    for key, registry in REGISTRIES.items():
        for name in registry:
            if registry.module_of(name) is None:  # tests register some too
                beside = {part: dict(spec) for part, spec in BESIDE.get(name, {}).items()}
                spec = {**_small(registry, name), **beside.pop(key, {})}
                yield f"{key}-{name}", {**beside, key: [spec] if key == "supervision" else spec}


ENTRIES = dict(_entries())
DESIGNS = [folder for folder in (EXPERIMENTS / "nano", *sorted(EXPERIMENTS.glob("models/*/nano"))) if folder.is_dir()]


def compositions_of(design: Path) -> list[dict[str, Any]]:
    """The different models that the stages of a design train, shrunk."""
    found, known = [], {}
    for path in sorted(design.glob("[1-9]_*.yaml")):
        blueprint = read_recipe(str(path)).module.blueprint
        known |= {key: value for key in PARTS if (value := getattr(blueprint, key)) is not None}
        of_stage = {key: getattr(blueprint, key) for key in ("supervision", "teacher", "aligner")}
        if of_stage["aligner"] is not None:  # a later stage goes on with it
            known["aligner"] = of_stage["aligner"]
        if of_stage["teacher"] is None:
            of_stage["aligner"] = None
        composition = {**known, **{key: value for key, value in of_stage.items() if value is not None}}
        if of_stage["teacher"] is None:
            composition.pop("aligner", None)
        composition = {key: _shrunk(key, value) for key, value in composition.items()}
        if isinstance(composition["patch_embedding"].get("tower"), str):  # the nano's, trained before
            sizes = {key: composition["geometry"][key] for key in ("image_size", "patch_size")}
            composition["patch_embedding"]["tower"] = TOWER | sizes
        if composition not in found:
            found.append(composition)
    return found


def _shrunk(key: str, value: Any) -> Any:
    """A part with its widths made small; sizes of images are those of the miniature already."""
    widths = {name: SMALL[name] for name in ("width", "patch_width", "num_heads", "positions")}
    if isinstance(value, dict) and key in REGISTRIES and key != "geometry":
        return value | {name: small for name, small in widths.items() if name in value}
    return value
