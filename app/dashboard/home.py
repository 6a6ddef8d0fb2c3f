"""What the list of projects and a project's home show, read in a fixed number of queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Select, func, or_, select
from sqlalchemy.orm import Session, aliased

from app.accounts.models import User
from app.checkpoints.models import Checkpoint
from app.dashboard import queries
from app.dashboard.caches import WEIGHTS
from app.dashboard.facts import ProjectFacts, facts_of
from app.dashboard.next_step import NextStep, next_step
from app.dashboard.pipeline import Step, pipeline
from app.dashboard.queries import QueueRow
from app.evaluations import queries as evaluations
from app.evaluations.comparing import compare_rows
from app.evaluations.schemas import Choice
from app.jobs import queries as jobs
from app.jobs.models import Job
from app.metrics.comparison import Cell, Comparison, Difference, cell_of
from app.metrics.verdicts import tolerance_words
from app.projects.models import Project
from app.projects.service import shown_tolerance
from app.runs import queries as runs
from app.runs.queries import RunView
from app.teacher_cache.models import CacheCoverage, CacheShard, CacheSpaceRow
from app.web.tables import Page, SortColumn, TableState, keyset, page

RECENT = 5
_TIME = DateTime(timezone=True)
_LAST_JOBS = (
    select(
        Job.project_id,
        func.max(func.greatest(Job.created_at, Job.started_at, Job.ended_at, type_=_TIME)).label(
            "at"
        ),
    )
    .group_by(Job.project_id)
    .subquery("last_jobs")
)
ACTIVITY = func.coalesce(_LAST_JOBS.c.at, Project.created_at, type_=_TIME)
COLUMNS = (
    SortColumn("activity", ACTIVITY, "desc"),
    SortColumn("name", func.lower(Project.name)),
    SortColumn("runs", Project.last_run_number, "desc"),
)


def verdict_words(project: Project, verdict: str) -> str:
    """Return a verdict as people say it: `within 2 points`."""
    limit = tolerance_words(project.deciding_metric, shown_tolerance(project))
    return f"{verdict} {limit}" if verdict in ("within", "outside") else verdict


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """A project in the list."""

    facts: ProjectFacts
    step: NextStep
    owner: str | None
    activity: datetime

    @property
    def words(self) -> str:
        """The verdict's words, when there is one."""
        found = self.facts.verdict
        if found is None or found.difference is None:
            return ""
        return verdict_words(self.facts.project, found.difference.verdict)


def project_page(session: Session, state: TableState) -> Page:
    """Return one page of projects; `search` looks in names, teachers and owners."""
    listed = _listed(state.filters.get("search", "")).add_columns(state.sort.column)
    statement = keyset(listed, state, Project.id)
    found = page(session.execute(statement).all(), state, lambda row: (row[3], row[0].id))
    return Page(_rows(session, found.rows), found.next_url)


def overview(session: Session, state: TableState, *, limit: int) -> list[ProjectRow]:
    """Return the first projects of the list."""
    listed = _listed(state.filters.get("search", ""))
    statement = keyset(listed, state, Project.id, limit=limit)
    return _rows(session, session.execute(statement).all())


def overview_of(session: Session, project: Project) -> ProjectRow:
    """Return one project as the list shows it."""
    found = session.execute(_listed("").where(Project.id == project.id)).all()
    return _rows(session, found)[0]


def _rows(session: Session, found: Sequence[Any]) -> list[ProjectRow]:
    facts = facts_of(session, [row[0] for row in found])
    return [
        ProjectRow(f, next_step(f), row[1], row[2]) for f, row in zip(facts, found, strict=True)
    ]


def _listed(search: str) -> Select[Project, str, object]:
    teacher = aliased(Checkpoint)
    statement = (
        select(Project, User.name, ACTIVITY)
        .outerjoin(User, User.id == Project.owner_id)
        .outerjoin(teacher, teacher.id == Project.teacher_id)
        .outerjoin(_LAST_JOBS, _LAST_JOBS.c.project_id == Project.id)
    )
    if search:
        places = (Project.name, teacher.name, User.name)
        statement = statement.where(or_(*(p.icontains(search, autoescape=True) for p in places)))
    return statement


@dataclass(frozen=True, slots=True)
class RunLine:
    """A recent run: what it measured on the deciding metric, and that against the teacher."""

    view: RunView
    cell: Cell | None
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class ProjectHome:
    """A project's home page."""

    facts: ProjectFacts
    step: NextStep
    steps: tuple[Step, ...]
    owner: str | None
    comparison: Comparison | None
    """Of the last group; None until something has been evaluated."""
    runs: tuple[RunLine, ...]
    jobs: tuple[QueueRow, ...]

    @property
    def tolerance(self) -> str:
        project = self.facts.project
        return tolerance_words(project.deciding_metric, shown_tolerance(project))

    @property
    def words(self) -> str:
        found = self.facts.verdict
        if found is None or found.difference is None:
            return ""
        return verdict_words(self.facts.project, found.difference.verdict)


def project_home(session: Session, project: Project) -> ProjectHome:
    facts = facts_of(session, [project])[0]
    compared = compare_rows(session, project, Choice(), unfinished=True)
    comparison = compared.comparison if compared.comparison.rows else None
    waiting = jobs.open_jobs(session, project_id=project.id)
    owner = session.scalar(select(User.name).where(User.id == project.owner_id))
    return ProjectHome(
        facts=facts,
        step=next_step(facts),
        steps=tuple(steps_of(session, facts)),
        owner=owner,
        comparison=comparison,
        runs=tuple(_recent(session, project, comparison)),
        jobs=tuple(queries.queue_rows(session, waiting)),
    )


def steps_of(session: Session, facts: ProjectFacts) -> list[Step]:
    """Return the six steps of a project from teacher to evaluation."""
    return pipeline(facts, _coverage(session, facts), _cache_bytes(session, facts.project))


def _recent(session: Session, project: Project, comparison: Comparison | None) -> Sequence[RunLine]:
    views = runs.newest(session, project.id, limit=RECENT)
    cells = _cells(session, project, [view.run.id for view in views])
    rows = comparison.rows if comparison is not None else ()
    teacher = next((row.name for row in rows if row.role == "teacher"), None)
    lines = []
    for view in views:
        difference = None
        if comparison is not None and teacher is not None and view.run.id in cells:
            name = view.run.name
            difference = comparison.difference(name, teacher, project.deciding_metric)
        lines.append(RunLine(view, cells.get(view.run.id), difference))
    return lines


def _cells(session: Session, project: Project, run_ids: Sequence[int]) -> Mapping[int, Cell]:
    """Return run id → its newest evaluation's value of the deciding metric: two queries."""
    metric = project.deciding_metric
    newest = {
        e.run_id: e.id
        for e in reversed(evaluations.evaluations_of(session, run_ids))
        if e.state == "done" and e.run_id is not None
    }
    sums = evaluations.sums_of(session, list(newest.values()), {metric})
    return {
        run_id: cell_of(metric, sums[number][metric])
        for run_id, number in newest.items()
        if metric in sums[number]
    }


def _coverage(session: Session, facts: ProjectFacts) -> CacheCoverage | None:
    """Return the newest capture of the newest frozen version by the project's teacher."""
    version = facts.frozen.version.id if facts.frozen is not None else None
    return session.scalar(
        select(CacheCoverage)
        .join(CacheSpaceRow, CacheSpaceRow.address == CacheCoverage.space)
        .where(
            _belongs_to_teacher(facts.project),
            CacheCoverage.dataset_version_id == version,
        )
        .order_by(CacheCoverage.recorded_at.desc())
        .limit(1)
    )


def _cache_bytes(session: Session, project: Project) -> int:
    """Return what the cache of the project's teacher takes on disk."""
    found = session.scalar(
        select(func.coalesce(func.sum(CacheShard.bytes), 0))
        .join(CacheSpaceRow, CacheSpaceRow.address == CacheShard.space)
        .where(_belongs_to_teacher(project))
    )
    return int(found or 0)


def _belongs_to_teacher(project: Project) -> ColumnElement[bool]:
    """Whether a cache is of the teacher's weights, whichever checkpoint with them filled it."""
    weights = select(Checkpoint.weights_fingerprint).where(Checkpoint.id == project.teacher_id)
    return weights.scalar_subquery() == WEIGHTS
