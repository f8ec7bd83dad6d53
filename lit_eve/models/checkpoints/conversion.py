"""Between official layouts (EVE v1, EVE v2) and ours, file by file: no value is changed, no model is held in memory.

What ours does not need but the official code does is kept in the folder ``official`` of the converted model, so that the
way back gives the same checkpoint again. Only the frozen teacher is dropped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.files import local_path, output_folder
from lit_eve.losses import ALIGNERS
from lit_eve.models.checkpoints.folders import check_replaceable, find_model_folder, read_json, replace_folder
from lit_eve.models.checkpoints.heads import ALIGNER_FILE, heads_in
from lit_eve.models.checkpoints.loading import load_processor
from lit_eve.models.checkpoints.official import (
    PREPROCESSOR,
    EveLayout,
    OfficialLayout,
    layout_for,
    layout_in,
    layout_of,
    titles,
)
from lit_eve.models.checkpoints.weights import (
    StoredWeight,
    check_shard_size,
    file_of_each_weight,
    read_file,
    read_stored,
    weight_files,
    write_shards,
)
from lit_eve.models.config import EveConfig
from lit_eve.models.eve import EveForConditionalGeneration

LAYOUTS = ("official", EveConfig.model_type)
KEPT = "official"
"""Folder of a converted model with what only the official code needs."""

# In that folder, besides copies of the official files:
_TABLE_FILE = "tables.safetensors"
_TEACHER_FILE = "teacher_weights.json"  # the names of what was dropped
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json", ".pt", ".pth")
_LARGEST_KEPT_FILE = 50 * 2**20
_SHOWN = 5


@dataclass
class Conversion:
    """What :func:`convert` did."""

    layout: str  # of the output: "official" or "lit_eve"
    num_weights: int
    num_bytes: int
    dropped: list[str] = field(default_factory=list)  # official names of the frozen teacher's weights
    notes: list[str] = field(default_factory=list)  # what the user should know, a sentence each


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: str | None = None,
    image_size: int | None = None,
    tokenizer: str | Path | None = None,
    teacher: str | Path | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool = False,
) -> Conversion:
    """Rewrite an official checkpoint as a folder of ours, or the other way round.

    Everything is checked before anything is written, and ``output`` appears as a whole.

    Args:
        source: an official checkpoint, a folder saved by ``save_pretrained``, a run folder, or a hub name.
        output: the new folder.
        to: "lit_eve" or "official"; default: the layout that ``source`` does not have.
        image_size: of an official checkpoint whose config does not tell it.
        tokenizer: folder or hub name, for a source without a tokenizer; EVE v1 needs one with tokenizer.model.
        teacher: folder of the CLIP whose weights an official EVE v1 checkpoint shall hold again.
        max_shard_size: of a written file, in bytes or as in "5GB".
        overwrite: replace ``output`` if it is a model's folder.
        progress: show a bar.

    Raises:
        ConfigError: ``to`` or ``max_shard_size`` is none.
        CheckpointError: ``source`` cannot be read or has missing, unknown or misshapen weights, the other layout cannot hold
            it, or ``output`` cannot be written.
    """
    output = Path(os.path.abspath(output_folder(output)))
    tokenizer, teacher = (path and local_path(path) for path in (tokenizer, teacher))
    if to not in (None, *LAYOUTS):
        raise ConfigError(f"to = {to!r} is no layout; there are {' and '.join(LAYOUTS)}")
    check_shard_size(max_shard_size)
    check_replaceable(output, overwrite)  # now, before a source is downloaded
    folder = find_model_folder(source)
    config = read_json(folder / "config.json")
    source_layout = layout_in(folder)
    layout = config.get("model_type") if source_layout is None else "official"
    if layout not in LAYOUTS:
        raise CheckpointError(
            f"{folder} is neither an official {titles()} checkpoint nor one of lit_eve: "
            f"its config.json says model_type {config.get('model_type')!r}"
        )
    target = to or next(other for other in LAYOUTS if other != layout)
    if target == layout:
        raise CheckpointError(f"{folder} is in the layout {layout!r} already")
    unused = {"teacher": teacher} if layout == "official" else {"image_size": image_size}
    for key, value in unused.items():
        if value is not None:
            raise CheckpointError(f"{key} has no meaning when converting to {target!r}")
    if output.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(output.resolve()):
        raise CheckpointError(f"{output} and the source {folder} lie in each other; choose another output")
    files = file_of_each_weight(weight_files(folder))
    try:
        with replace_folder(output, overwrite) as part:
            if source_layout is not None:
                return _to_ours(source_layout, folder, part, files, image_size, tokenizer, max_shard_size, progress)
            return _to_official(folder, part, files, tokenizer, teacher, max_shard_size, progress)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{output} cannot be written, what was there is unchanged: {error}") from error


# ---- official -> ours


def _to_ours(
    layout: OfficialLayout,
    folder: Path,
    part: Path,
    files: Mapping[str, Path],
    image_size: int | None,
    tokenizer: str | Path | None,
    max_shard_size: int | str,
    progress: bool,
) -> Conversion:
    config, theirs = layout.read_config(folder, image_size), read_json(folder / "config.json")
    weights: dict[str, StoredWeight] = {}
    for file, stored in _read_all(files):
        for key, value in stored.items():
            for name, converted in layout.import_weight(key, value.to("meta")):
                weights[name] = _stored(file, key, converted, partial(layout.import_value, name))
    model = _check(folder, config, weights, lambda name: layout.export_name(name, theirs))
    processor = load_processor(folder, config, tokenizer, layout)
    result = _conversion("lit_eve", weights)
    result.dropped = [key for key in files if layout.is_teacher(key) and not layout.is_table(key)]
    _check_space(part, result)

    config.architectures, config.dtype = [type(model).__name__], getattr(torch, _main_dtype(weights))
    config.save_pretrained(part)
    model.generation_config.save_pretrained(part)
    processor.save_pretrained(part)
    if isinstance(layout, EveLayout):  # there is a way back
        _keep(layout, folder, part / KEPT, files, result.dropped)
    if aligner := _aligner_of(weights):
        save_file(read_stored(aligner), part / ALIGNER_FILE)
    write_shards({k: v for k, v in weights.items() if not k.startswith("aligner.")}, part, max_shard_size, progress)
    return result


def _keep(layout: EveLayout, folder: Path, kept: Path, files: Mapping[str, Path], dropped: list[str]) -> None:
    """Copy the small files of an official checkpoint, and what its vision tower's folder says."""
    kept.mkdir()
    tower = Path(read_json(folder / "config.json")["mm_vision_tower"], PREPROCESSOR)
    names = [Path(file.name) for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    for name in [*names, *([tower] if _is_inside(tower) and (folder / tower).is_file() else [])]:
        if not str(name).endswith(_WEIGHT_SUFFIXES) and (folder / name).stat().st_size <= _LARGEST_KEPT_FILE:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, kept / name)
    tables = {
        key: _stored(file, key, value)
        for file, stored in _read_all(files)
        for key, value in stored.items()
        if layout.is_table(key)
    }
    if tables:
        save_file(read_stored(tables), kept / _TABLE_FILE)
    if dropped:
        (kept / _TEACHER_FILE).write_text(json.dumps(dropped, indent=1) + "\n")


# ---- ours -> official


def _to_official(
    folder: Path,
    part: Path,
    files: Mapping[str, Path],
    tokenizer: str | Path | None,
    teacher: str | Path | None,
    max_shard_size: int | str,
    progress: bool,
) -> Conversion:
    config = EveConfig.from_pretrained(folder)
    layout = layout_for(config)
    if teacher is not None and not layout.teacher_prefixes:
        raise CheckpointError(f"teacher has no meaning for {layout.title}, which is trained without one")
    kept = folder / KEPT if _is_of(layout, folder / KEPT / "config.json") else None
    weights = {name: _stored(file, name, value) for file, stored in _read_all(files) for name, value in stored.items()}
    if (path := folder / ALIGNER_FILE).exists():
        weights |= {f"aligner.{key}": _stored(path, key, value) for key, value in read_file(path).items()}
    if kept is None and not _aligner_of(weights):
        config.aligner = None
    dtype = _main_dtype(weights)
    before = None if kept is None else _kept_config(layout, config, kept)
    theirs = layout.write_config(config, dtype)
    if kept is not None:
        theirs = _carry_over(read_json(kept / "config.json"), layout.write_config(before, dtype), theirs)
    _check(folder, config, weights)

    exported = {}
    for name, weight in weights.items():
        as_theirs = partial(layout.export_value, name, config=config)
        exported[layout.export_name(name, theirs)] = StoredWeight(weight.file, weight.key, as_theirs(weight.meta), as_theirs)
    if kept is not None and (tables := kept / _TABLE_FILE).is_file():
        for key, value in read_file(tables).items():
            if teacher is not None or not layout.is_teacher(key):
                exported[key] = _stored(tables, key, value)
    if teacher is not None:
        exported |= _teacher(layout, find_model_folder(teacher), getattr(torch, dtype), kept)
    result = _conversion("official", exported)
    _check_space(part, result)

    if kept is not None:
        shutil.copytree(kept, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_TABLE_FILE, _TEACHER_FILE))
    if kept is None or theirs != read_json(kept / "config.json"):
        (part / "config.json").write_text(json.dumps(theirs, indent=2, sort_keys=True) + "\n")
    if tokenizer is not None or kept is None:
        load_processor(folder, config, tokenizer).tokenizer.save_pretrained(part)
        if (model := Path(tokenizer or folder, "tokenizer.model")).is_file():  # transformers 5 does not save it
            shutil.copyfile(model, part / model.name)
    tower = Path(theirs["mm_vision_tower"], PREPROCESSOR)
    if _is_inside(tower):
        sizes = layout.write_preprocessor(config)
        stored = read_json(part / tower) if (part / tower).is_file() else None
        if stored is not None:
            sizes = _carry_over(stored, layout.write_preprocessor(before), sizes)
        if sizes != stored:
            (part / tower).parent.mkdir(parents=True, exist_ok=True)
            (part / tower).write_text(json.dumps(sizes, indent=2) + "\n")
        result.notes.append(f"the official code looks for the folder {tower.parent} (it is in the output) where it is started")
    write_shards(exported, part, max_shard_size, progress)
    result.notes += layout.notes(part.name, [file.name for file in part.iterdir()])  # the name is .<output>.part
    if heads := [part for part in heads_in(config.supervision) if part != "aligner"]:
        result.notes.append(f"left out are the heads of {', '.join(heads)}, for which the official {layout.title} has no place")
    if theirs.get("requires_cliploss") and teacher is None:
        result.notes.append(f"the teacher is not in it: the official code reads it from {theirs.get('mm_vision_tower_clip')}")
    return result


def _is_inside(path: Path) -> bool:
    """Whether a path that a config names stays in the folder of the config."""
    return not path.is_absolute() and ".." not in path.parts


def _is_of(layout: EveLayout, path: Path) -> bool:
    return path.is_file() and layout_of(read_json(path)) is layout


def _kept_config(layout: EveLayout, config: EveConfig, kept: Path) -> EveConfig:
    """What the kept official files were read as."""
    try:
        before = layout.read_config(kept)
    except CheckpointError:  # the image size was told by hand
        before = layout.read_config(kept, config.geometry[layout.size_key])
    before.teacher = config.teacher  # a path was made relative to another folder: not changed
    return before


def _carry_over(stored: dict[str, Any], then: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """The stored keys, but for those that would now be written in another way."""
    return stored | {key: value for key, value in fresh.items() if value != then.get(key)}


def _teacher(layout: EveLayout, folder: Path, dtype: torch.dtype, kept: Path | None) -> dict[str, StoredWeight]:
    """The vision half of a CLIP under its official names, in the type of the model: bf16 training writes it so."""
    with torch.device("meta"):
        vision = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder))
    inner = lambda name: name.removeprefix("vision_model.")  # noqa: E731
    expected = {inner(name): value.shape for name, value in vision.state_dict().items()}
    found: dict[str, StoredWeight] = {}
    for file, stored in _read_all(file_of_each_weight(weight_files(folder))):
        for key, value in stored.items():
            if (name := inner(key)) in expected:
                found[name] = _stored(file, key, value.to("meta", dtype), lambda x: x.to(dtype, copy=True))
    _compare(f"the teacher {folder}", expected, {name: weight.meta.shape for name, weight in found.items()})
    copies = [{f"{prefix}vision_model.{name}": found[name] for name in found} for prefix in layout.teacher_prefixes]
    if kept is None or not (kept / _TEACHER_FILE).is_file():
        return copies[0]  # modules that share weights are saved once in safetensors files
    names, both = json.loads((kept / _TEACHER_FILE).read_text()), copies[0] | copies[1]
    if strange := [name for name in names if name not in both]:
        raise CheckpointError(f"the teacher {folder} is another one than the checkpoint had: it lacks {_some(strange)}")
    return {name: both[name] for name in names}


# ---- both ways


def _unchanged(value: Tensor) -> Tensor:
    return value


def _stored(file: Path, key: str, value: Tensor, convert: Callable[[Tensor], Tensor] = _unchanged) -> StoredWeight:
    return StoredWeight(file, key, value.to("meta"), convert)


def _read_all(files: Mapping[str, Path]) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """(file, its tensors), one file at a time."""
    return ((file, read_file(file)) for file in dict.fromkeys(files.values()))


def _aligner_of(weights: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
    prefix = "aligner."
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _check(
    folder: Path,
    config: EveConfig,
    weights: Mapping[str, StoredWeight],
    name_in_file: Callable[[str], str] = lambda name: name,
) -> EveForConditionalGeneration:
    """The model, without memory for its weights, if they are exactly the ones that it needs."""
    with torch.device("meta"):
        model = EveForConditionalGeneration(config)
        expected = {name: value.shape for name, value in model.state_dict().items()}
        if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            expected.pop("language_model.lm_head.weight", None)
        if aligner := _aligner_of(weights):
            text = config.text_config
            width = next(
                (len(aligner[f"{side}_layer.bias"].meta) for side in ("input", "output") if f"{side}_layer.bias" in aligner),
                1024,
            )
            built = ALIGNERS.build(
                config.aligner or {"name": "layerwise"},
                hidden_size=text.hidden_size,
                num_layers=text.num_hidden_layers,
                teacher_width=width,
            )
            expected |= {f"aligner.{name}": value.shape for name, value in built.state_dict().items()}
    found = {name_in_file(name): weight.meta.shape for name, weight in weights.items()}
    _compare(str(folder), {name_in_file(name): shape for name, shape in expected.items()}, found)
    return model


def _compare(where: str, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> None:
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{where} lacks {_some(missing)}")
    if extra := [name for name in found if name not in expected]:
        raise CheckpointError(f"{where} has weights that its config.json has no place for: {_some(extra)}")
    wrong = [f"{name} is {tuple(found[name])}, not {tuple(expected[name])}" for name in found if found[name] != expected[name]]
    if wrong:
        raise CheckpointError(f"{where} has weights of another shape than its config.json asks for: {_some(wrong)}")


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def _main_dtype(weights: Mapping[str, StoredWeight]) -> str:
    """The floating type of most values."""
    count: Counter[str] = Counter()
    for weight in weights.values():
        if weight.meta.is_floating_point():
            count[str(weight.meta.dtype).removeprefix("torch.")] += weight.meta.numel()
    return count.most_common(1)[0][0] if count else "float32"


def _conversion(layout: str, weights: Mapping[str, StoredWeight]) -> Conversion:
    return Conversion(layout, len(weights), sum(weight.meta.nbytes for weight in weights.values()))


def _check_space(part: Path, result: Conversion) -> None:
    free = shutil.disk_usage(part).free
    if free < result.num_bytes:
        raise CheckpointError(
            f"no space: the weights take {result.num_bytes / 1e9:.1f} GB, and the disk of {part.parent} has "
            f"{free / 1e9:.1f} GB free"
        )
