"""Scores of one answer, and of a set of confidences: pure functions, numpy only."""

import json
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.specs.fingerprint import canonical_json


def parse_json(text: str) -> tuple[bool, Any]:
    """Return (whether the text is one JSON value, that value). NaN and Infinity are not JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        canonical_json(value)
    except (ValueError, RecursionError):
        return False, None
    return True, value


def _refuse(name: str) -> Any:
    raise ValueError(name)


def exact_match(prediction: str, truth: str) -> bool:
    """Whether two answers say the same: equal after strip, or equal as JSON (key order aside)."""
    if prediction.strip() == truth.strip():
        return True
    ours, left = parse_json(prediction)
    theirs, right = parse_json(truth)
    return ours and theirs and canonical_json(left) == canonical_json(right)


def field_f1(prediction: str, truth: str) -> float | None:
    """Return 2 · matches / (fields predicted + fields true), over path = value pairs.

    None where the truth is no JSON object; 0 where the truth is one and the prediction is not.
    """
    is_json, wanted = parse_json(truth)
    if not is_json or not isinstance(wanted, dict):
        return None
    _, found = parse_json(prediction)
    if not isinstance(found, dict):
        return 0.0
    left, right = Counter(_fields(found, "")), Counter(_fields(wanted, ""))
    if not left and not right:
        return 1.0
    return 2 * (left & right).total() / (left.total() + right.total())


def _fields(value: Any, path: str) -> list[tuple[str, bytes]]:
    """Return (path, canonical value) of every leaf; an empty object or list is a leaf."""
    if isinstance(value, dict) and value:
        return [f for key, v in value.items() for f in _fields(v, f"{path}.{json.dumps(key)}")]
    if isinstance(value, list) and value:
        return [f for i, v in enumerate(value) for f in _fields(v, f"{path}[{i}]")]
    return [(path, canonical_json(value))] if path else []


def ece_contributions(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int
) -> NDArray[np.float64]:
    """Return [n] contributions whose mean is the expected calibration error.

    Bins hold equal mass: the answers sorted by confidence (ties in the given order), cut into
    `bins` runs of as equal a length as possible. With S_b = Σ_{i in b} (conf_i − correct_i),
    ECE = Σ_b |S_b| / n = Σ_i sign(S_b(i)) (conf_i − correct_i) / n. Bins and signs are fixed from
    the whole sample, so a cluster's contribution is a plain sum and intervals are those of a mean.
    """
    gap = confidence - correct.astype(np.float64)
    out = np.zeros_like(gap)
    order = np.argsort(confidence, kind="stable")
    for members in np.array_split(order, max(1, min(bins, len(order)))):
        out[members] = np.sign(gap[members].sum()) * gap[members]
    return out
