"""The table of a project's runs: filters, sort and keyset pages in the URL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Subquery, func, literal, select
from sqlalchemy.orm import Session

from app.dashboard.run_view import ROLE_WORDS, objective_words, results_of
from app.datasets.models import Dataset, DatasetVersion
from app.evaluations.models import Evaluation, EvaluationMetric
from app.events.queries import latest_by_job
from app.metrics.comparison import Cell
from app.projects.models import Project
from app.runs import queries
from app.runs.models import Run
from app.runs.queries import RunView
from app.specs.jobs import JobState
from app.specs.training import RunSpec
from app.web.tables import PAGE_SIZE, Page, SortColumn, TableState, keyset, page, read_state

FILTERS = ("search", "state", "group")
NOT_MEASURED = -1e300
"""Where a run without a value stands when the deciding metric sorts."""
SPEED = "perf/tokens_per_second"
STATES = tuple(str(state) for state in JobState)


@dataclass(frozen=True, slots=True)
class RunLine:
    """One row of the table."""

    view: RunView
    spec: RunSpec
    role: str
    objective: str
    data: str
    cell: Cell | None
    speed: float | None
    parent: int | None

    @property
    def share(self) -> float | None:
        """Part of the phase in hand that is done, 0 to 1."""
        current = self.view.current
        progress = current.job.progress if current else None
        if not progress or not progress.get("total"):
            return None
        return min(1.0, float(progress["done"]) / float(progress["total"]))


def _newest_values(project_id: int, metric: str) -> Subquery:
    """Return (run_id, value): the newest finished evaluation of each run on a metric."""
    newest = (
        select(Evaluation.run_id, func.max(Evaluation.id).label("id"))
        .where(
            Evaluation.project_id == project_id,
            Evaluation.run_id.is_not(None),
            Evaluation.state == "done",
        )
        .group_by(Evaluation.run_id)
        .subquery()
    )
    return (
        select(newest.c.run_id, EvaluationMetric.value)
        .join(EvaluationMetric, EvaluationMetric.evaluation_id == newest.c.id)
        .where(EvaluationMetric.metric == metric, EvaluationMetric.slice == "all")
        .subquery("run_values")
    )


def listed(
    session: Session, project: Project, path: str, query: Mapping[str, str], *, limit: int
) -> list[RunView]:
    """Return the first runs of the list."""
    values = _newest_values(project.id, project.deciding_metric)
    state = read_state(path, query, _columns(values), filters=FILTERS)
    rows = _rows(session, project, state, values, limit)
    return _views(session, [run.id for run, _ in rows])


def _columns(values: Subquery) -> tuple[SortColumn, ...]:
    return (
        SortColumn("number", Run.number, "desc"),
        SortColumn("name", Run.name),
        SortColumn("value", func.coalesce(values.c.value, NOT_MEASURED), "desc"),
    )


def page_of(
    session: Session, project: Project, path: str, query: Mapping[str, str]
) -> dict[str, Any]:
    """Return the context of the list: a fixed number of queries, however many rows."""
    values = _newest_values(project.id, project.deciding_metric)
    columns = _columns(values)
    state = read_state(path, query, columns, filters=FILTERS)
    rows = _rows(session, project, state, values, PAGE_SIZE + 1)
    sorted_by = {run.id: found for run, found in rows}
    views = _views(session, [run.id for run, _ in rows[:PAGE_SIZE]])
    names = {"number": lambda v: v.run.number, "name": lambda v: v.run.name}

    def key(view: RunView) -> tuple[Any, int]:
        read = names.get(state.sort.key)
        return (read(view) if read else sorted_by[view.run.id]), view.run.id

    more = [*views, views[-1]] if len(rows) > PAGE_SIZE else views
    found: Page = page(more, state, key)
    return {
        "state": state,
        "columns": {column.key: column for column in columns},
        "page": found,
        "lines": _lines(session, project, views),
        "groups": queries.groups(session, project.id),
        "states": STATES,
        # Further pages stand still: what they poll for would be the first one.
        "live": state.after is None and any(view.alive for view in views),
        "any": bool(rows) or bool(project.last_run_number),
        "metric": project.deciding_metric,
    }


def _rows(
    session: Session, project: Project, state: TableState, values: Subquery, limit: int
) -> list[tuple[Run, float]]:
    """Return (run, sort value) of the first rows; values are read only to sort by them."""
    by_value = state.sort.key == "value"
    value = func.coalesce(values.c.value, NOT_MEASURED) if by_value else literal(NOT_MEASURED)
    statement = select(Run, value).where(Run.project_id == project.id)
    if by_value:
        statement = statement.outerjoin(values, values.c.run_id == Run.id)
    filters = state.filters
    if "search" in filters:
        statement = statement.where(queries.search_filter(filters["search"]))
    if "group" in filters:
        statement = statement.where(Run.group == filters["group"])
    if "state" in filters:
        found = queries.states(select(Run.id).where(Run.project_id == project.id))
        statement = statement.outerjoin(found, found.c.run_id == Run.id).where(
            queries.state_of(found) == filters["state"]
        )
    rows = session.execute(keyset(statement, state, Run.id, limit=limit))
    return [(run, float(found)) for run, found in rows]


def _views(session: Session, run_ids: Sequence[int]) -> list[RunView]:
    """Return the runs of a page in its order."""
    rows = session.execute(queries.view_statement(select(Run.id).where(Run.id.in_(run_ids)))).all()
    views = {view.run.id: view for view in queries.with_phases(session, rows)}
    return [views[run_id] for run_id in run_ids]


def _lines(session: Session, project: Project, views: Sequence[RunView]) -> list[RunLine]:
    ids = [view.run.id for view in views]
    results = results_of(session, ids, [project.deciding_metric])
    cells = {run_id: found.cells.get(project.deciding_metric) for run_id, found in results.items()}
    data = _data_words(session, {view.run.dataset_version_id for view in views})
    trainings = {v.run.id: t.job for v in views if (t := v.phase("train")) is not None}
    live = [job.id for job in trainings.values() if not JobState(job.state).terminal]
    speeds = latest_by_job(session, live, SPEED)
    speeds |= queries.training_speeds(session, [job.id for job in trainings.values()])
    parents = {v.run.parent_id for v in views} - {None}
    numbers = queries.numbers_of(session, [p for p in parents if p is not None])
    return [
        _line(
            view,
            cell=cells.get(view.run.id),
            data=data.get(view.run.dataset_version_id or 0, "removed"),
            speed=speeds.get(trainings[view.run.id].id) if view.run.id in trainings else None,
            parent=numbers.get(view.run.parent_id or 0),
        )
        for view in views
    ]


def _line(
    view: RunView, *, cell: Cell | None, data: str, speed: float | None, parent: int | None
) -> RunLine:
    spec = RunSpec.model_validate(view.run.spec)
    words = objective_words(spec)
    return RunLine(view, spec, ROLE_WORDS[view.run.role], words, data, cell, speed, parent)


def _data_words(session: Session, ids: set[int | None]) -> dict[int, str]:
    rows = session.execute(
        select(DatasetVersion.id, Dataset.name, DatasetVersion.number)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(DatasetVersion.id.in_(ids - {None}))
    )
    return {row.id: f"{row.name} v{row.number}" for row in rows}
