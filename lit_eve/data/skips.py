"""Samples that cannot be used: each is listed once, and too many of them end the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from math import inf
from pathlib import Path

from lit_eve.data.lengths import Skipped
from lit_eve.errors import LitEveError

log = logging.getLogger(__name__)

_NONE = 100  # so many samples, and not a usable one among them, are enough to give up


class SkipLog:
    """Lists skipped samples in ``skipped.jsonl`` (shard, key, reason), counts them and judges their share.

    Args:
        path: the file; None lists nothing. Several processes may append to it, in this run and in later ones.
        max_bad_fraction: more than this share of samples unusable is an error ...
        min_samples: ... once so many have been seen. Until then, what is still to come in the epoch counts as usable.
        known: share of samples that is known to be unusable without reading images; they never come to be seen.
    """

    def __init__(self, path: Path | None, max_bad_fraction: float = 0.01, min_samples: int = 1000, known: float = 0.0) -> None:
        self.path = path
        self.max_bad_fraction = max_bad_fraction
        self.min_samples = min_samples
        self.known = known
        self.seen = 0
        self.bad = 0
        self._epoch: float = inf
        self._none_after: float = _NONE
        self._last: Skipped | None = None

    def expect(self, epoch: int, run: int) -> None:
        """Say how many samples an epoch has, and how many of them are read before the run ends."""
        self._epoch, self._none_after = max(epoch, 1), min(run, _NONE)

    def add(self, skipped: Iterable[Skipped], usable: int) -> None:
        """Count samples of a batch, list those that were skipped, and :meth:`judge`."""
        skipped = list(skipped)
        self.seen += usable + len(skipped)
        self.bad += len(skipped)
        if skipped:
            self.list(skipped)
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
        """Raise LitEveError when the share of unusable samples is above the limit, or none can be used, whatever the limit."""
        to_come = -self.seen % self._epoch if self.seen < self.min_samples else 0
        fraction = self.known + self.bad / max(self.seen + to_come, 1)
        if 0 < self.bad == self.seen >= self._none_after:
            what = f"none of the {self.seen} samples that were read can be used"
        elif fraction > self.max_bad_fraction:
            what = (
                f"{'at least ' if to_come else ''}{fraction:.2%} of the samples cannot be used ({self.bad} of {self.seen} that "
                f"were read, {self.known:.2%} known from the index), more than data.max_bad_fraction = "
                f"{self.max_bad_fraction:g}"
            )
        else:
            return
        listed = f"; they are listed in {self.path}" if self.path else ""
        last = f"; the last one, of {self._last.shard}: {self._last.reason}" if self._last else ""
        raise LitEveError(what + listed + last)

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
