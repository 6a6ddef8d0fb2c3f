"""The comparison as tables of plain values: terminal, CSV and Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.metrics.comparison import Cell, Comparison, Difference
from app.metrics.formatting import (
    DASH,
    delta_interval,
    level_interval,
    metric_delta,
    metric_value,
    number,
)
from app.metrics.registry import METRICS

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    headers: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()


def measured(comparison: Comparison) -> list[str]:
    """Return the metrics that some row has, in the registry's order."""
    return [m for m in METRICS if any(m in row.sums for row in comparison.rows)]


def comparison_table(comparison: Comparison) -> Table:
    """One row an evaluation: value, interval and n in each cell, verdict to the teacher last."""
    names = measured(comparison)
    headers = ["Name", "Role"]
    headers += [f"{METRICS[m].label} {METRICS[m].unit}".strip() for m in names]
    teacher = comparison.teacher.name if comparison.teacher else ""
    rows = []
    for row in comparison.rows:
        cells = row.cells()
        line = [row.name, row.role.replace("_", " ")]
        line += [_cell_text(m, cells.get(m)) for m in names]
        for other in (teacher, comparison.baseline or ""):
            d = comparison.difference(row.name, other, comparison.deciding_metric)
            line.append(_difference_text(d))
        rows.append(tuple(line))
    headers += ["Against the teacher", f"Against {comparison.baseline or 'a baseline'}"]
    return Table(tuple(headers), tuple(rows), (comparison.sentence, *comparison.warnings))


def _cell_text(metric: str, cell: Cell | None) -> str:
    if cell is None or cell.value is None:
        return DASH
    text = metric_value(metric, cell.value)
    if cell.low is not None:
        text += f" ({level_interval(metric, cell.low, cell.high)})"
    text += f" n {number(cell.n)}"
    return text + (f", {number(cell.excluded)} excluded" if cell.excluded else "")


def _difference_text(d: Difference | None) -> str:
    if d is None or d.value is None:
        return DASH
    words = f"{d.verdict} ({d.reason.short})" if d.reason else d.verdict
    return f"{words} {metric_delta(d.metric, d.value)} {delta_interval(d.metric, d.low, d.high)}"


def figures_table(
    comparison: Comparison,
    names: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Value]] | None = None,
) -> Table:
    """One row an evaluation, every figure in a column of its own, in the units shown.

    `names`: rows and their order (all by default). `settings`: column → row name → value.
    """
    metrics, settings = measured(comparison), settings or {}
    by_name = {row.name: row for row in comparison.rows}
    teacher = comparison.teacher.name if comparison.teacher else None
    headers = ["name", "role", *settings]
    for m in metrics:
        headers += _cell_headers(m)
        headers += _delta_headers(m, comparison.baseline)
    headers += _delta_headers(comparison.deciding_metric, teacher)
    rows = []
    for name in names if names is not None else by_name:
        row = by_name[name]
        cells = row.cells()
        line: list[Value] = [
            row.name,
            row.role,
            *(column.get(name) for column in settings.values()),
        ]
        for m in metrics:
            line += _cell_figures(m, cells.get(m))
            line += _delta_figures(comparison, name, m, comparison.baseline)
        line += _delta_figures(comparison, name, comparison.deciding_metric, teacher)
        rows.append(tuple(line))
    return Table(tuple(headers), tuple(rows), comparison.warnings)


def _cell_headers(metric: str) -> list[str]:
    m = METRICS[metric]
    unit = f" ({m.unit})" if m.unit else ""
    return [f"{m.label}{unit}", *(f"{m.label} {part}" for part in ("low", "high", "n", "excluded"))]


def _cell_figures(metric: str, cell: Cell | None) -> list[Value]:
    if cell is None:
        return [None] * 5
    figures = [_shown(metric, v) for v in (cell.value, cell.low, cell.high)]
    return [*figures, cell.n, cell.excluded]


def _delta_headers(metric: str, other: str | None) -> list[str]:
    if other is None:
        return []
    head = f"{METRICS[metric].label} minus {other}"
    return [head, *(f"{head} {part}" for part in ("low", "high", "verdict", "reason"))]


def _delta_figures(
    comparison: Comparison, name: str, metric: str, other: str | None
) -> list[Value]:
    if other is None:
        return []
    d = comparison.difference(name, other, metric)
    if d is None:
        return [None] * 5
    figures = [_shown(metric, v) for v in (d.value, d.low, d.high)]
    return [*figures, d.verdict, d.reason.text if d.reason else None]


def _shown(metric: str, value: float | None) -> float | None:
    return None if value is None else float(f"{value * METRICS[metric].scale:.10g}")


def to_csv(table: Table) -> str:
    """Write CSV: numbers as numbers; text that a spreadsheet would run gets an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_safe(head) for head in table.headers])
    writer.writerows([_safe(cell) for cell in row] for row in table.rows)
    return out.getvalue()


def _safe(cell: Value) -> Value:
    runs = isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"}
    return f"'{cell}" if runs else cell


def to_markdown(table: Table) -> str:
    """Write a Markdown table; pipes are escaped."""
    lines = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "".join(
        f"| {' | '.join(_plain(c).replace('|', chr(92) + '|') for c in row)} |\n" for row in lines
    )


def _plain(cell: Value) -> str:
    return DASH if cell is None else str(cell)
