"""A spec whose settings list several values becomes one run for every combination of them."""

import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

from app.dashboard import knobs

MOST_RUNS = 24
"""So many may start together: a slip of the hand asks for no thousand."""
_SYMBOLS = {
    "temperature": "T",
    "alpha": "α",
    "beta": "β",
    "divergence": "",
    "profile": "",
    "teacher_from": "teacher",
}


class TooMany(ValueError):
    """More combinations than may start together."""


def fan_out(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the specs (as nested values) that a spec with lists of values stands for.

    Every setting of the run form but those of the evaluation, which compared runs must share, may
    list its values. Those that vary are told in each run's name. Raises TooMany.
    """
    varied = [
        (knob, list(dict.fromkeys(values)))
        for knob in knobs.KNOBS
        if knob.may_vary and (values := _listed(tree, knob.path))
    ]
    count = math.prod(len(values) for _, values in varied)
    if count > MOST_RUNS:
        raise TooMany(
            f"These values stand for {count} runs, and at most {MOST_RUNS} start together: "
            "list fewer."
        )
    found = []
    for chosen in product(*(values for _, values in varied)):
        made = deepcopy(dict(tree))
        for (knob, _), value in zip(varied, chosen, strict=True):
            _put(made, knob.path, value)
        words = [
            _words(knob, value)
            for (knob, values), value in zip(varied, chosen, strict=True)
            if len(values) > 1
        ]
        name = made.get("name")
        if words and isinstance(name, str) and name.strip():  # a missing name stays an error
            made["name"] = ", ".join((name.strip(), *words))
        found.append(made)
    return found


def _words(knob: knobs.Knob, value: Any) -> str:
    shown = re.split(r"[:,]\s", knob.shown(value))[0]  # what explains an option is for the form
    return f"{_SYMBOLS.get(knob.name, knob.label.lower())} {shown}".strip()


def _listed(tree: Any, path: Sequence[str]) -> list[Any]:
    """Return the values that a setting lists; none where it is one value, or not there."""
    for part in path:
        if isinstance(tree, list):
            tree = tree[int(part)] if int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    plain = isinstance(tree, list) and not any(isinstance(v, list | dict) for v in tree)
    return tree if plain else []


def _put(tree: Any, path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree[part]
    if isinstance(tree, list):
        tree[int(path[-1])] = value
    else:
        tree[path[-1]] = value
