"""Evaluations side by side: cells with intervals, differences with verdicts, one sentence."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.metrics.registry import DECIDING, METRICS
from app.metrics.statistics import (
    ClusterSums,
    Estimate,
    difference_over_seeds,
    holm,
    level_over_seeds,
    mean_over_seeds,
    unpaired_difference,
)
from app.metrics.verdicts import (
    POINTS,
    Reason,
    Verdict,
    against_baseline,
    against_teacher,
    no_merit,
    sentence,
    withheld,
)

EvaluationRole = Literal[
    "teacher", "undistilled", "distilled", "labels_only", "sequence_level", "fine_tune"
]


ENOUGH_SEEDS = 3
"""Runs of one recipe from which its verdict is about the recipe, no longer about a checkpoint."""
UNTRAINED = frozenset({"teacher", "undistilled"})
"""Rows that no seed changes: they are compared with recipes as they are."""
_SEED_WORDS = re.compile(r",?\s*\bseed \d+\b|\s*#\d+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of the table, in the metric's stored unit; None: not measured, or no interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    excluded: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """a − b on one metric, with its verdict."""

    a: str
    b: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    verdict: Verdict
    sentence: str
    reason: Reason | None = None
    """Why there is no verdict, where the interval seems to give one."""


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation: what it measured, on which frozen set and clusters."""

    name: str
    role: EvaluationRole
    sums: dict[str, ClusterSums]
    set_version: int
    clusters_key: str
    set_name: str = ""
    """How people call the set, such as “traffic@3”."""
    recipe: str | None = None
    """Addresses all settings but the seed; None where there is no training, or not all of it."""
    seed: int | None = None
    repeats: dict[str, tuple[ClusterSums, ...]] = field(default_factory=dict)
    """Of a row that stands for a recipe: each seed's sums; `sums` are their mean."""

    def seeds(self, metric: str) -> tuple[ClusterSums, ...]:
        return self.repeats.get(metric) or (self.sums[metric],)

    def cells(self) -> dict[str, Cell]:
        return {name: cell_of(name, *self.seeds(name)) for name in self.sums}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows that may be compared, every difference, and what was left out."""

    deciding_metric: str
    tolerance: float
    baseline: str | None
    rows: tuple[EvaluationRow, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    sentences: tuple[str, ...]
    """On one run: against the teacher, against the baseline, and what the verdict is about."""
    recipes: "Comparison | None" = None
    """Over seeds, where a recipe has enough of them: rows are its mean, teacher and student."""

    @property
    def sentence(self) -> str:
        return " ".join((*self.sentences, *(self.recipes.sentences if self.recipes else ())))

    @property
    def teacher(self) -> EvaluationRow | None:
        return next((row for row in self.rows if row.role == "teacher"), None)

    def as_json(self) -> dict[str, Any]:
        """Return the shape of `runs compare --json`."""
        return {
            "deciding_metric": self.deciding_metric,
            "tolerance": self.tolerance,
            "baseline": self.baseline,
            "sentence": self.sentence,
            "warnings": list(self.warnings),
            "rows": [
                {
                    "name": row.name,
                    "role": row.role,
                    "cells": {
                        name: {"value": c.value, "low": c.low, "high": c.high, "n": c.n}
                        for name, c in row.cells().items()
                    },
                }
                for row in self.rows
            ],
            "differences": [
                {
                    "a": d.a,
                    "b": d.b,
                    "metric": d.metric,
                    "value": d.value,
                    "low": d.low,
                    "high": d.high,
                    "n": d.n,
                    "verdict": d.verdict,
                    "reason": d.reason.text if d.reason else None,
                }
                for d in self.differences
            ],
            "recipes": self.recipes.as_json() if self.recipes else None,
        }

    def difference(self, a: str, b: str, metric: str) -> Difference | None:
        wanted = (a, b, metric)
        return next((d for d in self.differences if (d.a, d.b, d.metric) == wanted), None)


def reasons_of(differences: Iterable[Difference | None]) -> tuple[Reason, ...]:
    """Return each reason once, of the differences that show an interval without a verdict."""
    told = (d.reason for d in differences if d is not None and d.low is not None)
    return tuple(dict.fromkeys(reason for reason in told if reason is not None))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def cell_of(name: str, *seeds: ClusterSums) -> Cell:
    """Return the value of a metric, of one evaluation or the mean of seeds, with its interval."""
    e = level_over_seeds(seeds, proportion=METRICS[name].percent)
    sums = mean_over_seeds(seeds)
    # No metric of an evaluation can be negative; rounding may leave a value just below 0.
    low = e.low if math.isnan(e.low) else min(e.value, max(0.0, e.low))
    return Cell(_finite(e.value), _finite(low), _finite(e.high), sums.n, sums.excluded)


def _estimate(metric: str, a: EvaluationRow, b: EvaluationRow) -> Estimate:
    if a.sums[metric].paired and b.sums[metric].paired:
        proportion = METRICS[metric].percent
        return difference_over_seeds(a.seeds(metric), b.seeds(metric), proportion=proportion)
    return unpaired_difference(a.sums[metric], b.sums[metric])


def _default_baseline(rows: Sequence[EvaluationRow]) -> EvaluationRow | None:
    for role in ("labels_only", "undistilled"):
        for row in rows:
            if row.role == role:
                return row
    return None


def _comparable(rows: Sequence[EvaluationRow]) -> tuple[list[EvaluationRow], list[str]]:
    """Keep the rows on the set of the teacher (else of the first row); say what is left out."""
    if not rows:
        return [], []
    anchor = next((r for r in rows if r.role == "teacher"), rows[0])
    kept, warnings = [], []
    for row in rows:
        if row.set_version != anchor.set_version:
            ours, theirs = (r.set_name or f"set version {r.set_version}" for r in (row, anchor))
            warnings.append(
                f"{row.name} is left out: it was evaluated on {ours}, {anchor.name} on {theirs}. "
                "Evaluate it again on that version."
            )
        elif row.clusters_key != anchor.clusters_key:
            warnings.append(
                f"{row.name} is left out: it was evaluated on other conversations than "
                f"{anchor.name}, or against another truth. Evaluate it again on the same ones."
            )
        else:
            kept.append(row)
    return kept, warnings


def _against(
    rows: Sequence[EvaluationRow],
    other: EvaluationRow,
    metric: str,
    *,
    tolerance: float | None,
    near: float,
) -> list[Difference]:
    """Differences of the rows to one other row; a tolerance asks for within or outside.

    `near`: how far apart two rows may be in what this metric is read beside.
    """
    pairs = [r for r in rows if r is not other and metric in r.sums]
    estimates = [_estimate(metric, r, other) for r in pairs]
    adjusted = holm([1.0 if math.isnan(e.p) else e.p for e in estimates])
    found = []
    for row, e, p in zip(pairs, estimates, adjusted, strict=True):
        n = min(row.sums[metric].n, other.sums[metric].n)
        verdict = (
            against_baseline(metric, e, n, p)
            if tolerance is None
            else against_teacher(metric, e, n, tolerance)
        )
        reason = withheld(e, verdict, len(pairs))
        if verdict in ("better", "worse"):
            reason = no_merit(metric, e.value, _beside(metric, row, other), near)
            verdict = "not compared" if reason else verdict
        text = sentence((row.name, other.name), metric, e, n, (verdict, reason), tolerance or 0.0)
        found.append(
            Difference(
                row.name,
                other.name,
                metric,
                _finite(e.value),
                _finite(e.low),
                _finite(e.high),
                n,
                verdict,
                text,
                reason,
            )
        )
    return found


def _beside(metric: str, a: EvaluationRow, b: EvaluationRow) -> float:
    """Return a − b of the metric that this one is read beside; 0 where there is none."""
    other = METRICS[metric].beside
    if other is None or other not in a.sums or other not in b.sums:
        return 0.0
    return a.sums[other].value - b.sums[other].value


def compare(
    rows: Sequence[EvaluationRow],
    *,
    deciding_metric: str,
    tolerance: float,
    baseline: str | None = None,
) -> Comparison:
    """Compare each run with the teacher and with the baseline, on every metric.

    `tolerance` is in the unit shown (points for percentages). Raises ValueError for a metric that
    cannot decide or a baseline that is not among the comparable rows.
    """
    if deciding_metric not in DECIDING:
        raise ValueError(f"{deciding_metric} cannot decide; choose one of {', '.join(DECIDING)}")
    kept, warnings = _comparable(rows)
    teacher = next((r for r in kept if r.role == "teacher"), None)
    base = _default_baseline(kept)
    if baseline is not None:
        base = next((r for r in kept if r.name == baseline), None)
        if base is None:
            raise ValueError(f"{baseline} cannot be the baseline: it is not in this comparison")
    runs = [r for r in kept if r is not teacher]
    near = tolerance if METRICS[deciding_metric].percent else POINTS
    found: list[Difference] = []
    for metric in METRICS:
        if teacher is not None and metric in teacher.sums:
            limit = tolerance if metric == deciding_metric else None
            found += _against(runs, teacher, metric, tolerance=limit, near=near)
        if base is not None and base is not teacher and metric in base.sums:
            found += _against(runs, base, metric, tolerance=None, near=near)
    name = base.name if base else None
    recipes = None
    over_seeds = _recipes(kept)
    if over_seeds:
        recipes = compare(
            [*(r for r in kept if r.role in UNTRAINED), *over_seeds.values()],
            deciding_metric=deciding_metric,
            tolerance=tolerance,
            baseline=_standing_for(base, over_seeds),
        )
    text = _headline(runs, found, deciding_metric)
    return Comparison(
        deciding_metric, tolerance, name, tuple(kept), tuple(found), tuple(warnings), text, recipes
    )


def _standing_for(base: EvaluationRow | None, recipes: Mapping[str, EvaluationRow]) -> str | None:
    """Return the baseline among recipes: that of the chosen run, or what is no run; else any."""
    if base is not None and base.role in UNTRAINED:
        return base.name
    found = recipes.get(base.recipe or "") if base else None
    return found.name if found else None


def _has_paired(row: EvaluationRow, metric: str) -> bool:
    return metric in row.sums and row.sums[metric].paired


def _recipes(rows: Sequence[EvaluationRow]) -> dict[str, EvaluationRow]:
    """Return a row for each recipe that was trained with enough seeds: the mean of its runs."""
    runs: dict[str, dict[int, EvaluationRow]] = {}
    for row in rows:
        if row.recipe is not None and row.seed is not None:
            runs.setdefault(row.recipe, {}).setdefault(row.seed, row)
    found: dict[str, EvaluationRow] = {}
    for recipe, of_seed in runs.items():
        members = list(of_seed.values())
        if len(members) < ENOUGH_SEEDS:
            continue
        # Speeds are no part: they are measured apart, on clusters of their own.
        common = [m for m in members[0].sums if all(_has_paired(other, m) for other in members)]
        repeats = {m: tuple(member.sums[m] for member in members) for m in common}
        name = f"{_SEED_WORDS.sub('', members[0].name) or members[0].role} ({len(members)} seeds)"
        if any(name == other.name for other in found.values()):
            name = f"{name}, as {members[0].name}"
        found[recipe] = replace(
            members[0],
            name=name,
            sums={m: mean_over_seeds(sums) for m, sums in repeats.items()},
            recipe=None,
            repeats=repeats,
        )
    return found


def _headline(
    runs: Sequence[EvaluationRow], found: Sequence[Difference], deciding_metric: str
) -> tuple[str, ...]:
    """Return sentences on the first distilled run, else the first that is compared."""
    compared = {d.a for d in found if d.metric == deciding_metric}
    subject = next((r for r in runs if r.role == "distilled"), None)
    subject = subject or next((r for r in runs if r.name in compared), runs[0] if runs else None)
    if subject is None:
        return ("There is nothing to compare yet: no run has been evaluated.",)
    texts = [d.sentence for d in found if d.a == subject.name and d.metric == deciding_metric]
    if not texts:
        return (f"{subject.name} is not compared: there is no other row.",)
    seeds = max((len(sums) for sums in subject.repeats.values()), default=1)
    about = (
        "The verdict is about this checkpoint; another seed may differ."
        if seeds == 1
        else f"The verdict is about this recipe, over {seeds} seeds and these conversations."
    )
    return (*texts, about)
