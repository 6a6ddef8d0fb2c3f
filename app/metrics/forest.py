"""Geometry of the forest bar: one scale down a column, numbers only; templates draw."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForestScale:
    """Maps metric values to pixels between `pad` and `width − pad`."""

    low: float
    high: float
    width: float = 132.0
    pad: float = 2.0

    def x(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.pad + share * (self.width - 2 * self.pad), 1)


@dataclass(frozen=True, slots=True)
class ForestBar:
    low: float
    value: float
    high: float
    zero: float
    tolerance: float
    """Where the dashed line stands; the shade runs from it to the good side."""


def scale_for(intervals: Sequence[tuple[float, float]], tolerance: float) -> ForestScale:
    """Return a scale that holds 0, the tolerance on both sides and every interval."""
    low = min([-1.5 * tolerance, *(i[0] for i in intervals)])
    high = max([1.0 * tolerance, *(i[1] for i in intervals)])
    return ForestScale(low, high) if high > low else ForestScale(low - 1.0, high + 1.0)


def bar(scale: ForestScale, value: float, interval: tuple[float, float], limit: float) -> ForestBar:
    """Return pixels; `limit` is −tolerance (higher is better) or +tolerance (lower is better)."""
    low, high = interval
    return ForestBar(scale.x(low), scale.x(value), scale.x(high), scale.x(0.0), scale.x(limit))
