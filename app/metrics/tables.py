"""The comparison as plain strings: terminal, CSV and Markdown."""

import csv
import io
import re
from dataclasses import dataclass

from app.metrics.comparison import Comparison
from app.metrics.formatting import (
    DASH,
    delta_interval,
    level_interval,
    metric_delta,
    metric_value,
    number,
)
from app.metrics.registry import METRICS

_NUMERIC = re.compile(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Table:
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def comparison_table(comparison: Comparison) -> Table:
    """One row an evaluation: value, interval and n in each cell, verdict to the teacher last."""
    names = [m for m in METRICS if any(m in row.sums for row in comparison.rows)]
    headers = ["Name", "Role"]
    headers += [f"{METRICS[m].label} {METRICS[m].unit}".strip() for m in names]
    teacher = next((r.name for r in comparison.rows if r.role == "teacher"), "")
    rows = []
    for row in comparison.rows:
        cells = row.cells()
        line = [row.name, row.role.replace("_", " ")]
        for m in names:
            c = cells.get(m)
            if c is None:
                line.append(DASH)
                continue
            text = (
                f"{metric_value(m, c.value)} ({level_interval(m, c.low, c.high)}) n {number(c.n)}"
            )
            line.append(text + (f", {number(c.excluded)} excluded" if c.excluded else ""))
        for other in (teacher, comparison.baseline or ""):
            d = comparison.difference(row.name, other, comparison.deciding_metric)
            line.append(
                DASH
                if d is None
                else f"{d.verdict} {metric_delta(d.metric, d.value)} "
                f"{delta_interval(d.metric, d.low, d.high)}"
            )
        rows.append(tuple(line))
    headers += ["Against the teacher", f"Against {comparison.baseline or 'a baseline'}"]
    return Table(tuple(headers), tuple(rows), (comparison.sentence, *comparison.warnings))


def figures_table(comparison: Comparison) -> Table:
    """One row per evaluation and metric in stored units, every figure in an own column."""
    headers = ("name", "role", "metric", "value", "low", "high", "n", "excluded")
    rows = [
        (
            *(row.name, row.role, name),
            *(_figure(v) for v in (c.value, c.low, c.high)),
            *(str(c.n), str(c.excluded)),
        )
        for row in comparison.rows
        for name, c in row.cells().items()
    ]
    return Table(headers, tuple(rows), comparison.warnings)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def to_csv(table: Table) -> str:
    """Write CSV; text that a spreadsheet would run as a formula gets a leading apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (table.headers, *table.rows):
        writer.writerow([_safe(cell) for cell in row])
    return out.getvalue()


def _safe(cell: str) -> str:
    plain = cell.replace("\u2212", "-")
    if _NUMERIC.fullmatch(plain):
        return plain.replace(",", "")
    return f"'{cell}" if cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell


def to_markdown(table: Table) -> str:
    """Write a Markdown table; pipes are escaped."""
    lines = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |\n" for row in lines
    )
