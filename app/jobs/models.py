"""Jobs, their leases, attempts, snapshots and dependencies. A job knows no run."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, Sequence, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasCreated, HasId
from app.specs.jobs import JobState

FENCE = Sequence("job_fence", metadata=Base.metadata)
_STATES = ", ".join(f"'{state}'" for state in JobState)


class Job(HasId, HasCreated, Base):
    """A unit of work. Terminal states never change: a trigger refuses it."""

    __tablename__ = "jobs"

    kind: Mapped[str]
    queue: Mapped[str]
    spec: Mapped[dict[str, Any]]
    spec_hash: Mapped[str]
    stream: Mapped[str] = mapped_column(index=True)
    """The event stream this job reports to, such as `run:12` or `upload:7`."""
    title: Mapped[str]
    """What the queue shows: verb and object."""
    project_id: Mapped[int | None] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    owner: Mapped[str | None]
    """Who asked for it, as shown in the queue."""
    state: Mapped[str] = mapped_column(server_default=JobState.QUEUED)
    phase: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None]
    """{"done", "total", "unit", "eta_seconds"} of the phase in hand."""
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    lost_in_a_row: Mapped[int] = mapped_column(server_default=text("0"))
    """Consecutive lost attempts without a new snapshot or part; progress resets it."""
    fence: Mapped[int | None]
    cancel_requested_at: Mapped[datetime | None]
    cancel_mode: Mapped[str | None]
    not_before: Mapped[datetime | None]
    error: Mapped[str | None]
    """Name of the failure; `error_message` is the sentence."""
    error_message: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None]
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )
    """The job that this one tries again."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"state in ({_STATES})", name="state"),
        UniqueConstraint("project_id", "idempotency_key"),
        Index(
            "ix_jobs_queue_next",
            "queue",
            "priority",
            "id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "ix_jobs_active",
            "state",
            postgresql_where=text("state not in ('succeeded','failed','cancelled')"),
        ),
    )


class JobLease(Base):
    """Small and hot, the only table heartbeats touch; a row exists while an attempt holds."""

    __tablename__ = "job_leases"
    __table_args__ = {"postgresql_with": {"fillfactor": "50"}}  # noqa: RUF012

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int]
    lease_until: Mapped[datetime]
    worker: Mapped[str]


class JobAttempt(Base):
    """One claim of a job by one worker, and how it ended."""

    __tablename__ = "job_attempts"

    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    n: Mapped[int]
    worker: Mapped[str]
    host: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    """succeeded · failed · cancelled · lost · released; None while it works."""
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    oom: Mapped[bool] = mapped_column(server_default=text("false"))
    resumed_from_step: Mapped[int | None]
    last_step: Mapped[int | None]


class JobSnapshot(HasId, HasCreated, Base):
    """A complete training state on disk, made visible by this fenced row."""

    __tablename__ = "job_snapshots"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    fence: Mapped[int]
    step: Mapped[int]
    folder: Mapped[str]
    manifest_sha256: Mapped[str]
    best: Mapped[bool] = mapped_column(server_default=text("false"))
    value: Mapped[float | None]


class JobDependency(Base):
    """`job_id` starts when `depends_on_id` has succeeded."""

    __tablename__ = "job_dependencies"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    depends_on_id: Mapped[int] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, index=True
    )


class Worker(Base):
    """Workers that have been heard, for the queue page and the dispatcher's count of idle ones."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    host: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    job_id: Mapped[int | None]
    device: Mapped[str | None]
