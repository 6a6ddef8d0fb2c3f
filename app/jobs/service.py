"""Ask for jobs and cancel them. What a worker does with its claim is in `lease`."""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.db.hooks import signal_after_commit
from app.errors import Conflict, NotFound
from app.events.append import append
from app.jobs.endings import unfinished
from app.jobs.models import Job, JobAttempt, JobDependency, JobLease
from app.jobs.snapshots import take_over
from app.specs.base import Spec
from app.specs.fingerprint import fingerprint
from app.specs.jobs import QUEUE_OF, CancelMode, JobKind, JobState, Queue

NOW = func.clock_timestamp()

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a domain asks for. `stream` is where it reports, `title` what the queue shows."""

    kind: JobKind
    spec: Spec
    stream: str
    title: str
    project_id: int | None = None
    owner: str | None = None
    depends_on: Sequence[int] = ()
    idempotency_key: str | None = None
    priority: int = 0
    parent_id: int | None = None
    queue: Queue | None = None
    """Whose workers take it; None: those of its kind."""


def enqueue(session: Session, request: JobRequest) -> Job:
    """Add a job; it waits (blocked) until every job it depends on has succeeded.

    A second request with the same project and idempotency key returns the first job.
    """
    if request.idempotency_key is not None:
        found = session.scalar(
            select(Job).where(
                Job.project_id == request.project_id,
                Job.idempotency_key == request.idempotency_key,
            )
        )
        if found is not None:
            return found
    job = Job(
        kind=request.kind,
        queue=request.queue or QUEUE_OF[request.kind],
        spec=request.spec.model_dump(mode="json"),
        spec_hash=fingerprint(request.spec),
        stream=request.stream,
        title=request.title,
        project_id=request.project_id,
        owner=request.owner,
        state=_first_state(session, request.depends_on),
        priority=request.priority,
        idempotency_key=request.idempotency_key,
        parent_id=request.parent_id,
    )
    session.add(job)
    session.flush()
    session.add_all(
        JobDependency(job_id=job.id, depends_on_id=needed) for needed in set(request.depends_on)
    )
    announce(session, job)
    log.info("job_enqueued", job_id=job.id, kind=job.kind, queue=job.queue)
    return job


def _first_state(session: Session, depends_on: Sequence[int]) -> JobState:
    if not depends_on:
        return JobState.QUEUED
    # Locked in id order, so that a dependency cannot end between this look and our insert.
    states = session.scalars(
        select(Job.state).where(Job.id.in_(depends_on)).order_by(Job.id).with_for_update()
    ).all()
    if any(state in (JobState.FAILED, JobState.CANCELLED) for state in states):
        raise Conflict("A job this one needs has failed or was cancelled: start that one again.")
    done = all(state == JobState.SUCCEEDED for state in states)
    return JobState.QUEUED if done else JobState.BLOCKED


def announce(session: Session, job: Job) -> None:
    """Put the job's present state on its stream and, when it waits for a worker, nudge one."""
    payload = {"state": job.state, "kind": job.kind, "title": job.title, "attempt": job.attempt}
    if job.error is not None:
        payload |= {"error": job.error, "message": job.error_message}
    append(session, job.stream, "state", payload, job_id=job.id)
    if job.state == JobState.QUEUED:
        signal_after_commit(session, "nudge", job.queue)


def request_cancel(session: Session, job_id: int, mode: CancelMode) -> Job:
    """Stop a job: at once while it waits, else its worker stops it (shown as cancelling)."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    state = JobState(job.state)
    if state.terminal:
        raise Conflict(f"“{job.title}” has already ended: {state}.")
    job.cancel_mode = mode
    if state in (JobState.QUEUED, JobState.BLOCKED):
        end(session, job, JobState.CANCELLED)
        return job
    job.cancel_requested_at = session.scalar(select(NOW))
    job.state = JobState.CANCELLING
    announce(session, job)
    return job


def end(
    session: Session,
    job: Job,
    state: JobState,
    *,
    error: str | None = None,
    message: str | None = None,
) -> None:
    """Move a job to a terminal state; tell its domain; wake or fail what waits for it."""
    job.state = state
    job.error = error
    job.error_message = message
    job.ended_at = session.scalar(select(NOW))
    if state != JobState.SUCCEEDED:
        unfinished(session, job.kind, job.spec, message or "It was cancelled.")
    session.flush()
    announce(session, job)
    _settle_dependents(session, job)


def _settle_dependents(session: Session, job: Job) -> None:
    waiting = session.scalars(
        select(Job)
        .join(JobDependency, JobDependency.job_id == Job.id)
        .where(JobDependency.depends_on_id == job.id, Job.state == JobState.BLOCKED)
        .order_by(Job.id)
        .with_for_update(of=Job)
    ).all()
    for dependent in waiting:
        if job.state == JobState.CANCELLED:
            end(session, dependent, JobState.CANCELLED)
        elif job.state == JobState.FAILED:
            sentence = f"“{job.title}” failed, and this job needs its result."
            end(session, dependent, JobState.FAILED, error="upstream_failed", message=sentence)
        elif _all_succeeded(session, dependent.id):
            dependent.state = JobState.QUEUED
            session.flush()
            announce(session, dependent)


def _all_succeeded(session: Session, job_id: int) -> bool:
    missing = session.scalar(
        select(func.count())
        .select_from(JobDependency)
        .join(Job, Job.id == JobDependency.depends_on_id)
        .where(JobDependency.job_id == job_id, Job.state != JobState.SUCCEEDED)
    )
    return missing == 0


def retry(
    session: Session, job_id: int, *, owner: str | None = None, depends_on: Sequence[int] = ()
) -> Job:
    """Make a new job of a failed or cancelled one; terminal states never change.

    It waits for what `depends_on` names, not for what the first one waited for, and goes on from
    the newest snapshot that the first one left.
    """
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    if session.scalar(select(Job.id).where(Job.parent_id == job_id)) is not None:
        raise Conflict(f"“{job.title}” has been started again already.")
    if job.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Conflict(f"Only a failed or cancelled job can be retried; this one is {job.state}.")
    again = Job(
        kind=job.kind,
        queue=job.queue,
        spec=job.spec,
        spec_hash=job.spec_hash,
        stream=job.stream,
        title=job.title,
        project_id=job.project_id,
        owner=owner or job.owner,
        state=_first_state(session, depends_on),
        priority=job.priority,
        parent_id=job.id,
    )
    session.add(again)
    session.flush()
    session.add_all(
        JobDependency(job_id=again.id, depends_on_id=needed) for needed in set(depends_on)
    )
    take_over(session, job.id, again.id)
    announce(session, again)
    log.info("job_enqueued", job_id=again.id, kind=again.kind, queue=again.queue, parent_id=job.id)
    return again


def reap(session: Session, *, max_attempts: int, backoff: Sequence[float]) -> int:
    """Take back jobs whose lease is over; return how many.

    The attempt is `lost`. A job that was being cancelled is cancelled; one that lost too many
    attempts in a row without progress fails; the others wait again, later each time.
    """
    rows = session.scalars(
        select(Job)
        .join(JobLease, JobLease.job_id == Job.id)
        .where(JobLease.lease_until < NOW)
        .order_by(Job.id)
        .with_for_update(of=Job, skip_locked=True)
    ).all()
    for job in rows:
        lose(session, job, max_attempts=max_attempts, backoff=backoff)
    return len(rows)


def lose(
    session: Session,
    job: Job,
    *,
    max_attempts: int,
    backoff: Sequence[float],
    code: int | None = None,
) -> None:
    """End the attempt in hand as lost and decide what becomes of the (locked) job.

    `code` is how its process ended, negative for a signal; None when its worker was lost with it.
    """
    signal = -code if code is not None and code < 0 else None
    exit_code = None if signal else code
    close_attempt(session, job, "lost", exit_code=exit_code, signal=signal)
    job.lost_in_a_row += 1
    if job.state == JobState.CANCELLING:
        end(session, job, JobState.CANCELLED)
    elif job.lost_in_a_row >= max_attempts:
        sentence = (
            f"The worker was lost {job.lost_in_a_row} times in a row without progress. "
            "Look at the log's last lines and the machine's memory, then retry."
        )
        end(session, job, JobState.FAILED, error="lost", message=sentence)
    else:
        wait = backoff[min(job.lost_in_a_row, len(backoff)) - 1]
        job.not_before = session.scalar(select(NOW + text(f"interval '{float(wait)} seconds'")))
        job.state = JobState.QUEUED
        session.flush()
        announce(session, job)


def close_attempt(
    session: Session,
    job: Job,
    outcome: str,
    *,
    exit_code: int | None = None,
    signal: int | None = None,
    oom: bool = False,
) -> None:
    """Write how the attempt ended and give the lease back."""
    session.execute(
        update(JobAttempt)
        .where(JobAttempt.fence == job.fence)
        .values(outcome=outcome, ended_at=NOW, exit_code=exit_code, signal=signal, oom=oom)
    )
    lease = session.get(JobLease, job.id)
    if lease is not None and lease.fence == job.fence:
        session.delete(lease)
    session.flush()
