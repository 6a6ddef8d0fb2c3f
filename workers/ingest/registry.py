"""The formats there are: every module of `workers.ingest.formats` that has a FORMAT."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import workers.ingest.formats
from workers.ingest.errors import UnknownFormat
from workers.ingest.values import Format

MIN_SCORE = 0.2  # a format must explain a fifth of the sample


@cache
def formats() -> dict[str, Format]:
    """Return every format by its name, in the order of names."""
    package = workers.ingest.formats
    found: list[Format] = []
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        form = getattr(importlib.import_module(module.name), "FORMAT", None)
        if form is not None:
            found.append(form)
    return {form.name: form for form in sorted(found, key=lambda form: form.name)}


def format_named(name: str) -> Format:
    """Return a format; raise UnknownFormat naming those that exist."""
    known = formats()
    if name not in known:
        raise UnknownFormat(f"There is no format {name}. Formats: {', '.join(known)}.")
    return known[name]


def detect(sample: Sequence[Mapping[str, Any]], name: str) -> tuple[Format, str]:
    """Return the format that explains most of the sample, and why; raise UnknownFormat."""
    sniffs = [(form.sniff(sample), form) for form in formats().values()]
    sniff, best = max(sniffs, key=lambda pair: pair[0].score)
    if sniff.score < MIN_SCORE:
        keys = dict.fromkeys(str(key) for record in sample for key in record)
        seen = ", ".join(list(keys)[:12])
        what = f"its first records have the fields {seen}" if seen else "it holds no JSON or CSV"
        raise UnknownFormat(
            f"{name} is in no known format: {what}. Known formats: {', '.join(formats())}."
        )
    return best, sniff.reason
