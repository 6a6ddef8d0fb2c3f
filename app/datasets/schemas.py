"""What comes in and goes out about uploads, imports and dataset versions."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.specs.conversation import Conversation, FormatName, Split


class ImportRequest(BaseModel):
    """Import stored uploads into a new draft version of a dataset."""

    dataset: str = Field(min_length=1, max_length=80)
    upload_ids: list[int] = Field(min_length=1, max_length=200)
    format: FormatName | Literal["auto"] = "auto"
    reference_path: str | None = Field(default=None, max_length=300)
    validation_share: float = Field(default=0.1, ge=0, le=0.5)
    test_share: float = Field(default=0.2, ge=0, le=0.5)

    @model_validator(mode="after")
    def _leaves_training(self) -> "ImportRequest":
        if self.validation_share + self.test_share > 0.9:  # noqa: PLR2004 - a tenth is left
            raise ValueError("validation and test together may take at most 0.9")
        return self


class GenerationRequest(BaseModel):
    """Let a checkpoint answer the prompts of an upload (JSONL of OpenAI chat requests)."""

    checkpoint: str | int
    """Name or id."""
    prompts_upload_id: int
    max_new_tokens: int = Field(default=64, ge=1, le=8192)
    batch_size: int = Field(default=32, ge=1, le=1024)
    temperature: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    seed: int = 0


class UploadOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    key: str
    filename: str
    size: int | None
    sha256: str | None
    state: str
    report: dict[str, Any] | None
    error: str | None
    job_id: int | None


class VersionOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    dataset_id: int
    dataset_name: str
    number: int
    state: str
    funnel: dict[str, Any] | None
    content_sha256: str | None
    frozen_at: datetime | None
    job_id: int | None
    error: str | None


class ConversationFilter(BaseModel):
    """Which conversations of a version are listed."""

    split: Split | None = None
    reference: bool | None = None
    search: str = Field(default="", max_length=200)


class ConversationLine(BaseModel):
    """One line of the list; `row` is its place in the file and its address."""

    row: int
    id: str
    split: str
    n_messages: int
    n_targets: int
    has_reference: bool
    first_user: str


class ConversationPage(BaseModel):
    lines: list[ConversationLine]
    next_after: int | None


class ConversationOut(BaseModel):
    row: int
    conversation: Conversation
