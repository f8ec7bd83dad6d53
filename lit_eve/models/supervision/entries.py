"""The entries of ``supervision``: checked, and made into supervisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.losses import AbsentTeacher, FrozenTeacher
from lit_eve.models.checkpoints.heads import part_of
from lit_eve.models.config import EveConfig
from lit_eve.models.supervision.base import CONTEXT, SUPERVISIONS, Supervision
from lit_eve.models.supervision.weights import check_weight


def entries_of(config: EveConfig, with_teacher: bool) -> dict[str, dict[str, Any]]:
    """What a model is supervised with, by the names of the heads; the aligner is filled in where an entry names none.

    Without ``config.supervision`` a teacher means patch alignment.
    """
    entries = config.supervision
    if entries is None:
        entries = [{"name": "patch_alignment", "weight": config.alignment_weight}] if with_teacher else []
    found = {part_of(entry["name"]): dict(entry) for entry in entries}
    if "aligner" in found:
        found["aligner"]["aligner"] = dict(found["aligner"].get("aligner") or config.aligner or {"name": "layerwise"})
    return found


def without_weight(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry as the registry takes it."""
    return {key: value for key, value in entry.items() if key != "weight"}


def needs_teacher(name: str) -> bool:
    """Whether a supervision cannot be built without a teacher; one that is not known may need it."""
    return name not in SUPERVISIONS or SUPERVISIONS.asks_for(name, "teacher", "teacher_width", "teacher_depth")


def check_entries(entries: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConfigError for entries that are unknown, have unknown arguments or impossible weights, or come twice."""
    names = set()
    for entry in entries:
        SUPERVISIONS.check(entry, CONTEXT, beside=("weight",))
        name, weight = entry["name"], entry.get("weight", 1.0)
        if name in names:
            raise ConfigError(f"{name!r} stands there twice")
        names.add(name)
        check_weight(name, weight)
        check = getattr(SUPERVISIONS[name], "check_arguments", None)
        if check is not None:
            check(**{key: value for key, value in entry.items() if key not in ("name", "weight")})


def build_supervision(entry: Mapping[str, Any], config: EveConfig, teacher: FrozenTeacher | None) -> Supervision:
    """Make the supervision of an entry.

    Raises:
        ConfigError: it is unknown, or needs a teacher, or its images, that are not there.
    """
    text_config = config.text_config
    context = {
        "hidden_size": text_config.hidden_size,
        "num_layers": text_config.num_hidden_layers,
        "geometry": config.image_geometry,
        "teacher": teacher,
        "teacher_width": None if teacher is None else teacher.width,
        "teacher_depth": None if teacher is None else teacher.depth,
    }
    SUPERVISIONS.check(without_weight(entry), CONTEXT)
    if teacher is None and needs_teacher(entry["name"]):
        raise ConfigError(f"supervision {entry['name']!r} needs a teacher: name one (model.teacher)")
    if isinstance(teacher, AbsentTeacher) and getattr(SUPERVISIONS[entry["name"]], "reads_teacher_pixels", False):
        raise ConfigError(
            f"supervision {entry['name']!r} looks at the teacher's images itself: with model.teacher_features there are none"
        )
    made = SUPERVISIONS.build(without_weight(entry), **context)
    if not hasattr(made, "term"):
        made.term = f"{entry['name']}_loss"
    for what, states, last in (
        ("decoder", made.taps, text_config.num_hidden_layers),
        ("teacher", made.teacher_states, context["teacher_depth"]),
    ):
        if wrong := [state for state in states if last is None or not 0 <= state <= last]:
            known = "is not among its arguments (teacher_depth)" if last is None else f"has 0 to {last}"
            raise ConfigError(f"supervision {entry['name']!r} reads hidden state {wrong[0]} of the {what}, which {known}")
    return made
