"""The compare page as values: rows in their order, columns that differ, links to other states."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from app.dashboard.compare_charts import POINTS, QUANTITIES, ChartView, Curve, charts_of
from app.dashboard.compare_settings import COLUMNS, Known, Setting, settings_of
from app.dashboard.compare_state import CompareState, Order
from app.dashboard.recipes_view import RecipesView, recipes_view
from app.evaluations import queries
from app.evaluations.comparing import Compared, ComparedRow, compare_rows
from app.events.queries import thin_series
from app.metrics.comparison import Cell, Comparison, Difference, reasons_of
from app.metrics.forest import ForestBar, ForestScale, bar, scale_for
from app.metrics.formatting import metric_value, signed
from app.metrics.registry import METRICS
from app.metrics.tables import Table, Value, figures_table, measured
from app.metrics.verdicts import Reason, tolerance_words
from app.projects.models import Project
from app.runs.models import Run
from app.runs.queries import RunPhase, phases_of
from app.specs.training import RunSpec

AGAINST_TEACHER = "verdict"
NAME = "name"
FURTHEST = 5
"""Times the tolerance that the forest bars reach."""
EXAMPLE_METRICS = frozenset({"exact_match", "field_f1", "kl", "agreement", "ece"})
"""Metrics that single examples have, so that a cell can lead to them."""


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    label: str
    sub: str
    numeric: bool
    link: str
    aria_sort: str
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class ShownCell:
    """A cell: figures of a metric, or the text of a setting; both None where there is nothing."""

    cell: Cell | None = None
    delta: Difference | None = None
    text: str | None = None
    href: str | None = None


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row; `look` is base, ref or plain; `colour` the run's, None for anchors."""

    key: str
    name: str
    number: int | None
    role: str
    look: str
    state: str
    colour: int | None
    href: str | None
    verdict: Difference | None
    bar: ForestBar | None
    cells: tuple[ShownCell, ...]
    make_baseline: str | None
    remove: str | None
    measured: bool
    left_out: bool
    """Evaluated, but on another set than the others."""


@dataclass(frozen=True, slots=True)
class ComparePage:
    """What templates/dashboard/compare.html shows."""

    comparison: Comparison
    state: CompareState
    set_name: str | None
    rows: tuple[ShownRow, ...]
    columns: tuple[Column, ...]
    hidden: int
    scale: ForestScale | None
    summary: tuple[str, ...]
    charts: list[ChartView]
    charts_note: str | None
    addable: list[tuple[str, str]]
    groups: list[str]
    recipes: RecipesView | None
    csv: Table = field(repr=False)

    @property
    def runs(self) -> int:
        return sum(row.number is not None for row in self.rows)

    @property
    def by_name(self) -> tuple[str, str]:
        """Return the address that sorts by name, and how it is sorted now."""
        return self.state.sorted_by(NAME, "asc"), self.state.aria_sort(NAME)

    @property
    def by_verdict(self) -> tuple[str, str]:
        return self.state.sorted_by(AGAINST_TEACHER, "desc"), self.state.aria_sort(AGAINST_TEACHER)

    @property
    def cut(self) -> str | None:
        """Return where bars are cut, when an interval goes further."""
        if self.scale is None:
            return None
        ends = [
            end * METRICS[row.verdict.metric].scale
            for row in self.rows
            if row.bar and row.verdict
            for end in (row.verdict.low, row.verdict.high)
            if end is not None
        ]
        digits = METRICS[self.comparison.deciding_metric].digits
        if min(ends, default=0) < self.scale.low:
            return signed(self.scale.low, digits)
        return signed(self.scale.high, digits) if max(ends, default=0) > self.scale.high else None

    @property
    def tolerance(self) -> str:
        return tolerance_words(self.comparison.deciding_metric, self.comparison.tolerance)

    @property
    def n(self) -> int | None:
        cells = (row.sums.get(self.comparison.deciding_metric) for row in self.comparison.rows)
        return max((sums.n for sums in cells if sums is not None), default=None)

    @property
    def comparisons(self) -> int:
        """How many differences on what decides share one correction (Holm)."""
        decides = self.comparison.deciding_metric
        to_base = [d for d in self.comparison.differences if d.b == self.comparison.baseline]
        return sum(d.metric == decides for d in to_base)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return reasons_of(item.delta for row in self.rows for item in row.cells)

    @property
    def tone(self) -> str:
        """Return the note's kind: of the first sentence's verdict."""
        first = self.comparison.sentences[0]
        verdict = next((d.verdict for d in self.comparison.differences if d.sentence == first), "")
        return {"within": "good", "better": "good", "outside": "bad", "worse": "bad"}.get(
            verdict, ""
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """What all parts of the page are made of."""

    project: Project
    state: CompareState
    compared: Compared
    known: Known
    settings: Mapping[str, Mapping[str, Setting]]
    """Row name → column key → setting."""
    cells: Mapping[str, Mapping[str, Cell]]

    @property
    def comparison(self) -> Comparison:
        return self.compared.comparison

    @property
    def runs(self) -> list[Run]:
        return [row.run for row in self.compared.rows if row.run is not None]


def compare_page(session: Session, project: Project, state: CompareState) -> ComparePage:
    """Read what the state asks for and lay it out. The number of queries is fixed."""
    compared = compare_rows(session, project, state.choice, unfinished=True)
    work = _read(session, project, state, compared)
    metrics = _metrics(work)
    keys = [*metrics, *(c.key for c in COLUMNS)]
    shown = [key for key in keys if not state.diff_only or _differs(work, key)]
    rows = _ordered(work)
    found = {d.a: d for d in _against_teacher(work)}
    scale = _scale(work, list(found.values()))
    laid = tuple(_row(work, row, shown, (found.get(row.name), scale)) for row in rows)
    charts, note = charts_of(_curves(session, work))
    evaluated = queries.evaluated_runs(session, project.id)
    here = {row.run.id for row in compared.rows if row.run is not None}
    return ComparePage(
        comparison=work.comparison,
        state=state,
        set_name=compared.set_name,
        rows=laid,
        columns=tuple(_columns(work, shown)),
        hidden=len(keys) - len([key for key in keys if _differs(work, key)]),
        scale=scale,
        summary=_summary(work, found),
        charts=charts,
        charts_note=note,
        addable=[(str(r.number), f"#{r.number} {r.name}") for r in evaluated if r.id not in here],
        groups=list(dict.fromkeys(r.group for r in evaluated if r.group)),
        recipes=recipes_view(work.comparison),
        csv=_csv(work, rows, shown),
    )


def _read(session: Session, project: Project, state: CompareState, compared: Compared) -> _Work:
    runs = [row.run for row in compared.rows if row.run is not None]
    ids = {i for run in runs for i in (run.teacher_id, run.student_id)}
    versions = {run.dataset_version_id for run in runs if run.dataset_version_id is not None}
    known = Known(queries.checkpoints_of(session, ids), queries.set_names(session, versions))
    settings = {
        row.name: settings_of(row.run, known) for row in compared.rows if row.run is not None
    }
    cells = {row.name: row.cells() for row in compared.comparison.rows}
    return _Work(project, state, compared, known, settings, cells)


def _metrics(work: _Work) -> list[str]:
    """Return the metrics measured, the deciding one first."""
    found = measured(work.comparison)
    decides = work.comparison.deciding_metric
    return sorted(found, key=lambda m: m != decides)


def _differs(work: _Work, key: str) -> bool:
    """Whether a column tells rows apart: computed over the rows shown now."""
    if key == work.comparison.deciding_metric:
        return True
    if key in METRICS:
        found = [cells[key] for cells in work.cells.values() if key in cells]
        texts = {metric_value(key, c.value) for c in found if c.value is not None}
        return len(texts) > 1 or (bool(texts) and len(work.cells) == 1)
    of_runs = [settings.get(key) for settings in work.settings.values()]
    return len({s.text if s else None for s in of_runs}) > 1


def _against_teacher(work: _Work) -> list[Difference]:
    teacher = work.comparison.teacher
    if teacher is None:
        return []
    found = work.comparison.differences
    return [d for d in found if d.b == teacher.name and d.metric == work.comparison.deciding_metric]


def _scale(work: _Work, found: Sequence[Difference]) -> ForestScale | None:
    unit = METRICS[work.comparison.deciding_metric].scale
    tolerance = work.comparison.tolerance
    # One row far away (an undistilled student) must not press the others into a dot.
    most = FURTHEST * tolerance if tolerance else math.inf
    intervals = [
        (max(d.low * unit, -most), min(d.high * unit, most))
        for d in found
        if d.low is not None and d.high is not None
    ]
    return scale_for(intervals, tolerance) if intervals else None


def _bar(work: _Work, d: Difference | None, scale: ForestScale | None) -> ForestBar | None:
    if d is None or scale is None or d.value is None or d.low is None or d.high is None:
        return None
    metric = METRICS[d.metric]
    limit = work.comparison.tolerance * (1 if metric.direction == "lower" else -1)
    unit = metric.scale
    return bar(scale, d.value * unit, (d.low * unit, d.high * unit), limit)


def _ordered(work: _Work) -> list[ComparedRow]:
    """Return the baseline first, the teacher second, then by the sorted column; unmeasured last."""
    comparison = work.comparison
    teacher = comparison.teacher.name if comparison.teacher else None
    decides = comparison.deciding_metric
    key = work.state.sort or decides
    down = work.state.order == "desc" if work.state.sort else _falls(decides) == "desc"

    def place(row: ComparedRow) -> int:
        if row.name == comparison.baseline:
            return 0
        return 1 if row.name == teacher else 2

    def value(row: ComparedRow) -> Any:
        return _sort_value(work, row, key)

    rows = list(work.compared.rows)
    with_value = [row for row in rows if value(row) is not None]
    with_value.sort(key=lambda row: (isinstance(value(row), str), value(row)), reverse=down)
    rest = [row for row in rows if value(row) is None]
    return sorted([*with_value, *rest], key=place)


def _falls(metric: str) -> Order:
    """Return the order that puts the best first."""
    return "asc" if METRICS[metric].direction == "lower" else "desc"


def _sort_value(work: _Work, row: ComparedRow, key: str) -> float | str | None:
    if key == NAME:
        return row.name.casefold()
    if key == AGAINST_TEACHER:
        return next((d.value for d in _against_teacher(work) if d.a == row.name), None)
    if key in METRICS:
        cell = work.cells.get(row.name, {}).get(key)
        return cell.value if cell else None
    setting = work.settings.get(row.name, {}).get(key)
    if setting is None:
        return None
    return setting.value.casefold() if isinstance(setting.value, str) else setting.value


def _row(
    work: _Work,
    row: ComparedRow,
    shown: Sequence[str],
    verdict: tuple[Difference | None, ForestScale | None],
) -> ShownRow:
    comparison, state = work.comparison, work.state
    inside = row.name in work.cells
    numbers = [r.number for r in work.runs]
    return ShownRow(
        key=row.key,
        name=row.name,
        number=row.run.number if row.run else None,
        role=row.role.replace("_", " "),
        look=_look(row.name, comparison),
        state=row.state,
        colour=numbers.index(row.run.number) if row.run else None,
        href=_href(work, row),
        verdict=verdict[0],
        bar=_bar(work, *verdict),
        cells=tuple(_cell(work, row, key) for key in shown),
        make_baseline=(
            state.choose(baseline=row.key) if inside and row.name != comparison.baseline else None
        ),
        remove=_without(work, row),
        measured=inside,
        left_out=row.evaluation is not None and not inside,
    )


def _look(name: str, comparison: Comparison) -> str:
    if name == comparison.baseline:
        return "base"
    return "ref" if comparison.teacher and name == comparison.teacher.name else "plain"


def _href(work: _Work, row: ComparedRow) -> str | None:
    """Return the row's evaluation, or the run's page while it has none."""
    home = f"/projects/{work.project.slug}"
    if row.evaluation is not None:
        return f"{home}/evaluations/{row.evaluation.id}"
    return f"{home}/runs/{row.run.number}" if row.run else None


def _without(work: _Work, row: ComparedRow) -> str | None:
    """Return the address without a row; the last run and the anchors stay."""
    choice = work.state.choice
    baseline = None if choice.baseline in (row.key, row.name) else choice.baseline
    if row.run is None or len(work.runs) == 1:
        return None
    left = tuple(str(r.number) for r in work.runs if r is not row.run)
    return work.state.choose(runs=left, evaluations=(), group=None, baseline=baseline)


def _cell(work: _Work, row: ComparedRow, key: str) -> ShownCell:
    if key not in METRICS:
        setting = work.settings.get(row.name, {}).get(key)
        return ShownCell(text=setting.text if setting else None)
    cell = work.cells.get(row.name, {}).get(key)
    comparison = work.comparison
    delta = None
    if comparison.baseline is not None and row.name != comparison.baseline:
        delta = comparison.difference(row.name, comparison.baseline, key)
    return ShownCell(cell=cell, delta=delta, href=_examples(work, row, key) if cell else None)


def _examples(work: _Work, row: ComparedRow, metric: str) -> str | None:
    """Return the address of the examples behind a cell: worst against the baseline first."""
    if row.evaluation is None or metric not in EXAMPLE_METRICS:
        return None
    base = work.compared.row(work.comparison.baseline or "")
    query = f"?metric={metric}"
    if base is not None and base.evaluation is not None and base is not row:
        query += f"&against={base.evaluation.id}"
    return f"/projects/{work.project.slug}/evaluations/{row.evaluation.id}{query}#examples"


def _columns(work: _Work, shown: Sequence[str]) -> list[Column]:
    settings = {c.key: c for c in COLUMNS}
    state = work.state
    found = []
    for key in shown:
        if key in METRICS:
            m = METRICS[key]
            better = {"higher": "higher is better", "lower": "lower is better", "none": ""}
            parts = [m.unit, better[m.direction]]
            parts.append("decides" if key == work.comparison.deciding_metric else "")
            label, sub, numeric = m.label, " · ".join(p for p in parts if p), True
            link = state.sorted_by(key, _falls(key))
        else:
            label, sub, numeric = settings[key].label, settings[key].sub, settings[key].numeric
            link = state.sorted_by(key, "asc")
        metric = key if key in METRICS else None
        found.append(Column(key, label, sub, numeric, link, state.aria_sort(key), metric))
    return found


def _summary(work: _Work, found: Mapping[str, Difference]) -> tuple[str, ...]:
    """Return one sentence a verdict, where several runs are compared with the teacher."""
    if work.cells and work.comparison.teacher is None:
        return ("The teacher is not evaluated on this set yet: the tolerance is not judged.",)
    runs = [row for row in work.compared.rows if row.run is not None and row.name in found]
    if len(runs) < 2:  # noqa: PLR2004 - one run has its own sentence
        return ()
    words = {
        "within": "Within the tolerance",
        "not proven": "Not proven",
        "outside": "Outside",
        "too few": "Too few conversations",
    }
    lines = []
    for verdict, head in words.items():
        names = [row.name for row in runs if found[row.name].verdict == verdict]
        if names:
            lines.append(f"{head}: {', '.join(names)}.")
    return tuple(lines)


def _curves(session: Session, work: _Work) -> list[Curve]:
    phases = phases_of(session, [run.id for run in work.runs])
    trained = {run.id: _training(phases[run.id]) for run in work.runs}
    jobs = [job for job in trained.values() if job is not None]
    series = thin_series(session, jobs, QUANTITIES, points=POINTS)
    return [
        Curve(
            label=f"#{run.number} {run.name}",
            colour=place,
            spec=RunSpec.model_validate(run.spec),
            data=work.known.sets.get(run.dataset_version_id or 0, ""),
            points={m: series.get((trained[run.id] or 0, m), []) for m in QUANTITIES},
        )
        for place, run in enumerate(work.runs)
    ]


def _training(phases: Sequence[RunPhase]) -> int | None:
    return next((phase.job.id for phase in phases if phase.role == "train"), None)


def _csv(work: _Work, rows: Sequence[ComparedRow], shown: Sequence[str]) -> Table:
    """Return the rows and settings as shown, with every metric."""
    labels = {c.key: c.label for c in COLUMNS if c.key in shown}
    columns: dict[str, Mapping[str, Value]] = {}
    for key, label in labels.items():
        columns[label] = {
            name: settings[key].value for name, settings in work.settings.items() if key in settings
        }
    inside = [row.name for row in rows if row.name in work.cells]
    return figures_table(work.comparison, inside, columns)
