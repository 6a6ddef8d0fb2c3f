"""Intervals from cluster sums: linearised ratio estimator, cluster-robust, t with G − 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.specs.evaluation import MetricSums

Floats = NDArray[np.float64]
TOO_FEW = 30
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """One metric of one evaluation: sums, counts [G] in the set's cluster order."""

    sums: Floats
    counts: Floats
    n: int
    excluded: int = 0
    paired: bool = True

    @property
    def value(self) -> float:
        """Return Σ sums / Σ counts; nan where nothing was measured."""
        total = float(self.counts.sum())
        return float(self.sums.sum()) / total if total else math.nan

    @classmethod
    def of(cls, spec: MetricSums) -> "ClusterSums":
        return cls(
            np.asarray(spec.sums, dtype=np.float64),
            np.asarray(spec.counts, dtype=np.float64),
            spec.n,
            spec.excluded,
            spec.paired,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; low and high are nan with fewer than two clusters."""

    value: float
    low: float
    high: float
    p: float = math.nan


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta by Lentz's method (Numerical Recipes 6.4)."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d or _TINY)
    h = d
    for m in range(1, 20_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + term * d) or _TINY)
            c = (1.0 + term / c) or _TINY
            h *= d * c
        if abs(d * c - 1.0) < 1e-16:  # noqa: PLR2004 - machine precision
            break
    return h


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta I_x(a, b), a, b > 0, 0 ≤ x ≤ 1."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(a, b, x) / a
    return 1.0 - front * _fraction(b, a, 1.0 - x) / b


def t_two_sided(t: float, df: float) -> float:
    """Return P(|T| ≥ |t|) of Student's t."""
    return incomplete_beta(df / 2.0, 0.5, df / (df + t * t))


@lru_cache(maxsize=4096)
def t_quantile(level: float, df: float) -> float:
    """Return q with P(|T| ≤ q) = level (two-sided), by bisection."""
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > 1.0 - level:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        if t_two_sided(middle, df) > 1.0 - level:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def clopper_pearson(hits: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return the exact binomial interval (Clopper & Pearson 1934)."""
    tail = (1.0 - level) / 2.0

    def quantile(a: float, b: float, p: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(100):
            middle = (low + high) / 2.0
            low, high = (middle, high) if incomplete_beta(a, b, middle) < p else (low, middle)
        return (low + high) / 2.0

    low = 0.0 if hits <= 0 else quantile(hits, n - hits + 1, tail)
    high = 1.0 if hits >= n else quantile(hits + 1, n - hits, 1.0 - tail)
    return low, high


def _residuals(a: ClusterSums) -> tuple[float, Floats]:
    """Value and linearised contributions [G]: (s − v c) / Σ c."""
    total, value = float(a.counts.sum()), a.value
    return value, (a.sums - value * a.counts) / total if total else a.sums * math.nan


def _error(contributions: Floats, groups: int) -> float:
    return math.sqrt(groups / (groups - 1) * float(np.square(contributions).sum()))


def level(a: ClusterSums, *, proportion: bool, confidence: float = 0.95) -> Estimate:
    """Return Σ sums / Σ counts with its interval; never zero wide for a proportion."""
    return level_over_seeds((a,), proportion=proportion, confidence=confidence)


def level_over_seeds(
    seeds: Sequence[ClusterSums], *, proportion: bool, confidence: float = 0.95
) -> Estimate:
    """Return the mean over seeds with the interval of another seed's and other conversations' mean.

    One seed stands for itself: its interval is about the conversations alone.
    """
    mean = mean_over_seeds(seeds)
    value, parts = _residuals(mean)
    groups = int((mean.counts > 0).sum())
    if groups < 2 or math.isnan(value):  # noqa: PLR2004 - a variance needs two clusters
        return Estimate(value, math.nan, math.nan)
    error, df = _added((_error(parts, groups) ** 2, groups - 1), *_seed_parts(seeds))
    if proportion and error < 1e-12:  # noqa: PLR2004 - rounding of a zero variance
        low, high = clopper_pearson(value * groups, groups, confidence)
        return Estimate(value, min(low, value), max(high, value))
    t = t_quantile(confidence, df)
    if proportion and 0 < value < 1:
        return _wilson(value, error, t)
    return Estimate(value, value - t * error, value + t * error)


def mean_over_seeds(seeds: Sequence[ClusterSums]) -> ClusterSums:
    """Return the mean of repeated evaluations on the same clusters, cluster by cluster."""
    if len(seeds) == 1:
        return seeds[0]
    return ClusterSums(
        np.mean([s.sums for s in seeds], axis=0),
        np.mean([s.counts for s in seeds], axis=0),
        min(s.n for s in seeds),
        max(s.excluded for s in seeds),
        all(s.paired for s in seeds),
    )


def _seed_parts(*recipes: Sequence[ClusterSums]) -> list[tuple[float, float]]:
    """Return (variance of the mean over seeds, degrees of freedom) of each that has several."""
    return [
        (float(np.var([s.value for s in seeds], ddof=1)) / len(seeds), len(seeds) - 1)
        for seeds in recipes
        if len(seeds) > 1
    ]


def _added(*parts: tuple[float, float]) -> tuple[float, float]:
    """Return the error and degrees of freedom of added variances (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    bottom = sum(variance**2 / df for variance, df in parts)
    return math.sqrt(total), total**2 / bottom if bottom else parts[0][1]


def _wilson(value: float, error: float, t: float) -> Estimate:
    """Return the score interval of a share whose clustered standard error is known.

    Wilson (1927) with the effective number n = p(1 − p) / error²: a symmetric interval covers too
    little near 0 and 1 (87.9 % for p = .95 at n = 100; this one 96 %).
    """
    n = value * (1 - value) / error**2
    middle = (value + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * math.sqrt(value * (1 - value) / n + t**2 / (4 * n**2))
    return Estimate(value, middle - half, middle + half)


def paired_difference(
    a: ClusterSums, b: ClusterSums, *, proportion: bool, confidence: float = 0.95
) -> Estimate:
    """Return a − b on the same clusters; the clusters' contributions are differenced.

    For a proportion two pseudo-observations, a win and a loss, join the variance (Bonett & Price
    2012, clustered): with few clusters that differ the plain interval is too short, and one more
    loss could shorten it. Each is as large as the largest difference of a cluster seen, and at
    least one answer of each conversation in a cluster of mean size.

    Where few pairs differ this covers up to 99 %, and must: of three expected losses none is seen
    with 5 %, so the interval of none reaches up to three. Exact coverage for n 50 to 500 and up to
    5 such pairs is at least 93.6 %; Tango's score interval (1998) has 93.2 % and is 5 to 15 %
    wider, Newcombe's (1998, method 10) covers more and is as wide as Tango's.
    """
    return difference_over_seeds((a,), (b,), proportion=proportion, confidence=confidence)


def difference_over_seeds(
    a: Sequence[ClusterSums],
    b: Sequence[ClusterSums],
    *,
    proportion: bool,
    confidence: float = 0.95,
) -> Estimate:
    """Return mean a − mean b of recipes trained with several seeds each, on the same clusters.

    Seeds and conversations are crossed, and each is drawn: the variance over conversations of the
    means, and over seeds of each recipe, are added (Owen 2007: too large by what both share, never
    too small). Of three seeds the interval is wide, as it must be. One seed stands for itself.
    """
    one, other = mean_over_seeds(a), mean_over_seeds(b)
    if any(s.sums.shape != one.sums.shape for s in (*a, *b)):
        raise ValueError("a paired difference needs the same clusters in the same order")
    (va, ua), (vb, ub) = _residuals(one), _residuals(other)
    groups = int(((one.counts > 0) | (other.counts > 0)).sum())
    value = va - vb
    if groups < 2 or math.isnan(value):  # noqa: PLR2004 - a variance needs two clusters
        return Estimate(value, math.nan, math.nan)
    error = _error(ua - ub, groups)
    if proportion:
        error = math.hypot(error, math.sqrt(2.0) * _pseudo(one, other, groups))
    error, df = _added((error**2, groups - 1), *_seed_parts(a, b))
    return _around(value, error, df, confidence, 1.0 if proportion else math.inf)


def _pseudo(a: ClusterSums, b: ClusterSums, groups: int) -> float:
    """Return the size of a pseudo-observation, as a contribution to the difference."""
    ca, cb = float(a.counts.sum()), float(b.counts.sum())
    largest = float(np.abs(a.sums / ca - b.sums / cb).max())
    conversations = max(1.0, min(a.n, b.n) / groups)
    return max(largest, conversations / min(ca, cb))


def unpaired_difference(a: ClusterSums, b: ClusterSums, *, confidence: float = 0.95) -> Estimate:
    """Return a − b of independent measurements (speeds): Welch's t."""
    (va, ua), (vb, ub) = _residuals(a), _residuals(b)
    ga, gb = int((a.counts > 0).sum()), int((b.counts > 0).sum())
    if min(ga, gb) < 2:  # noqa: PLR2004 - a variance needs two clusters
        return Estimate(va - vb, math.nan, math.nan)
    error, df = _added((_error(ua, ga) ** 2, ga - 1), (_error(ub, gb) ** 2, gb - 1))
    return _around(va - vb, error, df, confidence, math.inf)


def _around(value: float, error: float, df: float, confidence: float, bound: float) -> Estimate:
    half = t_quantile(confidence, df) * error
    p = (t_two_sided(value / error, df) if error else float(value == 0)) if value else 1.0
    return Estimate(value, max(value - half, -bound), min(value + half, bound), p)


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values in the given order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def more_needed(estimate: Estimate, n: int) -> int | None:
    """Return about how many more conversations would make this difference leave out 0."""
    half = (estimate.high - estimate.low) / 2.0
    if not estimate.value or math.isnan(half) or half <= abs(estimate.value):
        return None
    return math.ceil(n * ((half / estimate.value) ** 2 - 1.0))
