"""The pieces that ``report.md`` and ``RESULTS.md`` are made of: each is Markdown, without a newline at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10
from statistics import fmean, stdev

from lit_eve.markdown import table
from lit_eve.sweeps.ablation import SEED_OFFSET, SKIP, Ablation, Arm
from lit_eve.sweeps.report.comparison import Comparison, Row
from lit_eve.sweeps.report.results import Trial, short_commit, trial_name
from lit_eve.sweeps.report.statistics import MOST_SEEDS, question_interval

EQUAL = {
    "steps": "the same optimizer steps",
    "flops": "the same training FLOPs",
    "seconds": "the same seconds of a core",
}
NAMED = 12  # missing trials that are named
NOTHING = "–"
PAIRED = (
    "Differences are arm minus its reference, paired by seed. The interval is Student's over seeds, of one arm alone. p is "
    "two-sided and adjusted, so a difference can be not resolved though its interval is without 0."
)
NEEDED = (
    "Seeds needed: the fewest with which a paired t test finds a true difference of {difference:g} with a power of 0.8, at the "
    "level {level:.2g} (0.05 by the arms compared, Holm's first step), if differences vary as they do here."
)
QUESTIONS = (
    "Of the questions that arm and reference both answered, all seeds together. The interval is a bootstrap over images: it "
    "tells of other questions to these models, not of other seeds."
)


COST = (
    "Means over the trials of an arm. Compare arms by their FLOPs. Seconds of a core leave out waiting, but they are others on "
    "another processor, or on one that is shared."
)


def answer(comparison: Comparison) -> str:
    """What one metric says of all arms, by rule, in a sentence; of those that are not resolved, what would resolve them."""
    said = [row for row in comparison.rows if row.verdict]
    resolved = [
        f"`{row.arm}` is {row.verdict.sentence.removeprefix('resolved: ')}"
        + (f" ({row.verdict.paper})" if row.verdict.paper else "")
        for row in said
        if row.verdict.is_resolved
    ]
    others = [
        f"{outcome}: {', '.join(_unresolved(row, comparison) for row in said if row.verdict.outcome == outcome)}"
        for outcome in ("not resolved", "not measured")
        if any(row.verdict.outcome == outcome for row in said)
    ]
    return f"{comparison.metric.name}: {'; '.join([*resolved, *others]) or 'there is no arm to compare'}."


def _unresolved(row: Row, comparison: Comparison) -> str:
    """The arm, and how many seeds a difference of the size that matters takes."""
    if not row.needed or row.difference is None:
        return f"`{row.arm}`"
    size = f"{comparison.metric.difference:g}"
    enough = row.needed <= row.difference.n
    return f"`{row.arm}` ({size} would probably have shown)" if enough else f"`{row.arm}` ({size} takes {row.needed} seeds)"


def by_rule(ablation: Ablation, comparisons: Sequence[Comparison], trials: Sequence[Trial]) -> str:
    """The answer, a line per metric; of how many trials, where some are missing."""
    wanted = _wanted(ablation)
    there = len({trial.name for trial in trials}.intersection(wanted))
    so_far = "" if there == len(wanted) else f" so far ({there} of {len(wanted)} trials)"
    return "\n".join([f"**Answer{so_far}, by rule:**", "", *(f"- {answer(comparison)}" for comparison in comparisons)])


def _wanted(ablation: Ablation) -> list[str]:
    return [trial_name(arm.name, seed) for arm in ablation.arms for seed in ablation.seeds]


def state(ablation: Ablation, trials: Sequence[Trial], failed: Mapping[str, str]) -> str:
    """How many trials there are, and which are not; empty where all are."""
    wanted, there = _wanted(ablation), {trial.name for trial in trials}
    missing = [name for name in wanted if name not in there and name not in failed]
    if not missing and not failed:
        return ""
    said = ["Not complete."]
    if missing:
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        said.append(f"Missing: {', '.join(missing[:NAMED])}{rest}.")
    if failed:
        said.append(f"Failed: {', '.join(failed)}.")
    if idle := [arm.name for arm in ablation.arms if not any(trial.arm == arm.name for trial in trials)]:
        said.append(f"Without any trial: {', '.join(idle)}.")
    return " ".join(said)


def paper(ablation: Ablation) -> str:
    """What is known of the question; empty where the file says nothing."""
    known, lines = ablation.paper, []
    if known.source or known.says:
        lines.append(f"{': '.join(filter(None, (known.source, known.says))).removesuffix('.')}.")
    for side, arms in (("better", known.better), ("worse", known.worse)):
        if arms:
            than = {ablation.reference_of(arm) for arm in arms}
            whom = f"`{than.pop()}`" if len(than) == 1 else "the arms that they are compared with"
            lines.append(f"There {side} than {whom}: {', '.join(f'`{arm}`' for arm in arms)}.")
    return " ".join(lines)


def arms(ablation: Ablation) -> str:
    """The arms, and what each changes of the recipe."""
    rows = [(_named(arm.name, ablation.reference), _changes(arm)) for arm in ablation.arms]
    return table(("arm", "changes"), rows, ("arm", "changes"))


def _changes(arm: Arm) -> str:
    parts = [
        f"{file}: `{setting}: {_yaml(value)}`" for file, changes in arm.changes.items() for setting, value in changes.items()
    ]
    parts += [f"{file}: {SKIP}" for file in arm.skipped]
    parts += [f"{SEED_OFFSET}: {arm.seed_offset}"] if arm.seed_offset else []
    parts += [f"compared with `{arm.against}`"] if arm.against else []
    return ", ".join(parts) or "nothing"


def _yaml(value: object) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.strip().removesuffix("...").strip()


def provenance(ablation: Ablation, trials: Sequence[Trial], command: str, date: str) -> str:
    """Command, date, commits and machines of the numbers, and how arms were made equal."""
    commits = list(dict.fromkeys(short_commit(trial.commit) or "unknown" for trial in trials))
    machines = list(dict.fromkeys(trial.machine for trial in trials))
    mixed = " (**the trials are not all of one commit**)" if len(commits) > 1 else ""
    stages = f", stages {', '.join(ablation.stages)}" if ablation.stages else ""
    equal = f"all arms have {EQUAL[ablation.equal]}"
    if ablation.scaled:
        equal += f", by the steps of {ablation.scaled}"
    one_each = len({(trial.seed, trial.steps) for trial in trials}) == len({trial.seed for trial in trials})
    if ablation.equal == "steps" and not one_each:
        equal = "arms have the steps that the recipe gives them, which are not as many for all (see Cost)"
    lines = [
        f"Command: `{command}`",
        f"Date: {date}",
        f"Commit: {', '.join(commits) or NOTHING}{mixed}",
        f"Machine: {'; '.join(machines) or NOTHING}",
        f"Recipe: {ablation.base.name}{stages}; {equal}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def metric_section(comparison: Comparison) -> str:
    """The table of a metric, under its name."""
    metric, lines = comparison.metric, [differences(comparison)]
    if metric.difference is not None:
        lines.append(NEEDED.format(difference=metric.difference, level=comparison.first_level))
    if any(row.difference is not None and row.difference.deviation == 0 for row in comparison.rows):
        lines.append("Where all differences are equal, there is no interval, and p is that of the sign test.")
    if comparison.not_finite:
        lines.append(f"No finite number, so left out: {', '.join(comparison.not_finite)}.")
    return "\n\n".join([f"### {metric.name} ({metric.better} is better)", *lines])


def differences(comparison: Comparison) -> str:
    """The table of one metric: means of all arms, and their paired differences to the reference."""
    metric, digits = comparison.metric, _digits(comparison)
    header = ["arm", "seeds", "mean", "standard deviation", "difference", "95 % interval", "p (Holm)", "better in"]
    header += ["seeds needed"] * (metric.difference is not None) + ["verdict"]
    return table(header, [_cells(row, comparison, digits) for row in comparison.rows], ("arm", "verdict"))


def _cells(row: Row, comparison: Comparison, digits: int) -> list[str]:
    numbers = list(row.values.values())
    cells = [
        _named(row.arm, comparison.reference),
        str(len(numbers)),
        f"{fmean(numbers):.{digits}f}" if numbers else NOTHING,
        f"{stdev(numbers):.{digits}f}" if len(numbers) > 1 else NOTHING,
    ]
    difference, gain = row.difference, comparison.gain(row)
    has_needed = comparison.metric.difference is not None
    if difference is None or gain is None or row.verdict is None:
        return [*cells, *[NOTHING] * (4 + has_needed), row.verdict.sentence if row.verdict else ""]
    cells.append(f"{difference.mean:+.{digits}f}")
    cells.append("{:+.{d}f} to {:+.{d}f}".format(*difference.interval, d=digits) if difference.interval else NOTHING)
    cells.append(NOTHING if row.adjusted_p is None else "< 0.001" if row.adjusted_p < 0.001 else f"{row.adjusted_p:.3f}")
    cells.append(f"{gain.positive} of {gain.n}")
    if has_needed:
        cells.append(str(row.needed) if row.needed else f"> {MOST_SEEDS:,}" if difference.deviation else NOTHING)
    return [*cells, "; ".join(filter(None, (row.verdict.sentence, row.verdict.paper)))]


def _digits(comparison: Comparison) -> int:
    """Decimals with which the narrowest interval, or the smallest spread over seeds, has two digits that count."""
    spreads = [stdev(row.values.values()) for row in comparison.rows if len(row.values) > 1]
    spreads += [(row.difference.interval[1] - row.difference.interval[0]) / 2 for row in comparison.rows if _has_interval(row)]
    values = [abs(value) / 100 for row in comparison.rows for value in row.values.values()]
    scale = min(filter(None, spreads), default=max(values, default=0.0))
    return min(8, max(0, 1 - floor(log10(scale)))) if scale else 3


def _has_interval(row: Row) -> bool:
    return row.difference is not None and row.difference.interval is not None


def _named(arm: str, reference: str) -> str:
    return f"{arm} (reference)" if arm == reference else arm


def questions(ablation: Ablation, trials: Sequence[Trial]) -> str:
    """The table of accuracies over questions; empty where no trial has answers."""
    answers = {
        arm.name: {trial.seed: trial.answers for trial in trials if trial.arm == arm.name and trial.answers}
        for arm in ablation.arms
    }
    rows = []
    for arm, of_arm in answers.items():
        found = question_interval(of_arm, answers[ablation.reference_of(arm)])
        if found is None:
            continue
        difference = interval = NOTHING
        if arm != ablation.reference:
            difference = f"{100 * found.mean:+.1f}"
            interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in found.interval)) if found.interval else NOTHING
        name = _named(arm, ablation.reference)
        rows.append((name, f"{found.questions:,}", f"{found.images:,}", f"{100 * found.accuracy:.1f}", difference, interval))
    header = ("arm", "questions", "images", "answered right (%)", "difference", "95 % interval over questions")
    return table(header, rows) if rows else ""


def cost(ablation: Ablation, trials: Sequence[Trial]) -> str:
    """The table of what a trial of each arm takes, in the mean."""
    of_arms = {arm.name: own for arm in ablation.arms if (own := [trial for trial in trials if trial.arm == arm.name])}
    of_flops = {arm: [trial.flops for trial in own] for arm, own in of_arms.items()}
    flops = {arm: fmean(values) for arm, values in of_flops.items() if None not in values}
    rows = []
    for arm, own in of_arms.items():
        reference = flops.get(ablation.reference_of(arm))
        parameters = {trial.parameters for trial in own}
        rows.append(
            (
                _named(arm, ablation.reference),
                len(own),
                NOTHING
                if None in parameters
                else " to ".join(f"{one:,}" for one in dict.fromkeys((min(parameters), max(parameters)))),
                f"{fmean(trial.steps for trial in own):,.0f}",
                f"{flops[arm]:.3g}" if arm in flops else NOTHING,
                f"{flops[arm] / reference:.2f}" if arm in flops and reference else NOTHING,
                f"{fmean(trial.core_seconds for trial in own):,.0f}",
            )
        )
    return table(("arm", "trials", "parameters", "steps", "FLOPs", "times its reference", "seconds of a core"), rows)
