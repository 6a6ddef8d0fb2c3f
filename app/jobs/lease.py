"""The worker's side of a job: claim, prove the claim at every write, finish.

Every write checks and extends the lease in its own transaction; a claim that is no longer ours
raises `Fenced`, and nothing may be written after it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.events.append import append, drop_points_beyond
from app.jobs.models import FENCE, Job, JobAttempt, JobLease, JobSnapshot, Worker
from app.jobs.service import NOW, announce, close_attempt, end
from app.specs.events import ErrorEvent, SnapshotEvent
from app.specs.jobs import JobState, Queue

KEPT_SNAPSHOTS = 2
"""How many snapshots stay beside the best: as many as a training keeps on disk."""


class Fenced(Exception):
    """Another attempt holds the job now: stop, write nothing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker needs to know of the job it holds."""

    job_id: int
    fence: int
    kind: str
    spec: dict[str, Any]
    stream: str
    attempt: int
    snapshots: tuple[tuple[int, str, str], ...]
    """(step, folder, manifest SHA-256) of the visible snapshots, newest first."""


def claim(
    session: Session, queue: Queue, *, worker: str, host: str, lease_seconds: float
) -> Claim | None:
    """Take the next queued job of a queue, or None. Two workers never get the same one."""
    job = session.scalar(
        select(Job)
        .where(
            Job.queue == queue,
            Job.state == JobState.QUEUED,
            (Job.not_before.is_(None)) | (Job.not_before <= NOW),
        )
        .order_by(Job.priority, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if job is None:
        return None
    fence = session.scalar(select(FENCE.next_value()))
    if fence is None:
        raise RuntimeError("the fence sequence gave nothing")
    job.fence, job.attempt, job.state = fence, job.attempt + 1, JobState.STARTING
    job.phase, job.progress, job.error, job.error_message = None, None, None, None
    if job.started_at is None:
        job.started_at = session.scalar(select(NOW))
    snapshots = _snapshots(session, job.id)
    resumed = snapshots[0][0] if snapshots else None
    if job.attempt > 1:
        drop_points_beyond(session, job.id, resumed or 0)
    session.add(
        JobLease(
            job_id=job.id, fence=fence, lease_until=_until(session, lease_seconds), worker=worker
        )
    )
    session.add(
        JobAttempt(
            fence=fence,
            job_id=job.id,
            n=job.attempt,
            worker=worker,
            host=host,
            oom=False,
            resumed_from_step=resumed,
        )
    )
    session.flush()
    announce(session, job)
    return Claim(job.id, fence, job.kind, job.spec, job.stream, job.attempt, snapshots)


def _until(session: Session, seconds: float) -> Any:
    return session.scalar(select(NOW + text(f"interval '{float(seconds)} seconds'")))


def _snapshots(session: Session, job_id: int) -> tuple[tuple[int, str, str], ...]:
    rows = session.execute(
        select(JobSnapshot.step, JobSnapshot.folder, JobSnapshot.manifest_sha256)
        .where(JobSnapshot.job_id == job_id)
        .order_by(JobSnapshot.step.desc(), JobSnapshot.id.desc())
    )
    return tuple((step, folder, sha) for step, folder, sha in rows)


def guard(session: Session, held: Claim, lease_seconds: float) -> None:
    """Check and extend the lease: the first statement of every write of a worker."""
    done = session.execute(
        update(JobLease)
        .where(JobLease.job_id == held.job_id, JobLease.fence == held.fence)
        .values(lease_until=NOW + text(f"interval '{float(lease_seconds)} seconds'"))
    )
    if getattr(done, "rowcount", 0) != 1:
        raise Fenced(f"job {held.job_id}: attempt {held.fence} no longer holds it")


def heartbeat(session: Session, held: Claim, lease_seconds: float) -> str | None:
    """Extend the lease; return the cancel mode when somebody asked to stop."""
    guard(session, held, lease_seconds)
    return session.scalar(select(Job.cancel_mode).where(Job.id == held.job_id))


def running(session: Session, held: Claim) -> None:
    """Mark the first sign of work; a job that is being cancelled stays cancelling."""
    job = locked(session, held)
    if job.state == JobState.STARTING:
        job.state = JobState.RUNNING
        session.flush()
        announce(session, job)


def locked(session: Session, held: Claim) -> Job:
    """Return the held job, locked; raise `Fenced` when the claim is over."""
    job = session.scalar(
        select(Job).where(Job.id == held.job_id, Job.fence == held.fence).with_for_update()
    )
    if job is None or JobState(job.state).terminal or job.state == JobState.QUEUED:
        raise Fenced(f"job {held.job_id}: attempt {held.fence} no longer holds it")
    return job


def set_phase(session: Session, held: Claim, name: str) -> None:
    session.execute(update(Job).where(Job.id == held.job_id).values(phase=name, progress=None))
    append(session, held.stream, "phase", {"name": name}, job_id=held.job_id)


def set_progress(session: Session, held: Claim, progress: dict[str, Any]) -> None:
    session.execute(update(Job).where(Job.id == held.job_id).values(progress=progress))
    append(session, held.stream, "progress", progress, job_id=held.job_id)


def made_progress(session: Session, held: Claim) -> None:
    """Note a snapshot or finished part: a loss from here on counts from zero again."""
    session.execute(update(Job).where(Job.id == held.job_id).values(lost_in_a_row=0))


def add_snapshot(session: Session, held: Claim, event: SnapshotEvent) -> None:
    """Make a snapshot visible; only the newest two and the best keep their rows, as on disk."""
    session.add(
        JobSnapshot(
            job_id=held.job_id,
            fence=held.fence,
            step=event.step,
            folder=str(Path(event.folder)),
            manifest_sha256=event.manifest_sha256,
            best=event.best,
            value=event.value,
        )
    )
    session.execute(
        update(JobAttempt).where(JobAttempt.fence == held.fence).values(last_step=event.step)
    )
    _drop_old_snapshots(session, held.job_id)
    made_progress(session, held)
    payload = {"step": event.step, "best": event.best, "value": event.value}
    append(session, held.stream, "snapshot", payload, job_id=held.job_id)


def _drop_old_snapshots(session: Session, job_id: int) -> None:
    session.flush()
    newest_first = (
        select(JobSnapshot.id)
        .where(JobSnapshot.job_id == job_id)
        .order_by(JobSnapshot.step.desc(), JobSnapshot.id.desc())
    )
    kept = newest_first.limit(KEPT_SNAPSHOTS).union_all(
        # A later best is a better one: `best` says that none before it was.
        newest_first.where(JobSnapshot.best).limit(1)
    )
    session.execute(
        delete(JobSnapshot)
        .where(JobSnapshot.job_id == job_id, JobSnapshot.id.not_in(kept))
        .execution_options(synchronize_session=False)
    )


def resumed(session: Session, held: Claim, step: int) -> None:
    """Note after which step an attempt goes on.

    Where that is older than the newest snapshot, the newer ones were no good: they go, and so do
    the points beyond the step, which this attempt makes again.
    """
    drop_points_beyond(session, held.job_id, step)
    session.execute(
        delete(JobSnapshot).where(JobSnapshot.job_id == held.job_id, JobSnapshot.step > step)
    )
    session.execute(
        update(JobAttempt).where(JobAttempt.fence == held.fence).values(resumed_from_step=step)
    )


def succeed(session: Session, held: Claim, result: dict[str, Any]) -> None:
    """Finish: succeeded, or cancelled when somebody asked to stop meanwhile (the result stays)."""
    job = locked(session, held)
    job.result = result
    cancelled = job.state == JobState.CANCELLING
    close_attempt(session, job, "cancelled" if cancelled else "succeeded", exit_code=0)
    end(session, job, JobState.CANCELLED if cancelled else JobState.SUCCEEDED)


def fail(
    session: Session,
    held: Claim,
    error: ErrorEvent,
    *,
    exit_code: int | None = None,
    signal: int | None = None,
) -> None:
    """End as failed with a named error; bad input, NaN and out of memory are never retried."""
    job = locked(session, held)
    oom = error.error == "out_of_memory"
    if job.state == JobState.CANCELLING:
        close_attempt(session, job, "cancelled", exit_code=exit_code, signal=signal)
        end(session, job, JobState.CANCELLED)
        return
    close_attempt(session, job, "failed", exit_code=exit_code, signal=signal, oom=oom)
    end(session, job, JobState.FAILED, error=error.error, message=error.message)


def release(session: Session, held: Claim) -> None:
    """Give a job back to the queue (a drained worker); it never counts as lost."""
    job = locked(session, held)
    close_attempt(session, job, "released")
    if job.state == JobState.CANCELLING:
        end(session, job, JobState.CANCELLED)
        return
    job.state = JobState.QUEUED
    session.flush()
    announce(session, job)


def seen(session: Session, worker: str, queue: Queue, *, host: str, job_id: int | None) -> None:
    """Note that a worker lives, and on what it works."""
    statement = insert(Worker).values(name=worker, queue=queue, host=host, job_id=job_id)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"seen_at": func.clock_timestamp(), "job_id": job_id, "queue": queue},
        )
    )


def still_here(session: Session, worker: str, queue: Queue, *, host: str) -> None:
    """Note that a worker lives, whatever it works on; an idle one beats only this."""
    statement = insert(Worker).values(name=worker, queue=queue, host=host)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"seen_at": func.clock_timestamp()}
        )
    )


def gone(session: Session, worker: str) -> None:
    """Forget a worker that ends; one that died just stops being seen."""
    session.execute(delete(Worker).where(Worker.name == worker))
