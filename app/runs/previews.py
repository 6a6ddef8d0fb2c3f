"""What a run would learn of its data: asked of a worker, since the web cannot render ids."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.runs.service import subject_of
from app.specs.fingerprint import fingerprint
from app.specs.jobs import JobKind, JobState, PreviewJob
from app.specs.preview import RenderPreview
from app.specs.training import RunSpec

_LASTS = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED)


def ask(session: Session, project: Project, spec: RunSpec, *, owner: str) -> Job:
    """Return the job that shows what a run would learn: the one that did before, if there is one.

    Raises Conflict where the data or the student are not there yet.
    """
    subject = subject_of(session, project, spec)
    if subject.version.state not in ("draft", "frozen"):
        raise Conflict(f"The dataset version is {subject.version.state}: there is nothing to show.")
    if subject.student.state != "ready":
        raise Conflict(f"“{subject.student.name}” is {subject.student.state}: wait for its job.")
    wanted = PreviewJob(
        checkpoint_id=subject.student.id,
        dataset_version_id=subject.version.id,
        render=spec.training.render,
    )
    before = session.scalar(
        select(Job)
        .where(
            Job.project_id == project.id,
            Job.kind == JobKind.PREVIEW,
            Job.spec_hash == fingerprint(wanted),
            Job.state.in_(_LASTS),
        )
        .order_by(Job.id.desc())
        .limit(1)
    )
    if before is not None:
        return before
    return enqueue(
        session,
        JobRequest(
            kind=JobKind.PREVIEW,
            spec=wanted,
            stream=f"preview:{project.id}",
            title=f"Show what {subject.student.name} would learn",
            project_id=project.id,
            owner=owner,
        ),
    )


def get(session: Session, project: Project, job_id: int) -> tuple[Job, RenderPreview | None]:
    """Return the job and, once it has succeeded, what it shows. Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None or job.kind != JobKind.PREVIEW or job.project_id != project.id:
        raise NotFound("This project has no such preview.")
    done = job.state == JobState.SUCCEEDED and job.result is not None
    return job, RenderPreview.model_validate(job.result) if done else None
