"""What comes in and goes out across domains: a new project with its teacher, jobs."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.checkpoints.schemas import CheckpointAdd, RegisterForm
from app.projects.schemas import ProjectCreate
from app.specs.jobs import CancelMode


class NewProject(ProjectCreate):
    """The form of a new project; its teacher may be named at once."""

    kind: Literal["none", "folder", "hub"] = "none"
    path: str = Field(default="", max_length=1000)
    repo_id: str = Field(default="", max_length=200)
    revision: str = Field(default="main", min_length=1, max_length=200)
    token: str = Field(default="", max_length=500, repr=False)

    def teacher(self) -> CheckpointAdd | None:
        """Return the teacher to register, or None. Errors: InvalidInput naming the field."""
        if self.kind == "none":
            return None
        given = self.model_dump(include={"kind", "path", "repo_id", "revision", "token"})
        return RegisterForm.model_validate(given).add()


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
