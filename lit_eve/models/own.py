"""What of a model is the user's own code: written down in its config, and asked for when the config is read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import ConfigError
from lit_eve.imports import find_class, how_to_import, is_there, path_of
from lit_eve.losses import ALIGNERS
from lit_eve.models.attention import IMAGE_ATTENTIONS
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import DECODER_KINDS
from lit_eve.models.patch_embeddings import PATCH_EMBEDDINGS
from lit_eve.models.positions import POSITIONS
from lit_eve.models.projector import PROJECTORS
from lit_eve.models.supervision import SUPERVISIONS
from lit_eve.processing.geometries import GEOMETRIES
from lit_eve.registry import Registry


def attention_module(name: str | None) -> str | None:
    """The module of the user's own that brings the attention of a name; None for those of lit_eve, transformers and the hub."""
    if name not in ALL_ATTENTION_FUNCTIONS or "/" in name:  # with a slash: a kernel of the hub
        return None
    module = ALL_ATTENTION_FUNCTIONS[name].__module__
    return None if module.split(".")[0] in ("lit_eve", "transformers") else module


def note_import(config: EveConfig, key: str, registry: Registry[Any]) -> None:
    """Write into ``config.imports`` which module brings the variant that ``config.<key>`` names.

    Raises:
        ConfigError: it is not registered, and the config says which module would register it.
    """
    _note(config, key, registry, getattr(config, key).get("name"), config.imports.pop(key, None))


def note_supervisions(config: EveConfig) -> None:
    """The same for the entries of ``config.supervision``, as ``supervision.<name>``, and for the aligners that they name, as
    ``supervision.<name>.aligner``."""
    prefix = "supervision."
    needed = {key: config.imports.pop(key) for key in list(config.imports) if key.startswith(prefix)}
    for entry in config.supervision or ():
        key, aligner = f"{prefix}{entry.get('name')}", entry.get("aligner")
        _note(config, key, SUPERVISIONS, entry.get("name"), needed.get(key))
        if isinstance(aligner, Mapping):
            key += ".aligner"
            _note(config, key, ALIGNERS, aligner.get("name"), needed.get(key))


def _note(config: EveConfig, key: str, registry: Registry[Any], name: str | None, needed: str | None) -> None:
    registry.require(name, needed)
    if name in registry and (module := registry.module_of(name)) is not None:
        config.imports[key] = module


def note_imports(config: EveConfig, model_class: type) -> None:
    """The same for all parts of a model that is about to be built, and for its class.

    Raises:
        ConfigError: the model needs a module that was not imported, or ``model_class`` is not the class that the config names.
    """
    note_import(config, "decoder_kind", DECODER_KINDS)
    note_import(config, "geometry", GEOMETRIES)
    note_import(config, "patch_embedding", PATCH_EMBEDDINGS)
    note_import(config, "projector", PROJECTORS)
    note_import(config, "image_attention", IMAGE_ATTENTIONS)
    note_import(config, "positions", POSITIONS)
    model_class_of(config)
    needed, found = config.imports.get("model"), path_of(model_class)
    if needed is not None and needed != found:
        raise ConfigError(f"this model is a {needed}, and would be built as {model_class.__name__}: load it with lit_eve.load")
    if found is not None:
        config.imports["model"] = found


def model_class_of(config: EveConfig) -> type | None:
    """The class of the user's own that a saved model is of; None for lit_eve's.

    Raises:
        ConfigError: it is of such a class, or was trained by one that may have changed how it answers, whose module was not
            imported.
    """
    for key, what in (("training", "was trained by"), ("model", "is of the class")):
        path = config.imports.get(key)
        if path is not None and not is_there(path):
            module, _, name = path.partition(":")
            raise ConfigError(
                f"this model {what} {name} of `{module}`, without which it may answer otherwise: {how_to_import(module)}"
            )
    path = config.imports.get("model")
    return None if path is None else find_class(path)
