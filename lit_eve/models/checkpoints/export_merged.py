"""``lit-eve convert --merge``: a model without the adapters that it was trained with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lit_eve.errors import CheckpointError
from lit_eve.files import local_path, output_folder
from lit_eve.models.checkpoints.conversion import Conversion
from lit_eve.models.checkpoints.folders import check_replaceable, find_model_folder, replace_folder
from lit_eve.models.checkpoints.loading import load, read_architecture
from lit_eve.models.checkpoints.merging import has_adapters, merges_of
from lit_eve.models.checkpoints.weights import check_shard_size, weight_files
from lit_eve.models.config import EveConfig


def export_merged(
    source: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Conversion:
    """Write a model with adapters as one without. The whole model is held in memory.

    Heads and other files of weights that lie beside the model are copied.

    Args:
        source: a folder saved by ``save_pretrained``, a run folder, or a hub name.
        output: the new folder; it appears as a whole.
        tokenizer: folder or hub name, for a source without a tokenizer.
        max_shard_size: of a written file, in bytes or as in "5GB".
        overwrite: replace ``output`` if it is a model's folder.

    Raises:
        CheckpointError: ``source`` cannot be read or has no adapters, or ``output`` cannot be written.
        ConfigError: the decoder is of a kind that cannot be merged, or ``max_shard_size`` is none.
    """
    output = Path(os.path.abspath(output_folder(output)))
    check_shard_size(max_shard_size)
    check_replaceable(output, overwrite)
    folder = find_model_folder(source)
    config, _ = read_architecture(folder, tokenizer)
    if not has_adapters(config):
        raise CheckpointError(f"{folder} has no adapters to merge: its decoder is dense")
    merges_of(config)
    if output.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(output.resolve()):
        raise CheckpointError(f"{output} and the source {folder} lie in each other; choose another output")
    model, processor = load(folder, tokenizer=local_path(tokenizer) if tokenizer else None, merge=True)
    beside = set(folder.glob("*.safetensors")) - set(weight_files(folder))
    try:
        with replace_folder(output, overwrite) as part:
            model.save_pretrained(part, max_shard_size=max_shard_size)
            processor.save_pretrained(part)
            for file in beside:
                shutil.copyfile(file, part / file.name)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written, what was there is unchanged: {error}") from error
    weights = model.state_dict().values()
    return Conversion(EveConfig.model_type, len(weights), sum(weight.nbytes for weight in weights))
