"""Made-up ablations and trials."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lit_eve.sweeps.ablation import Ablation, Arm, Metric, Paper
from lit_eve.sweeps.report.results import Answer, Trial

LOSS, ACCURACY = Metric("looks_loss", "lower", 0.03), Metric("question_accuracy", "higher", 0.05)


def ablation(
    *arms: str | Arm, metrics: tuple[Metric, ...] = (LOSS,), seeds: int = 8, paper: Paper | None = None, **fields
) -> Ablation:
    """An ablation of so many arms, the first of which is the reference."""
    return Ablation(
        Path("alignment.yaml"),
        "Does aligning patches to a teacher help?",
        Path("nano_hard"),
        tuple(arm if isinstance(arm, Arm) else Arm(arm) for arm in arms),
        arms[0],
        tuple(range(seeds)),
        metrics,
        paper or Paper("EVE v1 (arXiv 2406.11832), table 4", "with it GQA is 60.8, without it 58.9", arms[1:2]),
        **fields,
    )


def trial(arm: str, seed: int, curves: dict | None = None, answers: list[Answer] | None = None, **metrics: float) -> Trial:
    """A trial with these metrics."""
    return Trial(
        arm,
        seed,
        metrics,
        1200,
        3.5e15,
        118.5,
        101.25,
        "2a5cce7f00",
        "AMD EPYC, 2 cores",
        412_800,
        curves=curves or {},
        answers=answers,
    )


def trials(arms: dict[str, float], seeds: int, spread: float = 0.02, images: int = 40, seed: int = 0) -> list[Trial]:
    """Trials of arms whose loss differs from the first arm's by so much, in worlds of different difficulty."""
    rng = np.random.default_rng(seed)
    steps = np.arange(100, 1201, 100)
    made = []
    for number in range(seeds):
        world = rng.normal(0.4, 0.03)
        hard = rng.uniform(0.1, 0.9, images)
        for arm, effect in arms.items():
            loss = world + effect + rng.normal(0, spread / 2**0.5)
            values = loss + 1.5 * np.exp(-steps / 250) + rng.normal(0, 0.01, len(steps))
            curves = {
                "2_pretrain/val/language_loss": [(int(step), float(value)) for step, value in zip(steps, values, strict=True)]
            }
            curves["1_prealign/val/language_loss"] = [
                (step // 2, value + 1) for step, value in curves["2_pretrain/val/language_loss"]
            ]
            answers = [
                Answer(f"{image}-{place}", f"scene_{image}.png", bool(rng.random() < hard[image] - effect))
                for image in range(images)
                for place in range(4)
            ]
            accuracy = sum(answer.is_right for answer in answers) / len(answers)
            made.append(trial(arm, number, curves, answers, looks_loss=float(loss), question_accuracy=accuracy))
    return made
