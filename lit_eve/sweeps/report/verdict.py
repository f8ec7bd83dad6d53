"""The words for a difference, by one rule, never by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_eve.sweeps.report.statistics import LEVEL, Difference

RULE = (
    f"Resolved: the p value of the paired t test over seeds, adjusted by Holm over the arms of that metric, is below {LEVEL}. "
    "Everything else is not resolved, whatever its mean."
)
AGREES, CONTRADICTS, NOISE = "the paper's sign", "the opposite of the paper's sign", "within noise"


@dataclass(frozen=True)
class Verdict:
    """What is said of an arm beside the reference, of one metric."""

    outcome: Literal["better", "worse", "not resolved", "not measured"]
    sentence: str
    """"resolved: better than REFERENCE by ...", or "not resolved: ..."."""
    paper: str | None
    """"the paper's sign", "the opposite of the paper's sign" or "within noise"; None: the paper says nothing of the arm."""

    @property
    def is_resolved(self) -> bool:
        return self.outcome in ("better", "worse")


def verdict(gain: Difference | None, adjusted_p: float | None, sign_of_paper: int, reference: str) -> Verdict:
    """Apply :data:`RULE`.

    Args:
        gain: the arm minus the reference, times the sign that makes it a gain; None: no seed has both.
        adjusted_p: Holm's, over the arms of that metric; None: no test, as with one seed.
        sign_of_paper: 1: better than the reference there; -1: worse; 0: not said.
        reference: its name.
    """
    if gain is None:
        return Verdict("not measured", f"not measured: no seed that {reference} has too", None)
    if adjusted_p is not None and adjusted_p < LEVEL:
        outcome, sign = ("better", 1) if gain.mean > 0 else ("worse", -1)
        paper = {0: None, sign: AGREES, -sign: CONTRADICTS}[sign_of_paper]
        return Verdict(outcome, f"resolved: {outcome} than {reference} by {abs(gain.mean):.2g}", paper)
    paper = NOISE if sign_of_paper else None
    return Verdict("not resolved", f"not resolved: {_observed(gain)}", paper)


def _observed(gain: Difference) -> str:
    """What was seen, though it proves nothing."""
    if gain.n == 1:
        return "one seed says nothing of others"
    if gain.mean == 0:
        return f"no difference over {gain.n} seeds"
    return f"{'better' if gain.mean > 0 else 'worse'} by {abs(gain.mean):.2g}, which may be luck"
