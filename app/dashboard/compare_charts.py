"""Curves of the compared runs: one chart for each quantity that may share an axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.metrics.registry import METRICS
from app.specs.teacher import PROFILES
from app.specs.training import RunSpec

QUANTITIES = (
    "train/kd_loss",
    "validation/kl",
    "train/ce_loss",
    "train/loss",
    "validation/loss",
)
POINTS = 200
MOST_NAMED = 3
LONGEST_LABEL = 28
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's curves and what they depend on; `colour` is its place among the runs."""

    label: str
    colour: int
    spec: RunSpec
    data: str
    points: Mapping[str, Points]


@dataclass(frozen=True, slots=True)
class ChartView:
    id: str
    title: str
    unit: str
    digits: int
    series: list[dict[str, Any]]


def charts_of(curves: Sequence[Curve]) -> tuple[list[ChartView], str | None]:
    """Return a chart for each quantity that runs share, and what has no other to stand beside.

    A single run's curves are all shown.
    """
    charts, alone = [], []
    for metric in QUANTITIES:
        alike: dict[str, list[Curve]] = {}
        for curve in curves:
            if curve.points.get(metric):
                alike.setdefault(_depends_on(metric, curve), []).append(curve)
        for place, (words, group) in enumerate(alike.items()):
            if len(group) == 1 and len(curves) > 1:
                alone.append(f"{METRICS[metric].label} of {group[0].label}")
                continue
            charts.append(_chart(metric, place, words if len(alike) > 1 else "", group))
    if not alone:
        return charts, None
    shown = "; ".join(alone[:MOST_NAMED])
    more = f" and {len(alone) - MOST_NAMED} more" if len(alone) > MOST_NAMED else ""
    return charts, (
        f"No other run here measures the same as {shown}{more}: α, T, kept rows, text or data "
        "differ. Such a curve is on its run’s page."
    )


def _depends_on(metric: str, curve: Curve) -> str:
    """Return in words what makes this metric of two runs one quantity."""
    objective = curve.spec.training.objective
    words = {
        "α": f"α {objective.alpha:g}",
        "T": f"T {objective.temperature:g}",
        "view": _view(curve.spec),
        "text": {"reference": "references", "logged": "logged answers"}[objective.ce_target],
        "data": curve.data,
    }
    every = ("α", "T", "view", "text", "data")
    needed = {
        "train/kd_loss": ("T", "view", "data"),
        "validation/kl": ("T", "view", "data"),
        "train/ce_loss": ("text", "data"),
    }.get(metric, every if objective.needs_teacher else ("text", "data"))
    return ", ".join(words[key] for key in needed)


def _view(spec: RunSpec) -> str:
    """Return what of the teacher a KL is measured on: on unlike supports it is not one quantity."""
    if spec.training.objective.teacher == "live":
        return "whole distribution"
    kept = spec.capture
    return f"{kept.name} rows" if kept.k_max == PROFILES[kept.name]["k_max"] else f"k {kept.k_max}"


def _chart(metric: str, place: int, suffix: str, group: Sequence[Curve]) -> ChartView:
    m = METRICS[metric]
    series = [
        {
            "name": metric,
            "label": _short(curve.label),
            "colour": curve.colour,
            "points": [list(point) for point in curve.points[metric]],
        }
        for curve in group
    ]
    title = f"{m.label}, {suffix}" if suffix else m.label
    return ChartView(f"c-{metric.replace('/', '-')}-{place}", title, m.unit, m.digits, series)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
