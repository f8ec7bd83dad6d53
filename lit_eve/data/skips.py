"""Samples that cannot be used: each is listed once, and too many of them end the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lit_eve.data.lengths import Skipped
from lit_eve.errors import LitEveError

log = logging.getLogger(__name__)


class SkipLog:
    """Lists skipped samples in ``skipped.jsonl`` (shard, key, reason), counts them and judges their share.

    Args:
        path: the file; None lists nothing. Several processes may append to it, in this run and in later ones.
        max_bad_fraction: more than this share of samples unusable is an error ...
        min_samples: ... once so many have been seen, or at the end of an epoch.
        known: share of samples that is known to be unusable without reading images; they never come to be seen.
    """

    def __init__(self, path: Path | None, max_bad_fraction: float = 0.01, min_samples: int = 1000, known: float = 0.0) -> None:
        self.path = path
        self.max_bad_fraction = max_bad_fraction
        self.min_samples = min_samples
        self.known = known
        self.seen = 0
        self.bad = 0
        self._last: Skipped | None = None

    def add(self, skipped: Iterable[Skipped], usable: int) -> None:
        """Count samples of a batch and list those that were skipped.

        Raises:
            LitEveError: too many of them.
        """
        skipped = list(skipped)
        self.seen += usable + len(skipped)
        self.bad += len(skipped)
        if skipped:
            self.list(skipped)
        if self.seen >= self.min_samples:
            self.judge()

    def list(self, skipped: Iterable[Skipped]) -> None:
        """Write samples that are not in the file yet, and log them."""
        listed = self._listed()
        new = [sample for sample in dict.fromkeys(skipped) if (sample.shard, sample.key) not in listed]
        for sample in new:
            log.warning("skipped a sample of %s: %s", sample.shard, sample.reason)
            self._last = sample
        if new and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:  # one write, so that lines of several processes do not mix
                file.write("".join(json.dumps(asdict(sample)) + "\n" for sample in new))

    def judge(self) -> None:
        """Raise LitEveError when the share of unusable samples is above the limit."""
        fraction = self.known + self.bad / max(self.seen, 1)
        if fraction > self.max_bad_fraction:
            raise LitEveError(
                f"{fraction:.2%} of the samples cannot be used ({self.bad} of {self.seen} that were read, {self.known:.2%} "
                f"known from the index), more than data.max_bad_fraction = {self.max_bad_fraction:g}; they are listed in "
                f"{self.path}" + (f"; the last one: {self._last.reason}" if self._last else "")
            )

    def _listed(self) -> set[tuple[str, str]]:
        if self.path is None or not self.path.exists():
            return set()
        listed = set()
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
                listed.add((entry["shard"], entry["key"]))
            except (ValueError, KeyError):  # the last line of a process that was killed
                continue
        return listed
