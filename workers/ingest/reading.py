"""Bytes to records: JSON lines, one JSON array, or CSV; a bad record is caught alone."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from app.specs.conversation import Reject
from workers.ingest.csvrows import csv_records
from workers.ingest.elements import Elements
from workers.ingest.jsontext import excerpt, parse_object
from workers.ingest.unpacking import Limits, Source
from workers.ingest.values import Record, RejectKind, Unusable

Outcome = Record | Reject
_ARRAY = re.compile(rb"\s*\[\s*(?:[{\]]|\Z)")
_SAMPLE_LINES = 50
_HEADER_CELL = 80


def reject(line: int, verdict: Unusable, raw: bytes) -> Reject:
    """Return the reject of a record, with an excerpt for people."""
    return Reject(
        line=line,
        reason=verdict.reason,
        kind=verdict.kind,
        detail=verdict.detail,
        excerpt=excerpt(raw),
    )


def _bad(line: int, kind: RejectKind, reason: str, detail: str, raw: bytes = b"") -> Reject:
    return reject(line, Unusable(kind, reason, detail), raw)


def physical_lines(source: Source, limit: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each line without its LF; of one longer than `limit` its first bytes, and True."""
    rest, cut = b"", None
    while data := source.read():
        pieces = (rest + data).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            if cut is not None:
                piece, cut, long = cut, None, True  # noqa: PLW2901 - the end of a line too long
            else:
                long = len(piece) > limit
            yield piece, long
        if len(rest) > limit:
            cut, rest = cut or rest[:1024], b""
    if cut is not None:
        yield cut, True
    elif rest:
        yield rest, len(rest) > limit


def _parse(raw: bytes, long: bool, line: int, place: str) -> Outcome:  # noqa: FBT001 - a pair
    if long:
        return _bad(line, "quarantined", "too_long", "longer than a record may be", raw)
    if not raw.strip():
        return _bad(line, "skipped", "blank_line", "")
    try:
        return Record(line, parse_object(raw), raw, place)
    except Unusable as verdict:
        return reject(line, verdict, raw)


def _json_lines(source: Source, name: str, limits: Limits) -> Iterator[Outcome]:
    for line, (raw, long) in enumerate(physical_lines(source, limits.record), 1):
        yield _parse(raw, long, line, f"{name}:{line}")


def _json_elements(source: Source, name: str, limits: Limits, *, array: bool) -> Iterator[Outcome]:
    for line, (raw, long) in enumerate(Elements(source, limits.record, array=array), 1):
        yield _parse(raw, long, line, f"{name}[{line}]")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _delimiter(head: bytes) -> str | None:
    """Return the delimiter of a header line of short, plain column names; None when it is none."""
    first = head.lstrip(b"\r\n").split(b"\n", 1)[0]
    best = max((b",", b";", b"\t"), key=first.count)
    cells = first.split(best)
    if len(cells) == 1 or first[:1] in b"{[" or any(len(cell) > _HEADER_CELL for cell in cells):
        return None
    return best.decode()


def container(head: bytes) -> str:
    """Name what the first bytes are: `array`, `values`, `lines`, or a CSV's delimiter."""
    if _ARRAY.match(head):
        return "array"
    complete = head.split(b"\n")[:_SAMPLE_LINES]
    lines = [line.strip() for line in complete if line.strip()]
    objects = [line for line in lines if line.startswith(b"{")]
    if objects and lines[0] == objects[0] and not any(map(_is_object, objects)):
        return "values"  # pretty-printed or glued objects
    if 2 * len(objects) < len(lines) and (delimiter := _delimiter(head)) is not None:
        return delimiter
    return "lines"


def read_records(
    path: Path,
    name: str,
    *,
    limits: Limits | None = None,
    on_position: Callable[[int], None] | None = None,
) -> Iterator[Outcome]:
    """Yield every record of a file in order, or the reject it became.

    Memory holds one record at a time (`limits.record`). Raises DamagedArchive, DecompressionBomb.
    """
    bounds = limits or Limits()
    with Source(path, name, bounds) as source:
        kind = container(source.head)
        if kind == "lines":
            outcomes = _json_lines(source, name, bounds)
        elif kind in ("array", "values"):
            outcomes = _json_elements(source, name, bounds, array=kind == "array")
        else:
            lines = physical_lines(source, bounds.record)
            outcomes = csv_records(lines, name, delimiter=kind, limit=bounds.record)
        line = 0
        for outcome in outcomes:
            line = outcome.line
            if on_position is not None:
                on_position(source.position())
            yield outcome
        if source.damage is not None:
            yield _bad(line + 1, "quarantined", "archive_damaged", source.damage)
