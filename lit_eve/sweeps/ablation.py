"""An ablation is a file: one question, the arms that answer it, and how arms are made equal.

    # Does aligning patches to a teacher help?            the question: the first line
    paper:                                                what is known
      source: EVE v1 (arXiv 2406.11832), table 4
      says: with the alignment loss GQA is 60.8, without it 58.9
      better: [with]                                      arms that are better than their reference there
    base: ../nano_hard                                    the recipe: a folder of stages
    stages: [1_prealign, 2_pretrain]                      which of them; default: all
    reference: without
    arms:
      with: {}
      without:
        1_prealign: {model.teacher: null, model.aligner: null}
        2_pretrain: {model.teacher: null}
    seeds: 8
    metrics:
      looks_loss: {better: lower, difference: 0.03}       of the test scenes, see lit_eve/nano/measurement.py
      2_pretrain/val/language_loss: {better: lower}       of the metrics.json of a stage

An arm changes files of the recipe, by their name without ``.yaml``: stages, by settings of ``train.py`` with dots in them,
and in a miniature also ``world``, ``0_language_model`` and ``0_teacher``. ``stages`` changes all stages. ``1_prealign: skip``
leaves a stage out; the next one then takes over what the skipped one says of the model. ``seed_offset: 1000`` is added to the
seeds of the arm's stages, but not to those of its world. ``against: OTHER`` compares an arm with another one instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_eve.errors import ConfigError
from lit_eve.files import local_path

ALL, SKIP, SEED_OFFSET, AGAINST = "stages", "skip", "seed_offset", "against"
EQUAL = ("steps", "flops", "seconds")
_KEYS = (
    *("paper", "base", "stages", "reference", "arms", "seeds", "metrics", "equal", "scaled", "resources"),
    *("note", "search"),
)


@dataclass(frozen=True)
class Paper:
    """What is known of the question."""

    source: str | None = None
    """Where: paper, table."""
    says: str | None = None
    """Its numbers, in a sentence."""
    better: tuple[str, ...] = ()
    """Arms that are better there than their reference."""
    worse: tuple[str, ...] = ()
    """Arms that are worse there."""

    def sign(self, arm: str) -> int:
        """1: the arm is better than its reference in the paper; -1: worse; 0: not said."""
        return int(arm in self.better) - int(arm in self.worse)


@dataclass(frozen=True)
class Metric:
    """A number of a trial, and which direction is good."""

    name: str
    better: Literal["lower", "higher"]
    difference: float | None = None
    """The difference that is worth telling apart, such as the paper's; in the metric's unit."""

    @property
    def sign(self) -> int:
        """What makes a difference of this metric a gain: 1 or -1."""
        return 1 if self.better == "higher" else -1


@dataclass(frozen=True)
class Arm:
    """One way to do it."""

    name: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By file of the recipe: settings with dots, and their values."""
    skipped: tuple[str, ...] = ()
    """Stages that are left out."""
    seed_offset: int = 0
    against: str | None = None
    """The arm that it is compared with; None: the reference."""

    def of(self, name: str) -> dict[str, Any]:
        """What the arm changes in a stage, with what it changes in all stages."""
        return {**self.changes.get(ALL, {}), **self.changes.get(name, {})}


@dataclass(frozen=True)
class Resources:
    """What one process asks for."""

    cores: int = 1
    gpus: int = 0
    memory_gb: float = 0.0


@dataclass(frozen=True)
class Ablation:
    """What the file says."""

    path: Path
    question: str
    base: Path
    arms: tuple[Arm, ...]
    reference: str
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    paper: Paper = Paper()
    stages: tuple[str, ...] | None = None
    """The stages of the recipe that are run; None: all."""
    equal: str = "steps"
    """How arms are made equal: the same steps, the same FLOPs or the same seconds of a core."""
    scaled: str | None = None
    """The stage whose steps make arms equal; None: the last of the arm's."""
    resources: Resources = Resources()
    note: str | None = None
    """A sentence for the report: where this cannot show, what would."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """Settings to sample, by name, with ``low`` and ``high`` (``log: true``), or ``choices``."""

    @property
    def name(self) -> str:
        """The file's name without ``.yaml``."""
        return self.path.stem

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def reference_of(self, name: str) -> str:
        """The arm that this one is compared with; the reference itself stands alone."""
        return self.arm(name).against or self.reference


def read_ablation(path: str | Path, base: str | Path | None = None) -> Ablation:
    """Read the file of an ablation.

    Args:
        path: the file.
        base: folder of the recipe to use instead of the file's, relative to the working directory.

    Raises:
        ConfigError: a key that is not known or missing, or a value of the wrong kind; the message names it.
    """
    path = Path(local_path(str(path), "the ablation"))
    try:
        text = path.read_text("utf-8")
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    reader = _Reader(path)
    content = reader.mapping(content, "the file", _KEYS)
    first = text.lstrip().splitlines()[0].strip() if text.strip() else ""
    if not first.startswith("#") or not first.strip("# "):
        raise ConfigError(f"{path}: the first line must be the question, as a comment: # Does ... help?")
    arms = tuple(reader.arm(name, value) for name, value in reader.mapping(content.get("arms"), "arms").items())
    names = [arm.name for arm in arms]
    reference = content.get("reference")
    if reference not in names:
        raise ConfigError(f"{path}: reference must be one of the arms ({', '.join(names)}), got {reference!r}")
    stages = content.get("stages")
    folder = Path(local_path(str(base), "--base")) if base is not None else reader.folder(content.get("base"))
    reader.check_against(arms, reference, content.get("equal"))
    ablation = Ablation(
        path,
        first.strip("# "),
        folder,
        arms,
        reference,
        reader.seeds(content.get("seeds", 3)),
        tuple(reader.metric(name, value) for name, value in reader.mapping(content.get("metrics"), "metrics").items()),
        reader.paper(content.get("paper"), [name for name in names if name != reference]),
        None if stages is None else reader.names(stages, "stages"),
        reader.one_of(content.get("equal", "steps"), "equal", EQUAL),
        content.get("scaled"),
        reader.resources(content.get("resources")),
        content.get("note"),
        reader.mapping(content.get("search") or {}, "search"),
    )
    return ablation


class _Reader:
    """Takes the parts of a file, or says what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, message: str) -> ConfigError:
        return ConfigError(f"{self.path}: {message}")

    def mapping(self, value: Any, key: str, known: Sequence[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.wrong(f"{key} must be a mapping from names, got {value!r}")
        if known is not None and (unknown := [name for name in value if name not in known]):
            raise self.wrong(f"there is no {unknown[0]!r} in {key}; it takes {', '.join(known)}")
        return value

    def names(self, value: Any, key: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
            raise self.wrong(f"{key} must be a list of names, got {value!r}")
        return tuple(value)

    def one_of(self, value: Any, key: str, known: Sequence[str]) -> str:
        if value not in known:
            raise self.wrong(f"{key} must be one of {', '.join(known)}, got {value!r}")
        return value

    def folder(self, value: Any) -> Path:
        if not isinstance(value, str):
            raise self.wrong(f"base must be the folder of a recipe, got {value!r}")
        return Path(local_path(value, f"{self.path}: base", self.path.parent))

    def seeds(self, value: Any) -> tuple[int, ...]:
        seeds = range(value) if isinstance(value, int) and not isinstance(value, bool) else value
        whole = [isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds or ()]
        if not seeds or not all(whole) or len(set(seeds)) < len(whole):
            raise self.wrong(f"seeds must be how many, or a list of different whole numbers of at least 0, got {value!r}")
        return tuple(seeds)

    def metric(self, name: str, value: Any) -> Metric:
        value = self.mapping(value, f"metrics.{name}", ("better", "difference"))
        difference = value.get("difference")
        if difference is not None and not (isinstance(difference, int | float) and difference > 0):
            raise self.wrong(f"metrics.{name}.difference must be a number above 0, got {difference!r}")
        return Metric(name, self.one_of(value.get("better"), f"metrics.{name}.better", ("lower", "higher")), difference)

    def paper(self, value: Any, arms: Sequence[str]) -> Paper:
        value = self.mapping(value or {}, "paper", ("source", "says", "better", "worse"))
        sides = [tuple(value.get(side) or ()) for side in ("better", "worse")]
        for side, named in zip(("better", "worse"), sides, strict=True):
            if unknown := [name for name in named if name not in arms]:
                raise self.wrong(f"paper.{side} names {unknown[0]!r}; the arms beside the reference are {', '.join(arms)}")
        return Paper(value.get("source"), value.get("says"), *sides)

    def resources(self, value: Any) -> Resources:
        value = self.mapping(value or {}, "resources", ("cores", "gpus", "memory_gb"))
        if wrong := [key for key, one in value.items() if not isinstance(one, int | float) or one < 0]:
            raise self.wrong(f"resources.{wrong[0]} must be a number of at least 0, got {value[wrong[0]]!r}")
        if value.get("cores", 1) < 1:
            raise self.wrong(f"resources.cores must be at least 1, got {value['cores']!r}")
        return Resources(**value)

    def arm(self, name: str, value: Any) -> Arm:
        if not name or set(name) & set('/\\ \t\n:*?"<>|') or name.startswith("."):
            raise self.wrong(f"arms: {name!r} cannot be the name of a folder; use letters, digits, _ - + = . and ,")
        value = dict(self.mapping(value or {}, f"arms.{name}"))
        offset = value.pop(SEED_OFFSET, 0)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise self.wrong(f"arms.{name}.{SEED_OFFSET} must be a whole number of at least 0, got {offset!r}")
        against = value.pop(AGAINST, None)
        skipped = tuple(file for file, changes in value.items() if changes == SKIP)
        changes = {file: self.mapping(changes, f"arms.{name}.{file}") for file, changes in value.items() if file not in skipped}
        return Arm(name, changes, skipped, offset, against)

    def check_against(self, arms: Sequence[Arm], reference: str, equal: Any) -> None:
        for arm in arms:
            others = [other.name for other in arms if other is not arm]
            if arm.against is not None and (arm.against not in others or arm.name == reference):
                raise self.wrong(
                    f"arms.{arm.name}.{AGAINST} must be another arm ({', '.join(others)}), got {arm.against!r}"
                    + f"; {reference} is the reference of all" * (arm.name == reference)
                )
            if arm.against is not None and equal not in (None, "steps"):
                raise self.wrong(f"arms.{arm.name}.{AGAINST}: with equal: {equal} all arms are made equal to {reference!r}")
