"""What an epoch holds, before it is trained on: counted in the shards where they are there, assumed where they are not.

A few thousand samples stand for all. They are packed into rows by the same code that training uses, so that padding and the
number of steps come out as they will.

What is assumed of data that is not there yet:

    captions        an image and NormalDist quantiles of log(text tokens): median 90, 68 % between 60 and 134
    conversations   94 % with an image and a text of median 190 tokens (68 %: 85 to 423), half of it answers;
                    6 % text only, median 900 (LLaVA-mix-665K holds 40K conversations of ShareGPT)
    images          4:3 40 %, 3:4 10 %, 3:2 25 %, 2:3 8 %, 16:9 7 %, 1:1 10 %; the longer side has some 1,024 pixels

Notation: S samples that stand for all, N images of these, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from lit_eve.data.lengths import SampleTable, load_table, prepare_shards
from lit_eve.data.plan import permutation, plan_epoch
from lit_eve.data.shards.index import index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError
from lit_eve.planning.flops import Workload
from lit_eve.processing import ImageGeometry
from lit_eve.training.recipe import Recipe

KNOWN_SETS = {"eve_captions": 33_000_000, "llava_mix665k": 665_298, "eve_hd_1.8m": 1_800_000}
"""Samples of the sets that the recipes name, by folder (arXiv 2406.11832, section 4.1; LLaVA-1.5)."""

STANDING = 4096  # samples that stand for all
PHOTO_SIDE = 1024  # longest side of a photo in pixels, about; EVE v1's tokens do not depend on it
ASPECT_RATIOS = {(4, 3): 0.40, (3, 4): 0.10, (3, 2): 0.25, (2, 3): 0.08, (16, 9): 0.07, (1, 1): 0.10}
CAPTION_TOKENS = (90, 0.4)  # median, and standard deviation of the logarithm
CONVERSATION_TOKENS = (190, 0.8)
TEXT_ONLY_TOKENS = (900, 0.7)
TEXT_ONLY_SHARE = 0.06
ANSWER_SHARE = 0.5  # of the text of a conversation


@dataclass(frozen=True)
class TypicalEpoch:
    """An epoch, and samples that stand for it.

    Args:
        origin: where the numbers come from, in words.
        num_samples: samples of the epoch.
        num_rows: packed rows of the epoch.
        padding: share of the rows' tokens that holds no sample.
        lengths: (S,) tokens of the standing samples, image slots included, at most T.
        num_images: (S,) images of each.
        image_grid_hw: (N, 2) rows and columns of patches of their images.
        num_targets: (S,) supervised tokens of each.
        row_of: (S,) the row that each is packed into.
        num_bytes: of the shards; None where they are not there.
    """

    origin: str
    num_samples: int
    num_rows: int
    padding: float
    lengths: np.ndarray
    num_images: np.ndarray
    image_grid_hw: np.ndarray
    num_targets: np.ndarray
    row_of: np.ndarray
    num_bytes: int | None = None

    @property
    def workload(self) -> Workload:
        """All standing samples."""
        return Workload(self.lengths, self.image_grid_hw, int(self.num_targets.sum()))

    @property
    def samples_per_row(self) -> float:
        """On average."""
        return self.num_samples / self.num_rows

    def heaviest_row(self, geometry: ImageGeometry, max_tokens: int) -> dict[str, int]:
        """The most ``images``, their ``slots`` and ``patches``, and ``targets`` of a row: what memory must be there for.

        ``samples`` and the tokens of the ``longest`` are those of the row that is largest with its samples side by side, as
        some decoders read it. Its padding is cut into samples too, none of which is longer.

        Args:
            geometry: of the model.
            max_tokens: T.
        """
        slots = geometry.num_tokens_of_grid(torch.from_numpy(self.image_grid_hw)).numpy()
        sample_of_image = np.repeat(np.arange(len(self.lengths)), self.num_images)
        samples, filled = np.bincount(self.row_of), np.bincount(self.row_of, weights=self.lengths).astype(int)
        longest = np.zeros_like(filled)
        np.maximum.at(longest, self.row_of, self.lengths)
        samples = samples + -(-(max_tokens - filled) // longest)
        largest = (samples * longest).argmax()
        per_row = lambda rows, amounts: int(np.bincount(rows, weights=amounts).max()) if len(rows) else 0  # noqa: E731
        return {
            "images": per_row(self.row_of, self.num_images),
            "slots": per_row(self.row_of[sample_of_image], slots),
            "patches": per_row(self.row_of[sample_of_image], self.image_grid_hw.prod(1)),
            "targets": per_row(self.row_of, self.num_targets),
            "samples": int(samples[largest]),
            "longest": int(longest[largest]),
        }


def typical_epoch(
    recipe: Recipe, geometry: ImageGeometry, num_samples: float | None = None, progress: bool = False
) -> TypicalEpoch:
    """The epoch of a recipe's training data.

    Args:
        geometry: of the recipe's model.
        num_samples: assume an epoch of so many samples, whatever is there. None: count the shards of ``data.train`` if all of
            them are there (indexing them first, if that was not done), else assume as many as the set is known to have.
        progress: show progress bars while shards are indexed.

    Raises:
        ConfigError: nothing is known about the data: no shards, no known set, no ``num_samples``.
    """
    sources = recipe.data.sources["train"]
    if not sources:
        raise ConfigError("data.train is not set: there is nothing to plan")
    if num_samples is None and all(_is_there(source.path) for source in sources):
        return _counted(recipe, geometry, progress)
    if num_samples is None:
        known = [KNOWN_SETS.get(Path(source.path).name) for source in sources]
        if None in known:
            raise ConfigError(
                f"data.train: there are no shards in {sources[known.index(None)].path!r} yet; say with --samples how many "
                "samples an epoch will have"
            )
        num_samples = sum(count * source.weight for count, source in zip(known, sources, strict=True))
    return _assumed(recipe, geometry, round(num_samples))


def _is_there(path: str) -> bool:
    try:
        return bool(list_shards(path))
    except ConfigError:
        return False


# ---- assumed


def _assumed(recipe: Recipe, geometry: ImageGeometry, num_samples: int) -> TypicalEpoch:
    captions = _writes_captions(recipe)
    max_tokens = recipe.data.max_tokens
    ratios = np.repeat(list(ASPECT_RATIOS), [round(share * STANDING) for share in ASPECT_RATIOS.values()], axis=0)
    ratios = ratios[permutation(len(ratios), 0)]  # (about S, 2)
    count = len(ratios)
    text_only = np.zeros(count, bool)
    if captions:
        text = _log_normal(count, *CAPTION_TOKENS)
    else:
        text_only[: round(TEXT_ONLY_SHARE * count)] = True
        text = _log_normal(count, *CONVERSATION_TOKENS)
        text[text_only] = _log_normal(int(text_only.sum()), *TEXT_ONLY_TOKENS)
    sizes = ratios * (PHOTO_SIDE // ratios.max(1, keepdims=True))  # (count, 2) width and height in pixels
    views = [[] if bare else geometry.patch_grids(*size) for size, bare in zip(sizes.tolist(), text_only, strict=True)]
    slots, num_images, grids = _slots(geometry, views)
    if slots.max() >= max_tokens:
        raise ConfigError(f"data.max_tokens: an image takes up to {slots.max()} tokens, and a row has {max_tokens}")
    text = np.minimum(text, max_tokens - slots)
    return _pack(
        f"assumed {'captions' if captions else 'conversations'}",
        num_samples,
        max_tokens,
        lengths=slots + text,
        num_images=num_images,
        image_grid_hw=grids,
        num_targets=text - 1 if captions else np.ceil(text * ANSWER_SHARE).astype(int),
    )


def _writes_captions(recipe: Recipe) -> bool:
    template = recipe.template
    return (template["name"] if isinstance(template, Mapping) else template) == "plain"


def _log_normal(count: int, median: float, deviation: float) -> np.ndarray:
    """``count`` evenly spaced quantiles of a log-normal distribution, in random order; (count,) int64."""
    normal = NormalDist(math.log(median), deviation)
    values = [max(round(math.exp(normal.inv_cdf((i + 0.5) / count))), 2) for i in range(count)]
    return np.array(values)[permutation(count, 1)]


def _pack(origin: str, num_samples: int, max_tokens: int, lengths: np.ndarray, **samples: np.ndarray) -> TypicalEpoch:
    """Pack the standing samples; an epoch of ``num_samples`` has rows in proportion."""
    plan = plan_epoch(lengths, max_tokens)
    row_of = np.empty(len(lengths), np.int64)
    row_of[plan.samples] = np.repeat(np.arange(len(plan)), np.diff(plan.starts))
    num_rows = math.ceil(num_samples * len(plan) / len(lengths))
    return TypicalEpoch(
        origin, num_samples, num_rows, plan.padding(lengths, max_tokens), lengths=lengths, row_of=row_of, **samples
    )


# ---- counted


def _counted(recipe: Recipe, geometry: ImageGeometry, progress: bool) -> TypicalEpoch:
    processor = recipe.processor
    data = recipe.data.attach(processor)
    paths = [source.path for source in data.sources["train"]]
    prepare_shards(paths, processor, data.template, data.index_workers, progress)
    table = load_table(paths, processor, data.template)
    weights = [source.weight for source in data.sources["train"]]
    plan = plan_epoch(
        table.length,
        data.max_tokens,
        sizes=table.source_sizes,
        weights=weights,
        seed=data.order_seed,
        shuffle_window=data.shuffle_window,
    )
    if not len(plan):
        raise ConfigError(f"data.train: none of its {len(table)} samples can be used")
    # Whole rows, so that the standing samples are packed as all are.
    chosen = np.linspace(0, len(plan) - 1, min(len(plan), -(-STANDING * len(plan) // len(plan.samples)))).astype(int)
    rows = [plan.row(row) for row in chosen.tolist()]
    samples = np.concatenate(rows)
    views = [
        [grid for size in images for grid in geometry.patch_grids(*size, len(images))]
        for images in _image_sizes(table, samples)
    ]
    slots, num_images, grids = _slots(geometry, views)
    lengths = np.minimum(table.length[samples], data.max_tokens).astype(np.int64)
    text = np.maximum(lengths - slots, 1)
    return TypicalEpoch(
        f"counted in {len(table.paths):,} shards",
        num_samples=len(plan.samples),
        num_rows=len(plan),
        padding=plan.padding(table.length, data.max_tokens),
        lengths=lengths,
        num_images=num_images,
        image_grid_hw=grids,
        num_targets=text - 1 if _writes_captions(recipe) else np.ceil(text * ANSWER_SHARE).astype(int),
        row_of=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        num_bytes=sum(Path(path).stat().st_size for path in table.paths),
    )


def _slots(geometry: ImageGeometry, views: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the patch grids of the views of each sample: its image tokens (S,), its views (S,), and all grids (N, 2)."""
    num_views = np.array([len(grids) for grids in views])
    flat = np.array([grid for grids in views for grid in grids], np.int64).reshape(-1, 2)
    of_view = np.repeat(np.arange(len(views)), num_views)
    slots = np.bincount(of_view, weights=geometry.num_tokens_of_grid(flat), minlength=len(views)).astype(np.int64)
    return slots, num_views, flat


def _image_sizes(table: SampleTable, samples: np.ndarray) -> list[list[tuple[int, int]]]:
    """(width, height) of the images of each sample, from the indices of their shards."""
    shards, offsets, _, _ = table.references(samples).T
    sizes: list[list[tuple[int, int]]] = [[]] * len(samples)
    for shard in np.unique(shards).tolist():
        index = index_shard(table.paths[shard])
        mine = np.flatnonzero(shards == shard)
        for place, number in zip(mine.tolist(), np.searchsorted(index.offset, offsets[mine]).tolist(), strict=True):
            # A size of 0 was not found in the headers; the sample was usable all the same.
            sizes[place] = [(max(width, 1), max(height, 1)) for width, height in index.image_sizes(number)]
    return sizes
