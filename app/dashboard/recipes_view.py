"""The compare page over seeds: what is true of a recipe, where it was trained often enough."""

from dataclasses import dataclass

from app.metrics.comparison import UNTRAINED, Cell, Comparison, Difference
from app.metrics.tables import measured


@dataclass(frozen=True, slots=True)
class RecipeLine:
    """A recipe, or what no seed changes; `cells` are (metric, value, difference to baseline)."""

    name: str
    role: str
    look: str
    verdict: Difference | None
    cells: tuple[tuple[str, Cell | None, Difference | None], ...]


@dataclass(frozen=True, slots=True)
class RecipesView:
    metrics: list[str]
    lines: list[RecipeLine]
    comparison: Comparison


def recipes_view(whole: Comparison) -> RecipesView | None:
    """Lay out the comparison over seeds; None where no recipe has seeds enough."""
    found = whole.recipes
    if found is None:
        return None
    decides = found.deciding_metric
    over_seeds = [row for row in found.rows if row.role not in UNTRAINED]
    names = {metric for row in over_seeds for metric in row.sums}
    metrics = sorted((m for m in measured(found) if m in names), key=lambda m: m != decides)
    teacher = found.teacher.name if found.teacher else None
    lines = []
    for row in found.rows:
        cells = row.cells()
        lines.append(
            RecipeLine(
                row.name,
                row.role.replace("_", " "),
                {found.baseline: "base", teacher: "ref"}.get(row.name, "plain"),
                found.difference(row.name, teacher, decides) if teacher else None,
                tuple(
                    (m, cells.get(m), found.difference(row.name, found.baseline or "", m))
                    for m in metrics
                ),
            )
        )
    place = {"base": 0, "ref": 1}
    lines.sort(key=lambda line: place.get(line.look, 2))
    return RecipesView(metrics, lines, found)
