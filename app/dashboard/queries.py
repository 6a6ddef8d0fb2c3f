"""Read what pages and API show across domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.dashboard.schemas import JobOut
from app.jobs.queries import JobLine
from app.projects.models import Project


@dataclass(frozen=True, slots=True)
class ProjectName:
    id: int
    slug: str
    name: str


def project_names(session: Session, ids: Iterable[int | None]) -> dict[int, ProjectName]:
    """Return slug and name of the projects of these ids: one query."""
    wanted = {number for number in ids if number is not None}
    rows = session.execute(
        select(Project.id, Project.slug, Project.name).where(Project.id.in_(wanted))
    )
    return {row.id: ProjectName(row.id, row.slug, row.name) for row in rows}


def shown(session: Session, lines: Sequence[JobLine]) -> list[JobOut]:
    """Return jobs as the API gives them."""
    names = project_names(session, [line.job.project_id for line in lines])
    return [_out(line, names.get(line.job.project_id or 0)) for line in lines]


def _out(line: JobLine, project: ProjectName | None) -> JobOut:
    job = line.job
    return JobOut(
        id=job.id,
        kind=job.kind,
        queue=job.queue,
        title=job.title,
        state=job.state,
        project=project.slug if project else None,
        owner=job.owner,
        stream=job.stream,
        phase=job.phase,
        progress=job.progress,
        attempt=job.attempt,
        position=line.position,
        reason=line.reason,
        worker=line.worker,
        error=job.error,
        message=job.error_message,
        result=job.result,
        parent_id=job.parent_id,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        waited_seconds=line.waited_seconds,
        ran_seconds=line.ran_seconds,
    )
