"""CSV to records: quoted cells over many lines, wrong column counts, a quote that never closes."""

import csv
from collections import deque
from collections.abc import Iterator

from app.specs.conversation import Reject
from workers.ingest.jsontext import clean, decode, excerpt
from workers.ingest.values import Record


class _Feed:
    """Hands lines to the csv module and remembers a row's, so that a broken row can be undone."""

    def __init__(self, lines: Iterator[tuple[bytes, bool]]) -> None:
        self._lines = enumerate(lines, 1)
        self._again: deque[tuple[int, bytes, bool]] = deque()
        self.taken: list[tuple[int, bytes, bool]] = []
        self.broken = False
        """The csv module asked for a line in the middle of a row and there was none to give."""

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        if self._again:
            item = self._again.popleft()
        else:
            found = next(self._lines, None)
            if found is None:
                self.broken = bool(self.taken)
                raise StopIteration
            item = (found[0], *found[1])
        self.taken.append(item)
        if item[2]:  # a line too long to hold ends the row
            self.broken = True
            raise StopIteration
        return decode(item[1].removesuffix(b"\r")) + "\n"

    def start_row(self) -> None:
        self.taken = []
        self.broken = False

    def undo_all_but_first(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    @property
    def line(self) -> int:
        return self.taken[0][0] if self.taken else 0

    @property
    def raw(self) -> bytes:
        return b"\n".join(raw for _, raw, _ in self.taken[:8])


def _next_row(feed: _Feed, delimiter: str) -> list[str] | None:
    """Return the next row's cells; None when its quoting is broken; StopIteration at the end."""
    feed.start_row()
    try:
        cells = next(csv.reader(feed, delimiter=delimiter), None)
    except csv.Error:
        return None
    if not feed.taken:
        raise StopIteration
    return None if feed.broken else cells


def _reject(feed: _Feed, reason: str, detail: str = "") -> Reject:
    kind = "skipped" if reason == "blank_line" else "quarantined"
    return Reject.model_validate(
        {
            "line": feed.line,
            "reason": reason,
            "kind": kind,
            "detail": detail,
            "excerpt": excerpt(feed.raw),
        }
    )


def _unique(header: list[str]) -> list[str]:
    """Column names, stripped; a repeated or empty one gets its position appended."""
    names: list[str] = []
    for at, cell in enumerate(header, 1):
        name = clean(cell).strip() or "column"
        names.append(name if name not in names and name != "column" else f"{name}_{at}")
    return names


def csv_records(
    lines: Iterator[tuple[bytes, bool]], name: str, *, delimiter: str, limit: int
) -> Iterator[Record | Reject]:
    """Yield a record a row, keyed by the header, with the line the row begins on.

    A quote that never closes costs its first line only: reading goes on with the next.
    """
    csv.field_size_limit(limit)
    feed = _Feed(lines)
    header: list[str] | None = None
    while True:
        try:
            cells = _next_row(feed, delimiter)
        except StopIteration:
            return
        if cells is None:
            feed.undo_all_but_first()
            long = feed.taken[0][2]
            yield _reject(feed, "too_long" if long else "csv_quote_unclosed")
        elif not any(cell.strip() for cell in cells):
            if header is not None:
                yield _reject(feed, "blank_line")
        elif header is None:
            header = _unique(cells)
        elif len(cells) != len(header):
            counts = f"{len(cells)} cells, {len(header)} columns"
            yield _reject(feed, "csv_wrong_columns", counts)
        else:
            row = {key: clean(cell) for key, cell in zip(header, cells, strict=True)}
            yield Record(feed.line, row, feed.raw, f"{name}:{feed.line}")
