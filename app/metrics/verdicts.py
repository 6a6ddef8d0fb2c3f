"""Verdict words and sentences: they follow from the interval (and Holm) alone."""

import math
from dataclasses import dataclass
from typing import Literal

from app.metrics.formatting import MINUS, metric_delta, number
from app.metrics.registry import METRICS
from app.metrics.statistics import TOO_FEW, Estimate, more_needed

Verdict = Literal[
    "better", "worse", "no evidence", "within", "outside", "not proven", "too few", "not compared"
]
POINTS = 2.0
"""How near two percentages must be where the project's tolerance is not in points."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why figures have no verdict: a few words for a cell, and a clause for a sentence."""

    short: str
    text: str


NO_INTERVAL = Reason("no interval", "there is no interval")
TIMED_APART = Reason("timed apart", "it was measured at other times")


def _has_verdict(metric: str) -> bool:
    return METRICS[metric].judged and METRICS[metric].direction != "none"


def against_baseline(metric: str, e: Estimate, n: int, adjusted_p: float) -> Verdict:
    """Better or worse when the interval leaves out 0 and Holm's p agrees."""
    direction = METRICS[metric].direction
    if math.isnan(e.low) or not _has_verdict(metric):
        return "not compared"
    if n < TOO_FEW:
        return "too few"
    if e.low <= 0 <= e.high or adjusted_p >= 0.05:  # noqa: PLR2004 - the 5 % level
        return "no evidence"
    return "better" if (e.value > 0) == (direction == "higher") else "worse"


def against_teacher(metric: str, e: Estimate, n: int, tolerance: float) -> Verdict:
    """Whole interval above −tolerance: within; wholly below: outside. Tolerance as shown."""
    direction = METRICS[metric].direction
    if math.isnan(e.low) or not _has_verdict(metric):
        return "not compared"
    if n < TOO_FEW:
        return "too few"
    low, high = (e.low, e.high) if direction == "higher" else (-e.high, -e.low)
    limit = -tolerance / METRICS[metric].scale
    if low > limit:
        return "within"
    return "outside" if high < limit else "not proven"


def tolerance_words(metric: str, tolerance: float) -> str:
    m = METRICS[metric]
    text = f"{tolerance:g}".replace("-", MINUS)
    unit = ("point" if tolerance == 1 else "points") if m.percent else m.unit
    return f"{text} {unit}".strip()


def sentence(
    names: tuple[str, str],
    metric: str,
    e: Estimate,
    n: int,
    judged: tuple[Verdict, Reason | None],
    tolerance: float,
) -> str:
    """Return one plain sentence with number, interval, n, and why there is no verdict."""
    verdict, reason = judged
    a, b = names
    label = METRICS[metric].label
    words = tolerance_words(metric, tolerance)
    if verdict == "too few":
        return f"n\u00a0{number(n)} is too few to compare {a} with {b}; at least 30 are needed."
    if verdict == "not compared":
        return f"{a} and {b} are not compared on {label}: {(reason or NO_INTERVAL).text}."
    figures = (
        f"{metric_delta(metric, e.value)}, 95\u00a0% interval {metric_delta(metric, e.low)} to "
        f"{metric_delta(metric, e.high)}, n\u00a0{number(n)}"
    )
    heads = {
        "within": f"{a} is within {words} of {b} on {label}",
        "outside": f"{a} is outside {words} of {b} on {label}",
        "not proven": f"It is not proven that {a} is within {words} of {b} on {label}",
        "better": f"{a} is better than {b} on {label}",
        "worse": f"{a} is worse than {b} on {label}",
        "no evidence": f"{a} and {b} cannot be told apart on {label}",
    }
    text = f"{heads[verdict]}: {figures}."
    more = more_needed(e, n) if verdict == "no evidence" else None
    if more is not None:
        rounded = round(more, 3 - len(str(more))) if more >= 1000 else more  # noqa: PLR2004 - three digits say enough
        text = f"{text[:-1]}; about {number(rounded)} more conversations would be needed."
    return f"{text[:-1]}; {reason.text}." if reason else text


def withheld(e: Estimate, verdict: Verdict, comparisons: int) -> Reason | None:
    """Return why there is no verdict, where figures are shown that seem to give one."""
    if verdict == "not compared":
        return NO_INTERVAL if math.isnan(e.low) else TIMED_APART
    if verdict != "no evidence" or e.low <= 0 <= e.high:
        return None
    return Reason(
        f"Holm, {comparisons} comparisons",
        f"the interval leaves out 0, but {comparisons} comparisons were made at once "
        "and over all of them that is too little (Holm)",
    )


def no_merit(metric: str, value: float, beside: float, tolerance: float) -> Reason | None:
    """Return why a better value is no merit: what it stands on is worse by more than `tolerance`.

    A model that is sure of nothing and right at nothing has an ECE near 0. `value` and `beside`
    are a − b, of the metric and of the one it is read beside; `tolerance` is as shown.
    """
    other = METRICS[metric].beside
    if other is None or not abs(beside) * METRICS[other].scale > tolerance:
        return None
    a_leads = (value > 0) == (METRICS[metric].direction == "higher")
    if a_leads == (beside > 0):
        return None
    what = METRICS[other].label.lower()
    return Reason(
        f"{what} differs",
        f"the better {METRICS[metric].label} comes with an {what} that is more than "
        f"{tolerance_words(other, tolerance)} lower, and to doubt wrong answers is no merit",
    )
