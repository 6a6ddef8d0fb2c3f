"""Scoring an answer's text against a truth: exact match and field F1."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from app.specs.fingerprint import canonical_json

_NOTHING = object()


def exact_match(prediction: str, truth: str) -> float:
    """Return 1.0 where the texts are equal but for outer blanks, or equal as JSON; else 0.0."""
    prediction, truth = prediction.strip(), truth.strip()
    if prediction == truth:
        return 1.0
    left, right = _parse(prediction), _parse(truth)
    if left is _NOTHING or right is _NOTHING:
        return 0.0
    return float(canonical_json(left) == canonical_json(right))


def field_f1(prediction: str, truth: str) -> float | None:
    """Return the F1 of path = value pairs of two JSON objects; None where the truth is none.

    A prediction that is not a JSON object scores 0. List items are fields by their place.
    """
    wanted = _parse(truth)
    if not isinstance(wanted, dict):
        return None
    given = _parse(prediction)
    if not isinstance(given, dict):
        return 0.0
    left, right = Counter(_fields(given)), Counter(_fields(wanted))
    shared = (left & right).total()
    size = left.total() + right.total()
    return 2 * shared / size if size else 1.0


def _fields(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bytes]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _fields(item, (*path, "." + key))
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            yield from _fields(item, (*path, f"[{place}]"))
    elif path:
        yield path, canonical_json(value)


def _parse(text: str) -> Any:
    """Return a JSON value, or `_NOTHING`; NaN and Infinity are no JSON, nor are bare surrogates."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        canonical_json(value)
    except (ValueError, RecursionError):
        return _NOTHING
    return value


def _refuse(name: str) -> None:
    raise ValueError(name)
