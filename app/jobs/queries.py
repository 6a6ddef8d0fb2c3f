"""Read jobs as people see them: position, the reason why one waits, its worker, its times."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.orm import Session

from app.jobs.models import Job, JobAttempt, JobDependency, Worker
from app.jobs.service import NOW
from app.metrics.formatting import size
from app.specs.jobs import ACTIVE_STATES, QUEUE_OF, TERMINAL_STATES, JobKind, JobState

SEEN_SECONDS = 30
"""A worker that was not heard for so long is taken for gone."""
HANDING_OVER_SECONDS = 10
"""How long a job may wait before a missing worker is worth a word: dispatching takes a second."""
OPEN_LIMIT = 500
_WORKERS_OF = text("interval '1 hour'")


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """A worker heard within the last hour."""

    name: str
    queue: str
    host: str
    job_id: int | None
    job_title: str | None
    device: str | None
    seen_at: datetime
    age_seconds: float

    @property
    def alive(self) -> bool:
        return self.age_seconds <= SEEN_SECONDS

    @property
    def state(self) -> str:
        """Busy, idle or lost (gone with a job in hand), or gone (an idle one that went)."""
        if self.alive:
            return "busy" if self.job_id else "idle"
        return "lost" if self.job_id else "gone"


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job and what a list says beside it."""

    job: Job
    reason: str
    """Why it waits, what it does, or how it ended: one sentence, or empty."""
    position: int | None
    """Place among the queued jobs of its queue, from 1."""
    worker: str | None
    waited_seconds: float
    """From the request to the start, or until now."""
    ran_seconds: float | None
    """From the first start to the end, or until now."""
    retried: bool
    """Whether a later job tries it again."""

    @property
    def can_retry(self) -> bool:
        return self.job.state in (JobState.FAILED, JobState.CANCELLED) and not self.retried

    @property
    def shown_state(self) -> str:
        """The state, or `recovering` while a later attempt has not reached the last snapshot."""
        again = self.job.attempt > 1 and self.job.lost_in_a_row > 0
        return "recovering" if again and self.job.state == JobState.RUNNING else self.job.state

    @property
    def done_share(self) -> float | None:
        """Part of the phase in hand that is done, 0 to 1."""
        progress = self.job.progress
        if not progress or not progress.get("total"):
            return None
        return min(1.0, max(0.0, float(progress["done"]) / float(progress["total"])))


@dataclass(slots=True)
class _Around:
    """What lies around the jobs shown, read in a fixed number of queries."""

    positions: dict[int, int] = field(default_factory=dict)
    needs: dict[int, list[str]] = field(default_factory=dict)
    attempts: dict[int, tuple[str, int | None]] = field(default_factory=dict)
    busy: dict[str, list[str]] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    retried: set[int | None] = field(default_factory=set)


def _seconds(span: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.extract("epoch", span)


def one(session: Session, job_id: int) -> JobLine | None:
    found = _read(session, Job.id == job_id, limit=1)
    return found[0] if found else None


def of_ids(session: Session, job_ids: Sequence[int]) -> dict[int, JobLine]:
    """Return the jobs of these ids."""
    found = _read(session, Job.id.in_(job_ids), limit=len(job_ids)) if job_ids else []
    return {line.job.id: line for line in found}


def open_jobs(session: Session, *, project_id: int | None = None) -> list[JobLine]:
    """Return jobs that have not ended: working ones first, then in the order they will start."""
    working = Job.state.in_(sorted(ACTIVE_STATES))
    where: list[ColumnElement[bool]] = [Job.state.not_in(sorted(TERMINAL_STATES))]
    if project_id is not None:
        where.append(Job.project_id == project_id)
    lines = _read(session, *where, order=(working.desc(), Job.priority, Job.id), limit=OPEN_LIMIT)
    return sorted(lines, key=lambda line: line.job.state == JobState.BLOCKED)


def ended_jobs(session: Session, *, project_id: int | None = None, limit: int) -> list[JobLine]:
    """Return jobs that ended, the newest end first."""
    where: list[ColumnElement[bool]] = [Job.state.in_(sorted(TERMINAL_STATES))]
    if project_id is not None:
        where.append(Job.project_id == project_id)
    order = (Job.ended_at.desc().nulls_last(), Job.id.desc())
    return _read(session, *where, order=order, limit=limit)


def find(
    session: Session, *, state: JobState | None, project_id: int | None, limit: int
) -> list[JobLine]:
    """Return jobs, the newest first."""
    where: list[ColumnElement[bool]] = []
    if state is not None:
        where.append(Job.state == state)
    if project_id is not None:
        where.append(Job.project_id == project_id)
    return _read(session, *where, limit=limit)


def _read(
    session: Session,
    *where: ColumnElement[bool],
    order: Sequence[Any] = (),
    limit: int,
) -> list[JobLine]:
    started = func.coalesce(Job.started_at, Job.ended_at, NOW)
    ended = func.coalesce(Job.ended_at, NOW)
    rows = session.execute(
        select(
            Job,
            _seconds(started - Job.created_at),
            _seconds(ended - Job.started_at),
            _seconds(Job.not_before - NOW),
        )
        .where(*where)
        .order_by(*(order or (Job.id.desc(),)))
        .limit(limit)
    ).all()
    around = _around(session, [row[0] for row in rows]) if rows else _Around()
    return [_line(row[0], around, float(row[1]), row[2], row[3]) for row in rows]


def _around(session: Session, jobs: Sequence[Job]) -> _Around:
    found = _Around()
    for worker in workers(session):
        if worker.alive:
            found.heard[worker.queue] = found.heard.get(worker.queue, 0) + 1
            if worker.job_title:
                found.busy.setdefault(worker.queue, []).append(worker.job_title)
    if any(job.state == JobState.QUEUED for job in jobs):
        place = func.row_number().over(partition_by=Job.queue, order_by=(Job.priority, Job.id))
        queued = select(Job.id, place).where(Job.state == JobState.QUEUED)
        found.positions = {row[0]: row[1] for row in session.execute(queued)}
    blocked = [job.id for job in jobs if job.state == JobState.BLOCKED]
    if blocked:
        needs = session.execute(
            select(JobDependency.job_id, Job.title)
            .join(Job, Job.id == JobDependency.depends_on_id)
            .where(JobDependency.job_id.in_(blocked), Job.state != JobState.SUCCEEDED)
            .order_by(Job.id)
        )
        for job_id, title in needs:
            found.needs.setdefault(job_id, []).append(title)
    ended = [job.id for job in jobs if job.state in (JobState.FAILED, JobState.CANCELLED)]
    if ended:
        children = session.scalars(select(Job.parent_id).where(Job.parent_id.in_(ended)))
        found.retried = set(children)
    fences = [job.fence for job in jobs if job.fence is not None]
    if fences:
        attempts = session.execute(
            select(JobAttempt.job_id, JobAttempt.worker, JobAttempt.resumed_from_step).where(
                JobAttempt.fence.in_(fences)
            )
        )
        found.attempts = {job_id: (worker, step) for job_id, worker, step in attempts}
    return found


def _line(
    job: Job, around: _Around, waited: float, ran: float | None, hold: float | None
) -> JobLine:
    worker, resumed = around.attempts.get(job.id, (None, None))
    position = around.positions.get(job.id)
    return JobLine(
        job=job,
        reason=_reason(job, around, position, resumed, waited, hold),
        position=position,
        worker=worker,
        waited_seconds=max(0.0, waited),
        ran_seconds=None if ran is None else max(0.0, float(ran)),
        retried=job.id in around.retried,
    )


def _reason(
    job: Job,
    around: _Around,
    position: int | None,
    resumed: int | None,
    waited: float,
    hold: float | None,
) -> str:
    state = JobState(job.state)
    if state == JobState.BLOCKED:
        return _blocked(around.needs.get(job.id, []))
    if state == JobState.QUEUED:
        if hold is not None and hold > 0:
            return f"Its last worker was lost; it starts again in {round(hold)} s."
        return _queued(job, around, position or 1, waited)
    if state == JobState.CANCELLING:
        keeps = job.cancel_mode == "keep"
        return "Stopping; what it has is saved." if keeps else "Stopping; nothing is kept."
    if state in ACTIVE_STATES:
        return _working(job, resumed)
    return job.error_message or ""


def _blocked(titles: Sequence[str]) -> str:
    if not titles:
        return "Starts when what it needs has succeeded."
    more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
    have = "have" if more else "has"
    return f"Starts when “{titles[0]}”{more} {have} succeeded."


def _queued(job: Job, around: _Around, position: int, waited: float) -> str:
    busy, heard = around.busy.get(job.queue, []), around.heard.get(job.queue, 0)
    if not heard:
        if waited < HANDING_OVER_SECONDS:
            return "Being handed to a worker."
        return (
            f"No worker has been heard on the {job.queue} queue for {SEEN_SECONDS} s. "
            "Look at the machine, or start one with stillhouse up."
        )
    if position > 1:
        ahead = position - 1
        return f"{ahead:,} {'job is' if ahead == 1 else 'jobs are'} in front of it."
    if len(busy) < heard:
        return "Being handed to a worker."
    others = f" and {len(busy) - 1} more" if len(busy) > 1 else ""
    return f"Next. It waits for “{busy[0]}”{others} on the {job.queue} queue."


def _working(job: Job, resumed: int | None) -> str:
    parts = [job.phase.replace("_", " ").capitalize() if job.phase else "Starting"]
    progress = job.progress
    if progress and progress.get("total"):
        parts.append(progress_words(progress))
    if job.attempt > 1 or resumed:
        place = f"from {resumed:,}" if resumed else "from the beginning"
        parts.append(f"attempt {job.attempt}, {place}")
    return "; ".join(parts)


def progress_words(progress: dict[str, Any]) -> str:
    done, total, unit = progress["done"], progress["total"], progress.get("unit")
    if unit == "bytes":
        return f"{size(done)} of {size(total)}"
    return f"{done:,} of {total:,}{f' {unit}' if unit else ''}"


def workers(session: Session) -> list[WorkerLine]:
    """Return the workers heard within the hour: those alive first."""
    rows = session.execute(
        select(Worker, Job.title, _seconds(NOW - Worker.seen_at))
        .outerjoin(Job, Job.id == Worker.job_id)
        .where(Worker.seen_at > NOW - _WORKERS_OF)
        .order_by(Worker.queue, Worker.seen_at.desc())
    )
    lines = [
        WorkerLine(w.name, w.queue, w.host, w.job_id, title, w.device, w.seen_at, float(age))
        for w, title, age in rows
    ]
    return sorted(lines, key=lambda line: not line.alive)


def lanes(session: Session, kind: JobKind) -> int:
    """Return how many jobs of a kind work at once: one a worker that lives, and at least one."""
    heard = [worker for worker in workers(session) if worker.queue == QUEUE_OF[kind]]
    return max(1, sum(worker.alive for worker in heard))
