"""Numbers as people read them: pure functions, used as template filters too."""

import math

from app.metrics.registry import METRICS

MINUS = "\u2212"
DASH = "—"


def number(value: float | None, digits: int = 0) -> str:
    """Format with thousands commas and a true minus; `—` where nothing was measured."""
    if value is None or math.isnan(value):
        return DASH
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 0) -> str:
    """Format a delta: always a sign, except on zero as shown."""
    text = number(value, digits)
    plain = text.strip("0.,") == ""
    return text if plain or text == DASH or text.startswith(MINUS) else f"+{text}"


def metric_value(name: str, value: float | None) -> str:
    metric = METRICS[name]
    return number(None if value is None else value * metric.scale, metric.digits)


def metric_delta(name: str, value: float | None) -> str:
    metric = METRICS[name]
    return signed(None if value is None else value * metric.scale, metric.digits)


def delta_interval(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"[{metric_delta(name, low)}, {metric_delta(name, high)}]"


def level_interval(name: str, low: float | None, high: float | None) -> str:
    return f"{metric_value(name, low)} … {metric_value(name, high)}"


def duration(seconds: float) -> str:
    """Format seconds as `0.4 s`, `8 s`, `6 m 10 s`, `45 m` or `3 h 41 m`."""
    if 0.05 <= seconds < 0.95:  # noqa: PLR2004 - what took some time did not take none
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10 and rest:  # noqa: PLR2004 - seconds matter only in short times
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m"


def size(count: float) -> str:
    """Format bytes in binary units."""
    unit, digits = "B", 0
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if round(count, digits) < 1024:  # noqa: PLR2004 - binary step, as it will be shown
            break
        count, unit, digits = count / 1024, larger, 1
    return f"{number(count, digits)} {unit}"


def tokens(count: float) -> str:
    """Format `812`, `44.3 k` or `44.28 M`."""
    if round(count) < 10_000:  # noqa: PLR2004 - short enough to read whole
        return number(count)
    if round(count / 1e3, 1) < 1e3:  # noqa: PLR2004 - a million, as it will be shown
        return f"{number(count / 1e3, 1)} k"
    return f"{number(count / 1e6, 2)} M"


def parameters(count: float) -> str:
    """Format parameter counts: `41,120`, `134.5 M`, `7.62 B`."""
    if count < 1e6:  # noqa: PLR2004 - short enough to read whole
        return number(count)
    return f"{number(count / 1e6, 1)} M" if count < 999.95e6 else f"{number(count / 1e9, 2)} B"  # noqa: PLR2004 - what rounds to 1,000 M is a billion


def compression(ratio: float) -> str:
    return f"{number(ratio, 1)}×"
