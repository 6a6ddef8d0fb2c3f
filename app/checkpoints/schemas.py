"""What comes in and goes out about checkpoints."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidInput
from app.specs.checkpoint import (
    CheckpointCard,
    CheckpointSource,
    Compression,
    FolderSource,
    HubSource,
    PruneSpec,
    TokenizerVerdict,
)
from app.specs.names import MOST, Name, NameOrEmpty, is_visible


class CheckpointAdd(BaseModel):
    """Register a folder or a hub repository; the token is kept apart and never returned."""

    name: Name
    source: CheckpointSource
    token: str | None = Field(default=None, max_length=500, repr=False)


class CheckpointRetry(BaseModel):
    """Try again; a hub token was destroyed with the first try and may be given anew."""

    token: str | None = Field(default=None, max_length=500, repr=False)


class StudentMake(BaseModel):
    """Cut a student out of a teacher."""

    name: Name
    teacher_id: int
    dataset_version_id: int | None = None
    prune: PruneSpec


class StudentSizes(BaseModel):
    """What a student would keep of a teacher."""

    teacher_id: int
    prune: PruneSpec


class RegisterForm(BaseModel):
    """The page's form: one source of two, and what the checkpoint is for."""

    name: NameOrEmpty = ""
    kind: Literal["folder", "hub"] = "folder"
    path: str = Field(default="", max_length=1000)
    repo_id: str = Field(default="", max_length=200)
    revision: str = Field(default="main", min_length=1, max_length=200)
    token: str = Field(default="", max_length=500, repr=False)
    role: Literal["", "teacher", "student"] = ""

    def source(self) -> CheckpointSource:
        """Return what was filled in. Errors: InvalidInput naming the empty field."""
        if self.kind == "folder":
            if not self.path.strip():
                raise InvalidInput("Name the folder.", fields={"path": "Is needed."})
            return FolderSource(path=self.path.strip())
        if not self.repo_id.strip():
            raise InvalidInput("Name the repository.", fields={"repo_id": "Is needed."})
        return HubSource(repo_id=self.repo_id.strip(), revision=self.revision.strip())

    def add(self) -> CheckpointAdd:
        """Return the request; without a name the source's last part names it."""
        source = self.source()
        origin = source.path if isinstance(source, FolderSource) else source.repo_id
        name = self.name or origin.rstrip("/").rsplit("/", 1)[-1].strip()[:MOST]
        if not is_visible(name):
            raise InvalidInput("The checkpoint needs a name.", fields={"name": "Is needed."})
        return CheckpointAdd(name=name, source=source, token=self.token or None)


class PruneForm(BaseModel):
    """The page's form: sizes left empty stay the teacher's."""

    name: NameOrEmpty = ""
    teacher_id: int
    depth: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    ffn_width: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    dataset_version_id: int | None = None
    calibration_conversations: int = Field(default=64, ge=1, le=10_000)
    student: bool = False
    """Make it the project's student."""

    def prune(self) -> PruneSpec:
        sizes = ("depth", "width", "ffn_width", "heads", "kv_heads", "calibration_conversations")
        return PruneSpec.model_validate(self.model_dump(include=set(sizes)))


class StudentEstimate(BaseModel):
    """A student before it is made: exact counts, and how much smaller it would be."""

    card: CheckpointCard
    compression: Compression


class CheckpointOut(BaseModel):
    """`compression` and `tokenizer` compare it with the project's teacher, once both are ready."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    state: str
    origin: dict[str, Any]
    card: dict[str, Any] | None
    error: str | None
    job_id: int | None
    created_at: datetime
    students: list[int] = Field(default_factory=list)
    """Ids of the checkpoints cut from it."""
    role: Literal["", "teacher", "student"] = ""
    compression: Compression | None = None
    tokenizer: TokenizerVerdict | None = None
