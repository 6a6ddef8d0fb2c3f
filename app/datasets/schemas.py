"""What comes in and goes out about uploads, imports and dataset versions."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidInput
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


class ImportForm(BaseModel):
    """What the import page asks for: a dataset that exists or a new name, shares in percent."""

    upload_ids: list[int] = Field(default_factory=list)
    into: str = Field(default="", max_length=80)
    """Name of a dataset that exists; empty: a new one, called `name`."""
    name: str = Field(default="", max_length=80)
    format: str = Field(default="auto", max_length=80)
    reference_path: str | None = Field(default=None, max_length=300)
    validation: float = Field(default=10, ge=0, le=50)
    test: float = Field(default=20, ge=0, le=50)

    @model_validator(mode="after")
    def _leaves_training(self) -> "ImportForm":
        if self.validation + self.test > 90:  # noqa: PLR2004 - a tenth is left
            raise ValueError("Validation and test together may take at most 90 %.")
        return self

    def request(self) -> "ImportRequest":
        """Return the request as the API takes it. Raises InvalidInput for what is left out."""
        fields: dict[str, str] = {}
        if not self.upload_ids:
            fields["upload_ids"] = "Choose at least one file that is stored."
        if not (self.into or self.name.strip()):
            fields["name"] = "Give the new dataset a name."
        if fields:
            raise InvalidInput(" ".join(fields.values()), fields=fields)
        return ImportRequest(
            dataset=self.into or self.name.strip(),
            upload_ids=self.upload_ids,
            format=self.format,
            reference_path=self.reference_path,
            validation_share=self.validation / 100,
            test_share=self.test / 100,
        )


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
    number: int
    state: str
    funnel: dict[str, Any] | None
    content_sha256: str | None
    frozen_at: datetime | None
    job_id: int | None
    error: str | None


Turns = Literal["1", "2-3", "4-7", "8+"]
TURN_RANGES: dict[Turns, tuple[int, int | None]] = {
    "1": (1, 1),
    "2-3": (2, 3),
    "4-7": (4, 7),
    "8+": (8, None),
}
"""Least and most user messages of a conversation."""


class ConversationFilter(BaseModel):
    """Which conversations of a version are listed; `search` looks at everything they say."""

    split: Split | None = None
    reference: bool | None = None
    turns: Turns | None = None
    search: str = Field(default="", max_length=200)


class ConversationFacets(BaseModel):
    """How many conversations match, and how many each value of a filter would leave.

    A filter's own counts follow the search and the other filters.
    """

    total: int = 0
    matching: int = 0
    split: dict[str, int] = Field(default_factory=dict)
    reference: dict[str, int] = Field(default_factory=dict)
    turns: dict[str, int] = Field(default_factory=dict)


class ConversationLine(BaseModel):
    """One line of the list; `row` is its place in the file and its address."""

    row: int
    id: str
    split: str
    n_messages: int
    n_targets: int
    n_turns: int
    n_chars: int
    has_reference: bool
    first_user: str


class ConversationPage(BaseModel):
    lines: list[ConversationLine]
    next_after: int | None


class ConversationOut(BaseModel):
    row: int
    conversation: Conversation
