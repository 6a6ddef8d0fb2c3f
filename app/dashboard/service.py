"""Cancel and retry jobs together with what they belong to."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.datasets import service as datasets
from app.errors import Conflict, NotFound
from app.evaluations import service as evaluations
from app.jobs import queries as jobs
from app.jobs import service as job_service
from app.jobs.models import Job
from app.jobs.queries import JobLine
from app.runs.models import Run, RunJob
from app.settings import Settings
from app.specs.jobs import CancelMode, JobKind


def line(session: Session, job_id: int) -> JobLine:
    found = jobs.one(session, job_id)
    if found is None:
        raise NotFound(f"There is no job {job_id}.")
    return found


def cancel(session: Session, job_id: int, mode: CancelMode, settings: Settings) -> Job:
    """Stop a job. One that waited ends at once, so its secret goes at once too."""
    job = job_service.request_cancel(session, job_id, mode)
    if job.kind == JobKind.REGISTER and job.ended_at is not None:
        checkpoints.drop_token(settings, job.spec["checkpoint_id"])
    return job


def retry(session: Session, job_id: int, *, owner: str) -> Job:
    """Make a new job of a failed or cancelled one, and point what waits for it there.

    Raises Conflict for a job of a run: the run is retried as a whole, with what depends on it.
    """
    run = session.scalar(
        select(Run).join(RunJob, RunJob.run_id == Run.id).where(RunJob.job_id == job_id)
    )
    if run is not None:
        raise Conflict(
            f"This job belongs to run #{run.number} “{run.name}”. Retry the run, so that the jobs "
            "after it start again too."
        )
    again = job_service.retry(session, job_id, owner=owner)
    match again.kind:
        case JobKind.REGISTER | JobKind.PRUNE:
            checkpoints.retried(session, again)
        case JobKind.EVALUATE:
            evaluations.retried(session, again)
        case JobKind.INSPECT | JobKind.IMPORT | JobKind.FREEZE | JobKind.GENERATE:
            datasets.retried(session, again)
    return again
