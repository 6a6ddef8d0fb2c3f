"""What comes in and goes out about checkpoints."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidInput
from app.specs.checkpoint import (
    CheckpointCard,
    CheckpointSource,
    Compression,
    EndpointSource,
    FolderSource,
    HubSource,
    PruneSpec,
    TokenizerSource,
    TokenizerVerdict,
)
from app.specs.endpoint import base_url_of, url_problem
from app.specs.names import MOST, Name, NameOrEmpty, is_visible

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
Secret = Annotated[str | None, Field(max_length=500, pattern=r"^[\x21-\x7e]*$", repr=False)]
"""A key or token as it travels in a header: visible ASCII."""


class CheckpointAdd(BaseModel):
    """Register a folder, a hub repository or a server; secrets are kept apart, never returned.

    `token` is the hub's, destroyed after the download; `api_key` a server's, kept for later jobs.
    """

    name: Name
    source: CheckpointSource
    token: str | None = Field(default=None, max_length=500, repr=False)
    api_key: Secret = None


class CheckpointRetry(BaseModel):
    """Try again; a hub token was destroyed with the first try and may be given anew."""

    token: str | None = Field(default=None, max_length=500, repr=False)
    api_key: Secret = None
    """A server's key, where another one shall be used from now on."""


class ServerKey(BaseModel):
    """The API key that later jobs send to a checkpoint's server; null or empty forgets it."""

    api_key: Secret = None


def tokenizer_source(text: str) -> TokenizerSource:
    """Return a folder, or a hub repository as owner/name[@revision]. Errors: InvalidInput."""
    if text.startswith(("/", "~", ".")):
        return FolderSource(path=text)
    found = HUB_ID.fullmatch(text)
    if found is None:
        sentence = "Write a folder's path, or a hub repository as owner/name[@revision]."
        raise InvalidInput("The tokenizer cannot be found.", fields={"tokenizer": sentence})
    return HubSource(repo_id=found["repo"], revision=found["revision"] or "main")


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
    """The page's form: one source of three, and what the checkpoint is for."""

    name: NameOrEmpty = ""
    kind: Literal["folder", "hub", "endpoint"] = "folder"
    path: str = Field(default="", max_length=1000)
    repo_id: str = Field(default="", max_length=200)
    revision: str = Field(default="main", min_length=1, max_length=200)
    token: str = Field(default="", max_length=500, repr=False)
    base_url: str = Field(default="", max_length=500)
    model: str = Field(default="", max_length=300)
    tokenizer: str = Field(default="", max_length=1000)
    at_once: int = Field(default=8, ge=1, le=256)
    api_key: str = Field(default="", max_length=500, pattern=r"^[\x21-\x7e]*$", repr=False)
    role: Literal["", "teacher", "student"] = ""

    def source(self) -> CheckpointSource:
        """Return what was filled in. Errors: InvalidInput naming the empty field."""
        if self.kind == "endpoint":
            return self._server()
        if self.kind == "folder":
            if not self.path.strip():
                raise InvalidInput("Name the folder.", fields={"path": "Is needed."})
            return FolderSource(path=self.path.strip())
        if not self.repo_id.strip():
            raise InvalidInput("Name the repository.", fields={"repo_id": "Is needed."})
        return HubSource(repo_id=self.repo_id.strip(), revision=self.revision.strip())

    def _server(self) -> EndpointSource:
        url, model, tokenizer = base_url_of(self.base_url), self.model.strip(), self.tokenizer
        problem = url_problem(url) if url else "Is needed, such as https://host:8000/v1."
        if problem is not None:
            raise InvalidInput("The server cannot be asked.", fields={"base_url": problem})
        if not model:
            raise InvalidInput("Name the served model.", fields={"model": "Is needed."})
        named = tokenizer_source(tokenizer.strip()) if tokenizer.strip() else None
        return EndpointSource(base_url=url, model=model, tokenizer=named, at_once=self.at_once)

    def add(self) -> CheckpointAdd:
        """Return the request; without a name the source's last part names it."""
        source = self.source()
        origin = source.path if isinstance(source, FolderSource) else ""
        origin = source.repo_id if isinstance(source, HubSource) else origin
        origin = source.model if isinstance(source, EndpointSource) else origin
        name = self.name or origin.rstrip("/").rsplit("/", 1)[-1].strip()[:MOST]
        if not is_visible(name):
            raise InvalidInput("The checkpoint needs a name.", fields={"name": "Is needed."})
        return CheckpointAdd(
            name=name, source=source, token=self.token or None, api_key=self.api_key or None
        )


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
    compression: Compression | None


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
