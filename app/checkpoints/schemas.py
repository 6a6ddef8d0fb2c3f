"""What comes in and goes out about checkpoints."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.specs.checkpoint import CheckpointSource, PruneSpec


class CheckpointAdd(BaseModel):
    """Register a folder or a hub repository; the token is kept apart and never returned."""

    name: str = Field(min_length=1, max_length=80)
    source: CheckpointSource
    token: str | None = Field(default=None, max_length=500, repr=False)


class StudentMake(BaseModel):
    """Cut a student out of a teacher."""

    name: str = Field(min_length=1, max_length=80)
    teacher_id: int
    dataset_version_id: int | None = None
    prune: PruneSpec


class CheckpointOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    state: str
    origin: dict[str, Any]
    card: dict[str, Any] | None
    error: str | None
    job_id: int | None
