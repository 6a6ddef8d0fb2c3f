"""The formats an import knows: each module of this package that has NAME, sniff and parse."""

import importlib
import pkgutil
from typing import Any, cast

from workers.ingest.errors import UnknownFormat
from workers.ingest.values import Format


def formats() -> dict[str, Format]:
    """Find every format by name."""
    found: dict[str, Format] = {}
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        module = importlib.import_module(info.name)
        if hasattr(module, "NAME"):
            found[module.NAME] = cast("Format", module)
    return found


def detect(sample: list[dict[str, Any]]) -> tuple[Format, str]:
    """Give the best format for `sample` and why; raise UnknownFormat if none fits."""
    known = formats()
    scored = [(*form.sniff(sample), name) for name, form in sorted(known.items())]
    score, reason, name = max(scored, default=(0.0, "", ""))
    if score < 0.2 or not sample:  # noqa: PLR2004 - a fifth of the sample must fit
        keys = sorted({key for record in sample for key in record})[:12]
        raise UnknownFormat(
            f"No known format: the first records have the fields {', '.join(keys) or 'none'}. "
            f"Known formats: {', '.join(sorted(known))}."
        )
    return known[name], reason


def share(sample: list[dict[str, Any]], fits: list[bool]) -> float:
    """The part of the sample that fits."""
    return sum(fits) / len(sample) if sample else 0.0
