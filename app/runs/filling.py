"""The jobs that fill the teacher cache a run reads: one, or one for each worker and one after."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.checkpoints.service import queue_of
from app.datasets.models import DatasetVersion
from app.jobs import queries as jobs
from app.jobs.models import Job, JobDependency
from app.jobs.service import JobRequest, enqueue, request_cancel
from app.runs.models import Run, RunJob
from app.runs.subject import capture_of
from app.specs.checkpoint import CheckpointCard
from app.specs.fingerprint import fingerprint
from app.specs.jobs import TERMINAL_STATES, CancelMode, JobKind, JobState, PrecomputeJob
from app.specs.training import RunSpec
from app.teacher_cache import queries as cache
from app.teacher_cache.service import space_of

WORTH_SHARING = 256
"""Fewer conversations than this are scored before a second worker has loaded the teacher."""


def ask_for_cache(session: Session, run: Run, spec: RunSpec, owner: str) -> Job:
    """Return the job that fills the cache: the one that is on its way already, if there is one.

    Where several workers live, each gets a share of the shards first; the job that is returned
    waits for them, scores what is missing still, and checks the whole.
    """
    wanted = capture_of(spec)
    job = _on_its_way(session, run.project_id, wanted)
    queue = queue_of(session.get(Checkpoint, wanted.teacher_id))
    if job is None:
        # A server bounds its requests by itself, so one job asks it.
        divided = _shares(session, wanted) if queue is None else []
        shares = [_request(run, share, owner) for share in divided]
        parts = [enqueue(session, share) for share in shares]
        after = [part.id for part in parts]
        whole = replace(_request(run, wanted, owner, depends_on=after), queue=queue)
        job = enqueue(session, whole)
    for needed in (*parts_of(session, job.id), job):
        session.add(RunJob(run_id=run.id, job_id=needed.id, role="precompute"))
    session.flush()
    return job


def parts_of(session: Session, job_id: int) -> Sequence[Job]:
    """Return the jobs that fill shares of a cache for the job that completes it."""
    return session.scalars(
        select(Job)
        .join(JobDependency, JobDependency.depends_on_id == Job.id)
        .where(JobDependency.job_id == job_id, Job.kind == JobKind.PRECOMPUTE)
        .order_by(Job.id)
    ).all()


def cancel_parts(session: Session, job_id: int, mode: CancelMode) -> None:
    """Stop what fills shares for a job that was cancelled; the shards they have made stay."""
    for part in parts_of(session, job_id):
        if part.state not in (*TERMINAL_STATES, JobState.CANCELLING):
            request_cancel(session, part.id, mode)


def _shares(session: Session, wanted: PrecomputeJob) -> list[PrecomputeJob]:
    """Return a share for each worker that lives; none where one job does as well."""
    count = jobs.lanes(session, JobKind.PRECOMPUTE)
    if count < 2 or not _much_is_missing(session, wanted):  # noqa: PLR2004 - one worker shares not
        return []
    return [wanted.model_copy(update={"part": n, "parts": count}) for n in range(count)]


def _much_is_missing(session: Session, wanted: PrecomputeJob) -> bool:
    teacher = session.get(Checkpoint, wanted.teacher_id)
    version = session.get(DatasetVersion, wanted.dataset_version_id)
    if teacher is None or teacher.card is None or version is None:
        return False
    address = space_of(CheckpointCard.model_validate(teacher.card), wanted.profile).address
    known = cache.coverage(session, address, version.id, wanted.render)
    if known is not None and wanted.max_train_conversations is None:
        return known.conversations - known.cached >= WORTH_SHARING
    splits: dict[str, int] = (version.funnel or {}).get("splits", {})
    train = splits.get("train", 0)
    train = min(train, wanted.max_train_conversations or train)
    return train + splits.get("validation", 0) >= WORTH_SHARING


def _request(
    run: Run, spec: PrecomputeJob, owner: str, depends_on: Sequence[int] = ()
) -> JobRequest:
    share = "" if spec.part is None else f", part {spec.part + 1} of {spec.parts}"
    return JobRequest(
        kind=JobKind.PRECOMPUTE,
        spec=spec,
        # A stream of its own: every run that waits for it follows it beside its own.
        stream=f"cache:{run.id}",
        title=f"Fill the teacher cache for #{run.number} {run.name}{share}",
        project_id=run.project_id,
        owner=owner,
        depends_on=depends_on,
    )


def _on_its_way(session: Session, project_id: int, wanted: PrecomputeJob) -> Job | None:
    waiting = (JobState.BLOCKED, JobState.QUEUED, JobState.STARTING, JobState.RUNNING)
    return session.scalar(
        select(Job)
        .where(
            Job.project_id == project_id,
            Job.kind == JobKind.PRECOMPUTE,
            Job.spec_hash == fingerprint(wanted),
            Job.state.in_(waiting),
        )
        .order_by(Job.id)
        .limit(1)
        .with_for_update()
    )
