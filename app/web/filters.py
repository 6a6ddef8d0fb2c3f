"""Template filters of the web program: times, addresses, short names, pretty JSON."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from app.clock import now
from app.metrics import formatting

SHORT_ID = 8


def as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def clock(moment: datetime, today: datetime | None = None) -> str:
    """Return `13:42` today, `21 Nov 09:48` this year, else `21 Nov 2025 09:48`; UTC."""
    moment, today = as_utc(moment), as_utc(today or now())
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    day = f"{moment.day} {moment:%b}"
    return f"{day} {moment:%H:%M}" if moment.year == today.year else f"{day} {moment:%Y %H:%M}"


def iso(moment: datetime) -> str:
    return as_utc(moment).isoformat(timespec="seconds")


def full_time(moment: datetime) -> str:
    moment = as_utc(moment)
    return f"{moment.day} {moment:%b %Y %H:%M:%S} UTC"


def short(text: str, length: int = SHORT_ID) -> str:
    """Return the head of a fingerprint or hash."""
    return text[:length]


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def capitalize_first(text: str) -> str:
    """Return the text with its first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def pretty_json(value: Any) -> str:
    """Indent JSON (a value, or text that may be JSON) for reading; other text stays as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, ensure_ascii=False, indent=2)


def as_series(value: Any) -> str:
    """Serialise chart data for a data attribute (escaped by the template)."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def with_query(path: str, current: dict[str, str], **changes: Any) -> str:
    """Return `path` with `current`'s query and `changes`; None drops a key."""
    merged: dict[str, Any] = {**current, **changes}
    query = urlencode({k: v for k, v in merged.items() if v not in (None, "")})
    return f"{path}?{query}" if query else path


def known(value: float | None, how: str) -> str:
    """Format by a function of app.metrics.formatting, or say that nobody knows the value."""
    return "unknown" if value is None else str(getattr(formatting, how)(value))


FILTERS: dict[str, Callable[..., Any]] = {
    "clock": clock,
    "iso": iso,
    "known": known,
    "full_time": full_time,
    "short": short,
    "plural": plural,
    "capitalize_first": capitalize_first,
    "pretty_json": pretty_json,
    "series": as_series,
}
