"""What an epoch reads, as pure functions: which samples, packed into which rows, in which order.

    draw      (weights, seed, epoch)     -> samples of the epoch, as often as their source's weight says
    pack      (lengths, max_tokens)      -> rows of at most ``max_tokens`` tokens, hardly any padding
    shuffle   (seed, epoch)              -> order of the rows
    slice     (batch, rank, world size)  -> the rows of one rank
    seeds     (seed, epoch, sample)      -> whatever is drawn for a sample, such as which of its image tokens are masked

Nothing here reads a file, keeps a state or depends on the number of workers or ranks. Every process computes the same plan
by itself, and "where was I" is answered by two numbers, the epoch and how many rows are done. All random numbers come from
the raw stream of PCG64, which numpy keeps stable between versions (``Generator.permutation`` is not).

Notation: N samples of the epoch, R rows, T = max_tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_eve.data.packing import best_rule, pack
from lit_eve.errors import ConfigError

# what a random stream is for; part of its seed, so that no two streams are the same
_SUBSET, _SAMPLES, _ROWS, _WINDOWS, _SEEDS = range(5)


@dataclass(frozen=True)
class RowPlan:
    """The rows of one epoch.

    Args:
        samples: (N,) int32 indices of samples, row after row.
        starts: (R + 1,) int64; row r holds ``samples[starts[r]:starts[r + 1]]``.
        seed, epoch: what it was made from.
    """

    samples: np.ndarray
    starts: np.ndarray
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> np.ndarray:
        """Sample indices of a row; empty past the last row, where a global batch is filled up."""
        if index >= len(self):
            return self.samples[:0]
        return self.samples[self.starts[index] : self.starts[index + 1]]

    def seeds(self, samples: np.ndarray) -> np.ndarray:
        """(k,) int64 of at least 0, one for each sample: for what is drawn for it in this epoch, wherever it is read."""
        states = (np.random.SeedSequence((self.seed, _SEEDS, self.epoch, int(i))).generate_state(1, np.uint64) for i in samples)
        return np.array([state[0] >> np.uint64(1) for state in states], np.int64)

    def padding(self, lengths: np.ndarray, max_tokens: int) -> float:
        """Share of the rows' tokens that holds no sample."""
        used = np.minimum(lengths[self.samples], max_tokens).sum(dtype=np.int64)
        return 1.0 - float(used) / max(len(self) * max_tokens, 1)


def permutation(count: int, *seed: int) -> np.ndarray:
    """(count,) random order of ``range(count)``; the same for the same seed, on every machine and numpy version."""
    return _order(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count))


def _order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort of the leading bits of uint64 keys: the place of each key is written into its trailing bits, and numbers
    are sorted instead of places, which is several times faster than ``np.argsort``."""
    place_mask = np.uint64((1 << max(len(keys) - 1, 1).bit_length()) - 1)
    keys = keys & ~place_mask
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= place_mask
    return keys.view(np.int64)


def _group(row_of: np.ndarray) -> np.ndarray:
    """Stable argsort of row numbers."""
    return _order(row_of.astype(np.uint64) << np.uint64(max(len(row_of) - 1, 1).bit_length()))


def draw(count: int, weight: float, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """Samples that a source of ``count`` samples gives to an epoch, in storage order.

    The weight is how often a sample is seen per epoch: 2 gives every sample twice; 0.5 gives half of them, the other half in
    the next epoch (a fixed random order is cut into consecutive pieces, one per epoch, around and around); 1.5 gives all of
    them once and half of them again.

    Returns:
        (round(weight * count),) int64 indices below ``count``.
    """
    copies = int(weight)
    rest = round((weight - copies) * count)
    parts = [np.arange(count)] * copies
    if rest:
        piece = (np.arange(rest) + epoch * rest) % count
        parts.append(permutation(count, seed, _SUBSET, source)[piece])
    return np.sort(np.concatenate(parts)) if parts else np.arange(0)


def _rows_of_window(
    samples: np.ndarray, lengths: np.ndarray, max_tokens: int, rule: int, shuffle_seed: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the samples of one window: (samples, row by row; samples per row)."""
    if shuffle_seed is not None:  # who is packed with whom is chance: equal lengths are taken in random order
        samples = samples[permutation(len(samples), _SAMPLES, *shuffle_seed)]
    row_of = pack(lengths[samples], max_tokens, rule)
    num_rows = int(row_of.max()) + 1 if len(row_of) else 0
    if shuffle_seed is not None:
        row_of = permutation(num_rows, _ROWS, *shuffle_seed)[row_of]
    else:  # storage order, as far as packing allows: rows by their first sample
        first = np.full(num_rows, np.iinfo(np.int64).max)
        np.minimum.at(first, row_of, samples)
        rank = np.empty(num_rows, np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(num_rows)
        row_of = rank[row_of]
    return samples[_group(row_of)], np.bincount(row_of, minlength=num_rows)


def plan_epoch(
    lengths: np.ndarray,
    max_tokens: int,
    *,
    sizes: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    shuffle_window: int | None = None,
) -> RowPlan:
    """The rows of an epoch over a weighted mixture of sources.

    Args:
        lengths: (samples of all sources,) tokens per sample; 0 = cannot be used, left out. Longer than ``max_tokens``
            counts as ``max_tokens`` (the sample will be truncated).
        sizes: samples per source; the sources stand one after the other in ``lengths``.
        weights: how often a sample of each source is seen per epoch, see :func:`draw`.
        shuffle: False keeps storage order as far as packing allows.
        shuffle_window: None shuffles and packs over the whole epoch. A number cuts the epoch into windows of about that many
            consecutive samples, each with its share of every source: windows come in random order, rows are shuffled and
            packed within their window, and disks see few shards at a time. What is in a window does not depend on the epoch,
            hence neither does the number of rows.

    Every epoch has the same number of rows as long as weights are whole numbers; with others it may differ by a few rows.
    """
    sizes = [len(lengths)] if sizes is None else list(sizes)
    weights = [1.0] * len(sizes) if weights is None else list(weights)
    if sum(sizes) != len(lengths) or len(weights) != len(sizes):
        raise ConfigError("the plan needs one size and one weight per source, and one length per sample")
    first = np.cumsum([0, *sizes])
    drawn = [draw(n, w, seed, epoch, i) + first[i] for i, (n, w) in enumerate(zip(sizes, weights, strict=True))]
    drawn = [indices[lengths[indices] > 0].astype(np.int32) for indices in drawn]
    lengths = np.minimum(lengths, max_tokens)
    rule = best_rule(np.concatenate([lengths[indices] for indices in drawn]), max_tokens)
    total = sum(map(len, drawn))
    windows = max(1, round(total / shuffle_window)) if shuffle_window else 1
    order = permutation(windows, seed, _WINDOWS, epoch) if shuffle else np.arange(windows)

    samples, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for window in order.tolist():
        pieces = [part[len(part) * window // windows : len(part) * (window + 1) // windows] for part in drawn]
        shuffle_seed = (seed, epoch, window) if shuffle else None
        piece, per_row = _rows_of_window(np.concatenate(pieces), lengths, max_tokens, rule, shuffle_seed)
        samples.append(piece)
        counts.append(per_row)
    return RowPlan(np.concatenate(samples), np.concatenate([[0], np.cumsum(np.concatenate(counts))]), seed, epoch)


def num_batches(num_rows: int, rows: int, world_size: int) -> int:
    """Micro-batches of an epoch, the same on every rank; the last global batch is filled up with empty rows."""
    return -(-num_rows // (rows * world_size))


def num_samples(plan: RowPlan, batches: int, rows: int, rank: int, world_size: int) -> int:
    """Samples of a rank in the first so many micro-batches of an epoch."""
    counts = np.diff(plan.starts)[: batches * rows * world_size]
    return int(counts[np.arange(len(counts)) // rows % world_size == rank].sum())


def batch_rows(batch: int, rows: int, rank: int, world_size: int) -> range:
    """Rows of a rank in a global micro-batch: the global batch is ``rows * world_size`` consecutive rows, cut by rank."""
    start = (batch * world_size + rank) * rows
    return range(start, start + rows)
