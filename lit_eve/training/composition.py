"""``train.py fit --print_model``: the parts of a model, how large each is, and what trains; nothing is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_eve.models import EveConfig
    from lit_eve.training.recipe import Recipe

PARTS = ("geometry", "patch_embedding", "projector", "decoder_kind", "image_attention", "positions", "aligner")
"""Keys of the config that hold a part's name and arguments."""


def print_model(recipe: Recipe) -> None:
    """Print the composition of a recipe's model as a table, and below it the table of what trains.

    The model is built on the meta device, also where ``init_from`` is still to be trained and ``decoder`` is given.
    """
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from transformers import AutoModelForCausalLM

    from lit_eve.training.auxiliary import planned_auxiliaries
    from lit_eve.training.stages import heads_beside, print_stage

    module = recipe.module
    model = module.blueprint.skeleton(planned=True)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    own = {
        f"{part}.{name}": parameter.numel()
        for part, made in planned_auxiliaries(module, model).items()
        for name, parameter in made.named_parameters()
    }
    table = Table(title="model", title_justify="left")
    for heading, justify in (("part", "left"), ("name", "left"), ("arguments", "left"), ("parameters", "right")):
        table.add_column(heading, justify=justify)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config.text_config)
    known = {model.decoder_kind.name_of(name) for name, _ in plain.named_parameters()}
    names = [name for name, _ in model.language_model.named_parameters()]
    added = {name: "decoder_kind" for name in names if name.replace(".base_layer.", ".") not in known}
    if model.config.lora is not None:
        added = dict.fromkeys(added, "lora")
    added |= dict.fromkeys(model.positions.weights(model.language_model), "positions")
    counts = parameters_of(sizes, {f"language_model.{name}": key for name, key in added.items()})
    for key, name, arguments in rows_of(model.config, module.blueprint.decoder):
        table.add_row(key, name, escape(arguments), f"{counts[key]:,}" if counts[key] else "")
    if own:
        table.add_row("auxiliary parts", ", ".join(sorted({name.split(".")[0] for name in own})), "", f"{sum(own.values()):,}")
    Console().print(table)  # of the width that the terminal has now
    student = {name: size for name, size in sizes.items() if not name.startswith("teacher.")}
    heads = heads_beside(model, student)
    rates = module.stage.rates([name for name in student if name not in heads], [*own, *heads])
    print_stage(module.stage, sizes | own, rates)


def rows_of(config: EveConfig, decoder: str | None) -> list[tuple[str, str, str]]:
    """Key, name and arguments of each part, in the order of the data's way."""
    from lit_eve.models.supervision import needs_teacher

    rows = []
    for key in PARTS:
        spec: Mapping[str, Any] | None = getattr(config, key)
        if key == "decoder_kind":
            text = config.text_config
            shape = f"{text.num_hidden_layers} layers of width {text.hidden_size}, {text.vocab_size} words"
            rows.append(("decoder", decoder or text.model_type, f"{text.model_type}: {shape}" if decoder else shape))
        if spec is not None:
            rows.append((key, spec["name"], _written(spec)))
        if key == "decoder_kind" and config.lora is not None:
            rows.append(("lora", "dora" if config.lora["use_dora"] else "lora", _written(config.lora)))
    # The row of a head stands under its name, so that its parameters are found.
    rows += [(part, "supervision", _written(entry)) for entry in config.supervision or () if (part := entry["name"])]
    if config.supervision is not None:
        if any(needs_teacher(entry["name"]) for entry in config.supervision):
            rows.append(("teacher", str(config.teacher), f"hidden state {config.teacher_layer}"))
    elif config.aligner is not None:
        rows.append(
            ("teacher", str(config.teacher), f"hidden state {config.teacher_layer}, weight {config.alignment_weight:g}")
        )
    return rows


def _written(spec: Mapping[str, Any]) -> str:
    arguments = {name: value for name, value in spec.items() if name != "name"}
    arguments = {  # of a vision tower, its type
        name: value["model_type"] if isinstance(value, dict) and "model_type" in value else value
        for name, value in arguments.items()
    }
    return ", ".join(f"{name}: {json.dumps(value).replace(chr(34), '')}" for name, value in arguments.items())


def parameters_of(sizes: Mapping[str, int], added: Mapping[str, str]) -> Counter[str]:
    """Parameters by key of a part; ``added`` says of those that the decoder gets which part adds them."""
    counts: Counter[str] = Counter()
    for name, size in sizes.items():
        part = name.split(".")[0]
        counts[added.get(name, "decoder" if part == "language_model" else part)] += size
    return counts
