"""make_world: the miniature world's data sets, in the formats that real data has.

Two are files of text documents, all others are shards of samples in LLaVA's conversation format with PNG images:

    text, validation_text               documents for the language model
    prealign, pretrain                  captions
    finetune                            questions, several turns per image
    validation_captions, test_captions
    validation_questions, test_questions
                                        one question per image, with its ``type`` and ``answer`` as metadata

No layout of a validation or test scene, or of a scene of the miniature benchmarks, occurs in any training set.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_eve.data.parallel import in_any_order
from lit_eve.data.shards import ShardWriter
from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically
from lit_eve.nano.progress import is_done, mark_done
from lit_eve.nano.world.benchmark_items import benchmark_scenes
from lit_eve.nano.world.documents import SHARES, document
from lit_eve.nano.world.language import caption, glyph_map
from lit_eve.nano.world.prompts import CONTEXT, FORMS, TEXT_FORMS, Turn, bare, conversation
from lit_eve.nano.world.questions import Ledger, Question, ask
from lit_eve.nano.world.scenes import Scene, SceneSpec, png, scenes

HELD_OUT = ("test_questions", "test_captions", "validation_questions", "validation_captions", "validation_text")
TRAINING = ("text", "finetune", "pretrain", "prealign")
CAPTIONS = ("prealign", "pretrain", "validation_captions", "test_captions")
DOCUMENTS = "documents.jsonl"
TRAINING_SLACK = 30  # how far an answer may run ahead of the others in a training set; see Ledger
TRAINING_WEIGHTS = {
    **{"exist": 1.5, "colour": 0.7, "shape": 0.7, "size": 0.7},
    **{"count_by_attribute": 2.0, "relation": 3.2, "place": 3.2},  # what is learnt late is asked more often
}
FINETUNE_WEIGHTS = {
    **TRAINING_WEIGHTS,
    **{"exist_pair": 0.5, "exist_size": 0.1, "exist_place": 0.15},  # what only benchmarks ask, more seldom
    **{"verify_count": 0.1, "compare": 0.06, "both": 0.06, "either": 0.06, "choose_colour": 0.06, "choose_shape": 0.06},
}
WITHOUT_IMAGE = 0.03  # share of the conversations about a map of words instead of an image


@dataclass(frozen=True)
class WorldSettings:
    """How much of the miniature world to make.

    Args:
        seed: another seed, another world.
        scenes: what the scenes are drawn from.
        text: documents for the language model.
        documents: shares of their kinds; see `lit_eve.nano.world.documents`.
        prealign, pretrain: captioned images for the first two stages.
        finetune: images with questions for the third stage.
        turns: questions per image in ``finetune`` and per document; validation and test have one, as earlier turns would
            give hints.
        validation: samples of each validation set.
        test: samples of each test set.
        benchmarks: questions of each miniature benchmark; `write_benchmarks` writes them.
        workers: processes that draw.
    """

    seed: int = 0
    scenes: SceneSpec = field(default_factory=SceneSpec)
    text: int = 20000
    documents: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    prealign: int = 1800
    pretrain: int = 7200
    finetune: int = 14000
    turns: int = 6
    validation: int = 256
    test: int = 1024
    benchmarks: int = 100
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("text", "prealign", "pretrain", "finetune", "turns", "validation", "test", "benchmarks", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if unknown := self.documents.keys() - SHARES.keys():
            raise ConfigError(f"documents: there is no kind {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
        object.__setattr__(self, "documents", {kind: self.documents.get(kind, 0.0) for kind in SHARES})
        if abs(sum(self.documents.values()) - 1) > 1e-6 or min(self.documents.values()) < 0:
            raise ConfigError(f"documents: shares are not negative and add up to 1, not {self.documents}")

    def size(self, name: str) -> int:
        """How many samples a data set holds."""
        return getattr(self, name.split("_")[0])


def make_world(run_dir: str | Path, settings: WorldSettings = WorldSettings()) -> Path:
    """Write the data sets that are missing under ``run_dir/data`` and return that folder.

    Raises:
        ConfigError: a data set is there already, made with other settings.
    """
    data = Path(run_dir) / "data"
    missing = [name for name in (*HELD_OUT, *TRAINING) if not is_done(data / name, settings)]
    if not missing:
        return data
    held_out = held_out_layouts(settings)
    jobs = [(data / name, name, settings, frozenset() if name in HELD_OUT else held_out) for name in reversed(missing)]
    for _ in in_any_order(_make, jobs, processes=settings.workers):
        pass
    return data


def held_out_layouts(settings: WorldSettings) -> frozenset[tuple]:
    """The layouts of all scenes that no training set may hold."""
    asked = (scene for name in HELD_OUT for scene, _ in chosen(name, settings))
    return frozenset(scene.layout for scene in (*asked, *benchmark_scenes(settings.seed, settings.scenes)))


def _make(job: tuple[Path, str, WorldSettings, frozenset]) -> None:
    """Write one data set: its folder, its name, and the layouts that it must not have."""
    folder, name, settings, forbidden = job
    samples = chosen(name, settings, forbidden)
    rng = random.Random(f"{name}/{settings.seed}")

    forms = {"finetune": FORMS, "text": TEXT_FORMS}.get(name)

    def turns(scene: Scene, asked: list[Question]) -> list[Turn]:
        return conversation(scene, asked, rng, forms) if asked and forms else bare(asked)

    if name.endswith("text"):
        documents = (document(scene, turns(scene, asked), rng, settings.documents) for scene, asked in samples)
        lines = (json.dumps({"kind": kind, "text": text}) + "\n" for kind, text in documents)
        write_atomically(folder / DOCUMENTS, "".join(lines))
    else:
        with ShardWriter(folder) as shards:
            for index, (scene, asked) in enumerate(samples):
                view, texts = "<image>", turns(scene, asked) or [Turn("", caption(scene, rng))]
                if name == "finetune" and rng.random() < WITHOUT_IMAGE:
                    view = f"{CONTEXT} {glyph_map(scene)}"
                record = {"id": f"{name}-{index:06d}", "conversations": _messages(view, texts)}
                if len(asked) == 1:
                    record |= {"type": asked[0].type, "answer": asked[0].answer}
                shards.write(record, [png(scene)] if view == "<image>" else [])
    mark_done(folder, settings)


def chosen(name: str, settings: WorldSettings, forbidden: Collection[tuple] = ()) -> Iterator[tuple[Scene, list[Question]]]:
    """The scenes of a data set and the questions asked about them (none in sets of captions).

    Args:
        name: one of `HELD_OUT` or `TRAINING`.
        settings: the world's.
        forbidden: layouts that are left out.
    """
    weights = FINETUNE_WEIGHTS if name == "finetune" else TRAINING_WEIGHTS
    ledger = Ledger(slack=1) if name in HELD_OUT else Ledger(TRAINING_SLACK, weights)
    turns = 0 if name in CAPTIONS else 1 if name in HELD_OUT else settings.turns
    rng = random.Random(f"questions/{name}/{settings.seed}")
    found = 0
    for scene in scenes(name, settings.seed, settings.scenes):
        if scene.layout in forbidden:
            continue
        asks = turns and not (name == "text" and rng.random() >= settings.documents["chat"])
        asked = ask(scene, rng, ledger, turns) if asks else []
        if asks and not asked:
            continue
        yield scene, asked
        found += 1
        if found == settings.size(name):
            return


def _messages(view: str, turns: Sequence[Turn]) -> list[dict[str, str]]:
    """A conversation in LLaVA's format, about what stands in front of its first question."""
    first, *later = turns
    turns = [first._replace(text=f"{view}\n{first.text}".strip()), *later]
    return [{"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)]
