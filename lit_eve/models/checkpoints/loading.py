"""One loader for everyone: notebooks, evaluation, chat, demo and training."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from lit_eve.errors import CheckpointError, ConfigError, LitEveError, one_line
from lit_eve.files import local_path
from lit_eve.models.checkpoints.folders import find_model_folder, read_json
from lit_eve.models.checkpoints.heads import heads_in, split_heads
from lit_eve.models.checkpoints.merging import has_adapters, iterate_merged, merged_config
from lit_eve.models.checkpoints.official import OfficialLayout, layout_of, titles
from lit_eve.models.checkpoints.sharded import read_checkpoint
from lit_eve.models.checkpoints.weights import is_checkpoint, iterate_weights
from lit_eve.models.config import EveConfig
from lit_eve.models.eve import EveForConditionalGeneration
from lit_eve.models.generation.answer_ends import end_answers, stored_ends
from lit_eve.models.own import model_class_of
from lit_eve.models.supervision import needs_teacher

if TYPE_CHECKING:
    from lit_eve.processing import EveProcessor

ENTRY = "lit_eve"
"""Key of a Lightning checkpoint under which :func:`describe` is stored."""


def load(
    path: str | Path,
    *,
    teacher: bool | str | Path = False,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    merge: bool = False,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> tuple[EveForConditionalGeneration, EveProcessor]:
    """Load a model and its processor, ready for inference.

    Args:
        path: a folder saved by ``save_pretrained``; a run folder, whose ``model/`` is taken; an official checkpoint of EVE
            v1, EVE v2 or Fuyu; or a Lightning checkpoint (``*.ckpt``). Folders may also be names on the hub, such as
            BAAI/EVE-7B-HD-v1.0 or adept/fuyu-8b.
        teacher: attach what the model was supervised with: the frozen teacher, if there was one (True: the one that the config
            names; or its folder), and the trained aligner or other heads. There is a warning where such a head was not saved.
        tokenizer: folder or hub name, for a checkpoint that holds no tokenizer.
        image_size: 672 or 1344 (EVE v2: 800 or 1600), for an official checkpoint that does not tell it; others know theirs.
        merge: add adapters of the decoder to the weights that they adapt; nothing is done where there are none.
        dtype: floating type of the weights; "auto": as saved.
        device: where the model goes.
        **kwargs: for ``from_pretrained``, for example ``attn_implementation``.

    Raises:
        CheckpointError: ``path`` is none of these, its weights do not fit its config, or it has no tokenizer.
        ConfigError: ``merge``, and the decoder is of a kind that cannot be merged.
    """
    path = local_path(path)
    path = Path(path) if is_checkpoint(path) else find_model_folder(path)
    config, processor = read_architecture(path, tokenizer, image_size)
    by_transformers = not is_checkpoint(path) and layout_of(read_json(path / "config.json")) is None
    stored = [] if is_checkpoint(path) else stored_ends(path)
    if merge and has_adapters(config):
        weights, config = dict(iterate_merged(path, config)), merged_config(config)
    else:
        weights = None if by_transformers else dict(iterate_weights(path))
    model, heads = _build(path, config, weights, dtype=dtype, **kwargs)
    if teacher:
        if teacher is True and config.teacher is None and not config.supervision:
            raise CheckpointError(f"{path} was trained without a teacher; name the folder of one")
        if teacher is True:
            needed = any(needs_teacher(entry["name"]) for entry in config.supervision or [{"name": "patch_alignment"}])
            teacher = config.teacher if needed else None
        model.attach_supervision(teacher and local_path(teacher, "teacher"))
        for part, head in heads.items():
            if part in model.supervisions:
                model.supervisions[part].head.load_state_dict(head)
        missing = [] if heads else model.load_heads(path)
        for part in missing:
            what = "the one beside its teacher" if part == "aligner" else "the one that was made"
            warnings.warn(f"{path} holds no trained {part}: {what} predicts by chance", stacklevel=2)
    end_answers(model, processor, stored)
    return model.to(device).eval(), processor


def read_architecture(
    path: str | Path, tokenizer: str | Path | None = None, image_size: int | None = None
) -> tuple[EveConfig, EveProcessor]:
    """Config and processor of what :func:`load` takes, without reading weights.

    Raises:
        CheckpointError: as in :func:`load`.
    """
    path = local_path(path)
    path = Path(path) if is_checkpoint(path) else find_model_folder(path)
    if is_checkpoint(path):
        config, processor = _read_entry(path)
    elif (layout := layout_of(written := read_json(path / "config.json"))) is not None:
        config, image_size = layout.read_config(path, image_size), None
        processor = load_processor(path, config, tokenizer, layout)
    elif written.get("model_type") != EveConfig.model_type:
        raise CheckpointError(
            f"{path} is neither an EVE of lit_eve nor an official {titles()}: config.json says {written.get('model_type')!r}"
        )
    else:
        try:
            config = EveConfig.from_pretrained(path)
        except LitEveError:
            raise
        except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
            raise CheckpointError(f"{path / 'config.json'} describes no model: {one_line(error)}") from error
        processor = load_processor(path, config, tokenizer)
    if image_size is not None:
        raise ConfigError(f"image_size is for official checkpoints; {path} has a geometry of its own")
    return config, processor


def describe(model: EveForConditionalGeneration, processor: EveProcessor) -> dict[str, Any]:
    """What a Lightning checkpoint must hold besides the weights for :func:`load` to rebuild model and processor."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
    return {"config": model.config.to_json_string(use_diff=False), "processor": files}


def _read_entry(path: Path) -> tuple[EveConfig, EveProcessor]:
    checkpoint = read_checkpoint(path)
    if ENTRY not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of LitEve: it has no entry {ENTRY!r}")
    entry = checkpoint[ENTRY]
    config = EveConfig.from_dict(json.loads(entry["config"]))
    with tempfile.TemporaryDirectory() as folder:
        for name, content in entry["processor"].items():
            Path(folder, name).write_bytes(content)
        return config, load_processor(Path(folder), config, None)


def _build(
    path: Path, config: EveConfig, weights: dict[str, Tensor] | None, **kwargs: Any
) -> tuple[EveForConditionalGeneration, dict[str, dict[str, Tensor]]]:
    """The model, and the weights of the heads of its supervisions where they came with the others."""
    rest, heads = split_heads(weights or {}, heads_in(config.supervision))
    if weights is None:
        source: dict[str, Any] = {"pretrained_model_name_or_path": path}
    else:
        source = {"pretrained_model_name_or_path": None, "state_dict": rest}
    try:
        model_class = model_class_of(config) or EveForConditionalGeneration
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # those are refused below, by name
        model, info = model_class.from_pretrained(**source, config=config, **told, **kwargs)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(problem, ()))):
            raise CheckpointError(f"{path}: {problem.replace('_', ' ')}: {', '.join(keys[:5])}{', ...' * (len(keys) > 5)}")
    return model, heads


def load_processor(
    folder: Path, config: EveConfig, tokenizer: str | Path | None, layout: OfficialLayout | None = None
) -> EveProcessor:
    """The processor saved in ``folder``, or one around the tokenizer in there or in ``tokenizer``.

    Args:
        layout: of an official checkpoint, whose own processor is not ours.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    from lit_eve.processing import EveProcessor

    if layout is None and tokenizer is None and (folder / "processor_config.json").is_file():
        return EveProcessor.from_pretrained(folder)
    try:
        source = folder if tokenizer is None else local_path(tokenizer, "tokenizer")
        special = {} if layout is None else dict(layout.special_tokens)
        loaded = AutoTokenizer.from_pretrained(source, config=config.text_config, **special)  # not of config.json's type
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{tokenizer or folder} holds no tokenizer; name one with tokenizer=...: {error}") from error
    return EveProcessor(
        loaded,
        geometry=config.image_geometry,
        **({} if layout is None else {"template": layout.template}),
        image_token_id=config.image_token_id,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
