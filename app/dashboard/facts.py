"""What lists and home pages know of projects: a fixed number of queries for any number of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, contains_eager

from app.checkpoints import queries as checkpoints
from app.checkpoints.queries import CheckpointLine
from app.datasets import queries as datasets
from app.datasets.models import Dataset, DatasetVersion, Upload
from app.datasets.queries import VersionView
from app.evaluations import queries as evaluations
from app.evaluations.models import Evaluation
from app.jobs.models import Job
from app.metrics.comparison import Difference, EvaluationRole, EvaluationRow, compare
from app.projects.models import Project
from app.projects.service import shown_tolerance
from app.runs import queries as runs
from app.runs.models import Run
from app.runs.queries import RunView
from app.specs.jobs import ACTIVE_STATES


@dataclass(frozen=True, slots=True)
class LastVerdict:
    """The newest evaluated distilled run (else the newest run) against the teacher.

    No difference where none can be drawn: the teacher is not evaluated on that set.
    """

    run: int
    name: str
    difference: Difference | None


@dataclass(slots=True)
class ProjectFacts:
    """What is there of a project, and what works on it."""

    project: Project
    checkpoints: list[CheckpointLine] = field(default_factory=list)
    versions: list[VersionView] = field(default_factory=list)
    """Newest first."""
    uploads: int = 0
    run: RunView | None = None
    """The newest run."""
    verdict: LastVerdict | None = None
    active: Job | None = None
    """The job a worker holds; the oldest of several."""

    @property
    def teacher(self) -> CheckpointLine | None:
        return next((c for c in self.checkpoints if c.role == "teacher"), None)

    @property
    def student(self) -> CheckpointLine | None:
        return next((c for c in self.checkpoints if c.role == "student"), None)

    @property
    def frozen(self) -> VersionView | None:
        """The newest version that runs may use."""
        return next((v for v in self.versions if v.version.state == "frozen"), None)

    @property
    def draft(self) -> VersionView | None:
        """The newest version that is not frozen yet."""
        return next((v for v in self.versions if v.version.state != "frozen"), None)


def facts_of(session: Session, projects: Sequence[Project]) -> list[ProjectFacts]:
    """Return the facts of projects, in their order."""
    ids = [project.id for project in projects]
    lines = checkpoints.lines_of(session, projects)
    versions = _versions(session, ids)
    uploads = _uploads(session, ids)
    newest = _newest_runs(session, ids)
    verdicts = last_verdicts(session, projects)
    active = _active(session, ids)
    return [
        ProjectFacts(
            project,
            lines.get(project.id, []),
            versions.get(project.id, []),
            uploads.get(project.id, 0),
            newest.get(project.id),
            verdicts.get(project.id),
            active.get(project.id),
        )
        for project in projects
    ]


def _versions(session: Session, ids: Sequence[int]) -> dict[int, list[VersionView]]:
    statement = (
        select(DatasetVersion, Job)
        .join(DatasetVersion.dataset)
        .outerjoin(Job, Job.id == DatasetVersion.job_id)
        .where(Dataset.project_id.in_(ids))
        .options(contains_eager(DatasetVersion.dataset))
        .order_by(DatasetVersion.id.desc())
    )
    found: dict[int, list[VersionView]] = {}
    for view in datasets.views(session, statement):
        found.setdefault(view.version.dataset.project_id, []).append(view)
    return found


def _uploads(session: Session, ids: Sequence[int]) -> dict[int, int]:
    rows = session.execute(
        select(Upload.project_id, func.count())
        .where(Upload.project_id.in_(ids))
        .group_by(Upload.project_id)
    )
    return {project_id: count for project_id, count in rows}  # noqa: C416 - typed rows


def _newest_runs(session: Session, ids: Sequence[int]) -> dict[int, RunView]:
    scope = select(func.max(Run.id)).where(Run.project_id.in_(ids)).group_by(Run.project_id)
    rows = session.execute(runs.view_statement(scope)).all()
    return {view.run.project_id: view for view in runs.with_phases(session, rows)}


def _active(session: Session, ids: Sequence[int]) -> dict[int, Job]:
    rows = session.scalars(
        select(Job)
        .where(Job.project_id.in_(ids), Job.state.in_(sorted(ACTIVE_STATES)))
        .order_by(Job.id.desc())
    )
    return {job.project_id: job for job in rows if job.project_id is not None}


def last_verdicts(session: Session, projects: Sequence[Project]) -> dict[int, LastVerdict]:
    """Return each project's verdict: three queries, sums of the deciding metrics alone."""
    by_id = {project.id: project for project in projects}
    rows = session.execute(
        select(Evaluation, Run.number)
        .join(Run, Run.id == Evaluation.run_id)
        .where(
            Evaluation.project_id.in_(by_id), Evaluation.state == "done", Run.role != "fine_tune"
        )
        .ext(distinct_on(Evaluation.project_id))
        .order_by(
            Evaluation.project_id,
            Run.group.is_(None),  # as the comparison: a named group counts first
            (Run.role == "distilled").desc(),
            Run.number.desc(),
            Evaluation.id.desc(),
        )
    ).all()
    teachers = session.scalars(
        select(Evaluation).where(
            Evaluation.project_id.in_(by_id),
            Evaluation.role == "teacher",
            Evaluation.state == "done",
            Evaluation.set_key.in_({row[0].set_key for row in rows}),
        )
    )
    found = {(e.project_id, e.set_key): e for e in teachers}
    pairs = [(e, number, found.get((e.project_id, e.set_key))) for e, number in rows]
    ids = [e.id for e, _, _ in pairs] + [t.id for _, _, t in pairs if t is not None]
    deciding = {project.deciding_metric for project in projects}
    sums = evaluations.sums_of(session, ids, deciding)

    def row(e: Evaluation) -> EvaluationRow:
        key = f"{e.set_key}:{e.clusters_sha256}"
        role = cast("EvaluationRole", e.role)
        return EvaluationRow(e.name, role, sums[e.id], e.dataset_version_id, key)

    return {
        e.project_id: LastVerdict(
            number, e.name, _against_teacher(by_id[e.project_id], row(e), row(t)) if t else None
        )
        for e, number, t in pairs
    }


def _against_teacher(
    project: Project, run: EvaluationRow, teacher: EvaluationRow
) -> Difference | None:
    comparison = compare(
        [teacher, run],
        deciding_metric=project.deciding_metric,
        tolerance=shown_tolerance(project),
    )
    return comparison.difference(run.name, teacher.name, project.deciding_metric)
