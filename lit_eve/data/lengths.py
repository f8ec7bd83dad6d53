"""How many tokens each sample takes, known before training: packing, the number of steps and cost estimates need it.

Lengths depend on the tokenizer, the template and the image geometry. They are counted once per shard and such combination,
without decoding an image, and kept beside the shard's index.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from lit_eve.data.parallel import for_each_shard
from lit_eve.data.shards import ShardReader, check_images, parse_text
from lit_eve.data.shards.cache import array_to_strings, is_kept, load_arrays, save_arrays, strings_to_array
from lit_eve.data.shards.index import ShardIndex, ensure_indices, index_shard
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import SampleError
from lit_eve.processing import EveProcessor
from lit_eve.processing.processor import TemplateName
from lit_eve.processing.sample import Sample
from lit_eve.processing.tokenize import UnknownWords

_BATCH = 2048  # samples that are tokenised at once
_WORDS = 100  # unknown words that are kept of a shard


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used: where it is and why."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class SampleTable:
    """All samples of a mixture, by number: sources one after the other, their shards in order. 16 bytes per sample.

    Args:
        paths: the shards of all sources.
        first_sample: (shards + 1,) int64; shard s holds the samples ``first_sample[s]`` to ``first_sample[s + 1]``.
        offset: (samples,) int64; where each begins in its tar.
        size: (samples,) int32; bytes.
        length: (samples,) int32; tokens, 0 where the sample cannot be used.
        source_sizes: samples per source.
        unusable: the samples of length 0 and why.
        unknown: what the tokenizer does not know of the others' texts.
    """

    paths: list[Path]
    first_sample: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    length: np.ndarray
    source_sizes: list[int]
    unusable: list[Skipped]
    unknown: UnknownWords = field(default_factory=UnknownWords)

    def __len__(self) -> int:
        return len(self.length)

    def references(self, samples: np.ndarray) -> np.ndarray:
        """(k, 4) int64 shard, offset, size, length of samples: all that a worker process needs to read them."""
        shard = np.searchsorted(self.first_sample, samples, side="right") - 1
        return np.stack([shard, self.offset[samples], self.size[samples], self.length[samples]], axis=1).astype(np.int64)


def fingerprint(processor: EveProcessor, template: TemplateName | None = None) -> str:
    """Changes whenever lengths may: tokenizer, template with its code, geometry, what is around images, limits on images."""
    written = processor.template_of(template)
    tokenizer = processor.tokenizer
    facts = [
        processor.geometry.to_dict(),
        processor.template if template is None else template,
        _source(type(written)),
        processor.max_image_pixels,
        processor.max_aspect_ratio,
        getattr(tokenizer, "chat_template", None),
        tokenizer.backend_tokenizer.to_str(),
        *([processor.around_images.to_dict()] if processor.around_images else []),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=dict).encode()).hexdigest()[:16]


@lru_cache
def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # defined in a notebook's dead cell or the like
        return kind.__qualname__


def shard_lengths(
    path: Path, processor: EveProcessor, template: TemplateName | None = None, mark: str | None = None
) -> tuple[np.ndarray, list[Skipped], UnknownWords]:
    """Tokens of each sample of a shard (int32; 0 = cannot be used), why some cannot be used, and unknown words of the others.

    Args:
        mark: the fingerprint, where the caller has it already.
    """
    name = f"tokens-{mark or fingerprint(processor, template)}"
    arrays = load_arrays(path, name)
    if arrays is None:
        index = index_shard(path)
        unknown = UnknownWords()
        lengths, reasons = _count(index, processor, template, unknown)
        bad = np.flatnonzero(lengths == 0)
        arrays = {
            "length": lengths,
            "keys": strings_to_array([index.key(i) for i in bad]),
            "reasons": strings_to_array([reasons[i] for i in bad]),
            "unknown": np.array([unknown.tokens, unknown.unknown], np.int64),
            "words": strings_to_array([word for word, _ in unknown.words.most_common(_WORDS)]),
            "word_counts": np.array([count for _, count in unknown.words.most_common(_WORDS)], np.int64),
        }
        save_arrays(path, name, arrays)
    bad_ones = zip(array_to_strings(arrays["keys"]), array_to_strings(arrays["reasons"]), strict=True)
    words = zip(array_to_strings(arrays["words"]), arrays["word_counts"].tolist(), strict=True)
    unknown = UnknownWords(*arrays["unknown"].tolist(), Counter(dict(words)))
    return arrays["length"], [Skipped(str(path), key, reason) for key, reason in bad_ones], unknown


def _count(
    index: ShardIndex, processor: EveProcessor, template: TemplateName | None, unknown: UnknownWords
) -> tuple[np.ndarray, dict[int, str]]:
    lengths = np.zeros(len(index), np.int32)
    reasons = {number: f"{index.key(number)}: {reason}" for number, reason in index.reasons().items()}
    reader = ShardReader([index.path])
    samples: list[Sample] = []
    sizes: list[Sequence[tuple[int, int]] | None] = []
    numbers: list[int] = []

    def flush() -> None:
        counts = processor.count_tokens_batch(samples, sizes, template, unknown=unknown)
        for number, count in zip(numbers, counts, strict=True):
            if isinstance(count, SampleError):
                reasons[number] = str(count)
            else:
                lengths[number] = count
        for batch in (samples, sizes, numbers):
            batch.clear()

    for number, texts in enumerate(index.texts()):
        if number in reasons:
            continue
        try:
            image_sizes = index.image_sizes(number)
            if (0, 0) in image_sizes:  # rare; the image itself says what is wrong, or that these limits let it pass
                sample = reader.read(0, int(index.offset[number]), int(index.size[number]))
                image_sizes = None
            else:
                sample = parse_text(index.key(number), texts)
                check_images(sample, len(image_sizes))
        except SampleError as error:
            reasons[number] = str(error)
            continue
        samples.append(sample)
        sizes.append(image_sizes)
        numbers.append(number)
        if len(samples) == _BATCH:
            flush()
    flush()
    return lengths, reasons


def prepare_shards(
    sources: Sequence[str | Path],
    processor: EveProcessor,
    template: TemplateName | None = None,
    processes: int = 1,
    progress: bool = False,
) -> None:
    """Index what is not indexed yet, and count what is not counted yet.

    Args:
        sources: folders, patterns or single tars.
        processes: how many shards at a time.
        progress: show progress bars.

    Raises:
        ConfigError: a source without shards, or a shard that cannot be read.
    """
    paths = [path for source in sources for path in list_shards(source)]
    ensure_indices(paths, processes, progress)
    mark = fingerprint(processor, template)
    missing = [path for path in paths if not is_kept(path, f"tokens-{mark}")]
    for_each_shard(
        shard_lengths,
        missing,
        processor,
        template,
        mark,
        title="counting tokens",
        processes=processes,
        progress=progress,
    )


def load_table(sources: Sequence[str | Path], processor: EveProcessor, template: TemplateName | None = None) -> SampleTable:
    """The samples of several sources (folders, patterns or single tars), which are prepared where they are not yet.

    Raises:
        ConfigError: a source without shards, or a shard that cannot be read.
    """
    shards = [list_shards(source) for source in sources]
    paths = [path for source in shards for path in source]
    mark = fingerprint(processor, template)
    offsets, sizes, lengths, unusable, unknown = [], [], [], [], UnknownWords()
    for path in paths:
        index = load_arrays(path, "index", "offset", "size") or vars(index_shard(path))
        length, skipped, words = shard_lengths(path, processor, template, mark)
        offsets.append(index["offset"])
        sizes.append(index["size"].astype(np.int32))
        lengths.append(length)
        unusable += skipped
        unknown.add(words)
    first_sample = np.cumsum([0, *map(len, lengths)])
    ends = np.cumsum([0, *map(len, shards)])
    return SampleTable(
        paths=paths,
        first_sample=first_sample,
        offset=np.concatenate(offsets),
        size=np.concatenate(sizes),
        length=np.concatenate(lengths),
        source_sizes=np.diff(first_sample[ends]).tolist(),
        unusable=unusable,
        unknown=unknown,
    )
