"""A comparison as the API gives it, as a table of a terminal: rows, metrics, verdicts."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from app.cli.output import console
from app.metrics.formatting import (
    DASH,
    delta_interval,
    level_interval,
    metric_delta,
    metric_value,
    number,
)
from app.metrics.registry import METRICS


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print the rows with value, interval and n a cell, then the verdicts in words."""
    _print_table(found)
    if found.get("recipes"):
        console.print("\nOver seeds", style="bold")
        _print_table(found["recipes"])
    if found.get("sentence"):
        console.print(found["sentence"], markup=False, highlight=False, style="bold")
    for warning in found.get("warnings") or ():
        console.print(warning, markup=False, highlight=False, style="yellow")


def _print_table(found: Mapping[str, Any]) -> None:
    names = [m for m in METRICS if any(m in row["cells"] for row in found["rows"])]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Row")
    for name in names:
        metric = METRICS[name]
        mark = " ●" if name == found["deciding_metric"] else ""
        table.add_column(f"{metric.label} {metric.unit}".strip() + mark, justify="right")
    for row in found["rows"]:
        title = f"{escape(row['name'])}\n[dim]{row['role'].replace('_', ' ')}[/dim]"
        cells = (_cell(name, row["cells"].get(name)) for name in names)
        table.add_row(title, *cells, end_section=True)
    console.print(table)
    console.print(f"● decides. Each cell: value, 95 % interval, n. {_baseline(found)}")
    for difference in found["differences"]:
        if difference["metric"] == found["deciding_metric"]:
            console.print(f"  {_words(difference)}", markup=False, highlight=False)


def _cell(metric: str, cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["value"] is None:
        return DASH
    interval = DASH if cell["low"] is None else level_interval(metric, cell["low"], cell["high"])
    n = f"n {number(cell['n'])}"
    text = f"{metric_value(metric, cell['value'])}\n[dim]{interval}\n{n}[/dim]"
    return text.replace(" ", "\u00a0")


def _baseline(found: Mapping[str, Any]) -> str:
    return f"Baseline: {found['baseline']}." if found.get("baseline") else ""


def _words(difference: Mapping[str, Any]) -> str:
    metric = difference["metric"]
    figures = DASH
    if difference["low"] is not None:
        figures = f"{metric_delta(metric, difference['value'])} " + delta_interval(
            metric, difference["low"], difference["high"]
        )
    reason = f" ({difference['reason']})" if difference.get("reason") else ""
    return (
        f"{difference['a']} − {difference['b']}: {figures}, n {number(difference['n'])}: "
        f"{difference['verdict']}{reason}"
    )
