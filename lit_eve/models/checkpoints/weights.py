"""Weights on disk, one file after the other: no model of any size has to fit into memory to be read.

Files are mapped, not read: a tensor takes memory once its values are used, and gives it back when it is dropped.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_eve.errors import CheckpointError, ConfigError, LitEveError, one_line
from lit_eve.models.checkpoints.folders import find_model_folder, read_json
from lit_eve.models.checkpoints.heads import head_file, heads_in
from lit_eve.models.checkpoints.official import OfficialLayout, layout_in
from lit_eve.models.checkpoints.renaming import as_in_memory
from lit_eve.models.checkpoints.sharded import MODEL, is_sharded, iterate_sharded, read_checkpoint
from lit_eve.models.config import EveConfig
from lit_eve.models.eve import EveForConditionalGeneration
from lit_eve.models.own import model_class_of

_POINTER = b"version https://git-lfs"
# In the order in which transformers looks for them.
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class StoredWeight:
    """A tensor in a file, and what is done to it when it is written elsewhere.

    Args:
        file: where it lies.
        key: its name there.
        meta: a tensor on the device "meta" with the shape and type that it has once it was converted.
        convert: from the stored tensor to the converted one.
    """

    file: Path
    key: str
    meta: Tensor
    convert: Callable[[Tensor], Tensor]


def iterate_weights(path: str | Path, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name that it has in :class:`~lit_eve.models.EveForConditionalGeneration`.

    Tensors come one after the other, and names are unique; what has another form in files than in memory is converted. What
    official checkpoints hold besides (the teacher, rotary frequencies) is left out. A tied ``lm_head`` that was not saved does
    not come.

    Args:
        path: a folder saved by ``save_pretrained`` (the heads of its supervisions come last, as ``aligner.*``), a run folder
            whose ``model/`` is taken, an official EVE checkpoint, any causal language model of transformers (its names get
            the prefix ``language_model.``), or the hub name of one of these; or a checkpoint of a training (``*.ckpt``).
        shapes_only: tensors are on the meta device, and no file is read but its table of contents.

    Yields:
        (name, tensor on the CPU in the type of the file). Drop a tensor before asking for the next to keep memory low.

    Raises:
        CheckpointError: when called, not later: ``path`` is none of these, a file is missing or damaged, or a weight of an
            official checkpoint is unknown.
    """
    if is_checkpoint(path):
        return _iterate_checkpoint(Path(path), shapes_only)
    folder = find_model_folder(path)
    config = read_json(folder / "config.json")
    files = weight_files(folder)
    file_of = file_of_each_weight(files)
    if (layout := layout_in(folder)) is not None:
        for name in file_of:
            layout.import_name(name)
        return _iterate_official(layout, files, shapes_only)
    prefix = "" if config.get("model_type") == EveConfig.model_type else "language_model."
    files_of_heads = {} if prefix else {part: head_file(folder, part) for part in heads_in(config.get("supervision"))}
    files_of_heads = {part: file for part, file in files_of_heads.items() if file.exists() and read_file(file)}
    model = _empty_model(folder, is_eve=not prefix)
    open_file = lru_cache(maxsize=2)(read_file)  # a tensor may be made of parts that lie in two files

    def read_tensor(name: str) -> Tensor:
        tensor = open_file(file_of[name])[name]
        return tensor.to("meta") if shapes_only else tensor

    def read() -> Iterator[tuple[str, Tensor]]:
        for name, value in as_in_memory(model, file_of, read_tensor, str(folder)):
            yield prefix + name, value
        for part, file in files_of_heads.items():
            for name, value in read_file(file).items():
                yield f"{part}.{name}", value

    return read()


def _empty_model(folder: Path, is_eve: bool) -> PreTrainedModel:
    """What ``folder`` holds, without memory for its weights."""
    try:
        config = (EveConfig if is_eve else AutoConfig).from_pretrained(folder)
        with torch.device("meta"):
            if is_eve:
                return (model_class_of(config) or EveForConditionalGeneration)(config)
            return AutoModelForCausalLM.from_config(config)
    except LitEveError:
        raise
    except Exception as error:  # configs of another kind raise errors of all kinds
        raise CheckpointError(f"{folder / 'config.json'} describes no causal language model: {one_line(error)}") from error


def _iterate_official(layout: OfficialLayout, files: list[Path], shapes_only: bool) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        for name, value in read_file(file).items():
            yield from layout.import_weight(name, value.to("meta") if shapes_only else value)


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` names a checkpoint of a training, a file or the folder of a sharded one."""
    return Path(path).suffix == ".ckpt"


def _iterate_checkpoint(path: Path, shapes_only: bool) -> Iterator[tuple[str, Tensor]]:
    prefix = "model."
    if is_sharded(path) and not shapes_only:
        return iterate_sharded(path, MODEL + prefix)
    weights = read_checkpoint(path).get("state_dict", {})
    return ((name.removeprefix(prefix), value) for name, value in weights.items() if name.startswith(prefix))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, in reading order, with or without an index.

    Raises:
        CheckpointError: there are none, or one that an index or the numbers in the names ask for is absent.
    """
    for name in _NAMES:
        if not (path := folder / name).is_file():
            continue
        if path.suffix != ".json":
            return [path]
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path} has no 'weight_map' that names the files of the weights")
        files = [folder / file for file in sorted(set(weight_map.values()))]
        if absent := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(f"{path} names {absent[0]}, which is not there{_and_more(absent)}")
        return files
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{folder} has a config.json but no weights (model*.safetensors or pytorch_model*.bin)")
    if (match := re.search(r"-of-(\d+)\.\w+$", files[0].name)) and len(files) != int(match[1]):
        raise CheckpointError(f"{folder} holds {len(files)} of the {int(match[1])} files of which {files[0].name} is one")
    return files


def read_file(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file, mapped; pickled code is refused.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds pickled Python objects besides tensors, which could run code when read; it is refused"
        ) from error
    except Exception as error:
        with file.open("rb") as start:
            if start.read(len(_POINTER)) == _POINTER:
                raise CheckpointError(f"{file} is a pointer of Git LFS and not the file itself: git lfs pull") from error
        raise CheckpointError(f"{file} cannot be read, it may be truncated: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {name!r} is a {type(value).__name__}, no tensor")
    return content


def file_of_each_weight(files: list[Path]) -> dict[str, Path]:
    """Name -> file, in reading order.

    Raises:
        CheckpointError: a file is damaged, or two files hold the same name.
    """
    found: dict[str, Path] = {}
    for file in files:
        for name in read_file(file):
            if name in found:
                raise CheckpointError(f"{name!r} stands in two files, {found[name]} and {file}")
            found[name] = file
    return found


def write_shards(
    weights: Mapping[str, StoredWeight], folder: Path, max_shard_size: int | str = "5GB", progress: bool = False
) -> None:
    """Write ``model*.safetensors`` with an index where there are several, as ``save_pretrained`` of transformers does.

    One file is written at a time, so that no more than its tensors are in memory.

    Args:
        weights: what to write, under the names to write, in the order in which it is read.
        folder: exists.
        max_shard_size: of a file, in bytes or as in "5GB"; a larger tensor gets a file of its own.
        progress: show a bar.
    """
    plan = split_state_dict_into_shards_factory(
        {name: weight.meta for name, weight in weights.items()},
        get_storage_size=lambda meta: meta.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in track(plan.filename_to_tensors.items(), description="writing", disable=not progress):
        save_file(read_stored({name: weights[name] for name in names}), folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        total = {"total_parameters": sum(weight.meta.numel() for weight in weights.values()), **plan.metadata}
        index = {"metadata": total, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def check_shard_size(size: int | str) -> None:
    """Raise a ConfigError unless ``size`` is a number of bytes, or one with a unit as in "5GB"."""
    try:
        split_state_dict_into_shards_factory({}, get_storage_size=len, filename_pattern="{suffix}", max_shard_size=size)
    except ValueError as error:
        raise ConfigError(f"max_shard_size {size!r} is no size such as 5GB or 500MB") from error


def read_stored(weights: Mapping[str, StoredWeight]) -> dict[str, Tensor]:
    """The converted tensors, ready to be saved: contiguous, none sharing memory with another."""
    converted = {}
    for file in dict.fromkeys(weight.file for weight in weights.values()):  # each is opened once
        stored = read_file(file)
        for name, weight in weights.items():
            if weight.file == file:
                converted[name] = weight.convert(stored[weight.key]).contiguous()
    return converted


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "_use_new_zipfile_serialization" not in str(error):
            raise
    return torch.load(file, map_location="cpu", weights_only=True)  # of torch before 1.6: cannot be mapped


def _and_more(names: list[str]) -> str:
    return f" (nor are {len(names) - 1} others)" if len(names) > 1 else ""
