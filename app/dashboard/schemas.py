"""What goes out about jobs, and how one is cancelled."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.specs.jobs import CancelMode


class CancelRequest(BaseModel):
    """`keep`: finish the step in hand and save; `discard`: stop and keep nothing."""

    mode: CancelMode = "discard"


class JobOut(BaseModel):
    """A job with its place in the queue; times are UTC, durations seconds."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str
    queue: str
    title: str
    state: str
    project: str | None
    """The project's slug."""
    owner: str | None
    stream: str
    phase: str | None
    progress: dict[str, Any] | None
    """{"done", "total", "unit", "eta_seconds"} of the phase in hand."""
    attempt: int
    position: int | None
    reason: str
    worker: str | None
    error: str | None
    message: str | None
    result: dict[str, Any] | None
    parent_id: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    waited_seconds: float
    ran_seconds: float | None
