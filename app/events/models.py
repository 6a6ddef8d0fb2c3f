"""Append-only events (their ids are the SSE ids) and metric points."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, HasId


class RunEvent(HasId, Base):
    """One thing that happened on a stream; `kind` is state, phase, progress, log or snapshot."""

    __tablename__ = "run_events"

    stream: Mapped[str]
    job_id: Mapped[int | None]
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (Index("ix_run_events_stream_id", "stream", "id"),)


class MetricPoint(Base):
    """One value of one metric at one step of a job; the higher fence wins."""

    __tablename__ = "metric_points"

    job_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int]
    value: Mapped[float]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
