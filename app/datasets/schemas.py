"""What comes in and goes out about uploads, imports and dataset versions."""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.datasets.models import Upload
from app.errors import InvalidInput
from app.specs.conversation import (
    Conversation,
    FieldSeen,
    FormatName,
    InspectReport,
    RecordPreview,
    Split,
)
from app.specs.names import Name, NameOrEmpty, is_visible


class ImportRequest(BaseModel):
    """Import stored uploads into a new draft version of a dataset."""

    dataset: Name
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


NEW = "*"
"""What the import page's choice of a dataset says for a new one."""


class ImportForm(BaseModel):
    """What the import page asks for: a dataset that exists or a new name, shares in percent."""

    upload_ids: list[int] = Field(default_factory=list)
    into: NameOrEmpty = NEW
    """Name of a dataset that exists, or NEW: one called `name`."""
    name: NameOrEmpty = ""
    format: FormatName | Literal["auto"] = "auto"
    reference_path: str | None = Field(default=None, max_length=300)
    validation: float = Field(default=10, ge=0, le=50)
    test: float = Field(default=20, ge=0, le=50)

    @model_validator(mode="after")
    def _leaves_training(self) -> "ImportForm":
        if self.validation + self.test > 90:  # noqa: PLR2004 - a tenth is left
            raise ValueError("Validation and test together may take at most 90 %.")
        return self

    def request(self, known: Collection[str]) -> "ImportRequest":
        """Return the request as the API takes it; `known` are the names of the project's datasets.

        Raises InvalidInput for what is left out, and for a new dataset whose name is taken.
        """
        fields: dict[str, str] = {}
        if not self.upload_ids:
            fields["upload_ids"] = "Choose at least one file that is stored."
        if self.into == NEW and not self.name:
            fields["name"] = "Give the new dataset a name."
        if self.into == NEW and self.name in known:
            fields["name"] = (
                f"“{self.name}” is there already: import into it, or give another name."
            )
        if fields:
            raise InvalidInput(" ".join(fields.values()), fields=fields)
        return ImportRequest(
            dataset=self.name if self.into == NEW else self.into,
            upload_ids=self.upload_ids,
            format=self.format,
            reference_path=self.reference_path,
            validation_share=self.validation / 100,
            test_share=self.test / 100,
        )


class AnswerForm(BaseModel):
    """Let a checkpoint answer an upload: JSONL of OpenAI chat requests, bare or in a log of them.

    `batch_size` is of a checkpoint here; of one behind a server its own number of requests counts.
    """

    prompts_upload_id: int
    max_new_tokens: int = Field(default=64, ge=1, le=8192)
    batch_size: int = Field(default=32, ge=1, le=1024)
    temperature: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class GenerationRequest(AnswerForm):
    """The same, with the checkpoint that answers."""

    checkpoint: str | int
    """Name or id."""


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
    leaves_at: datetime | None = None
    """When it is removed if no more bytes come; null once it is stored."""


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
    warnings: list[str] = Field(default_factory=list)
    """What is doubtful about its data, in sentences."""


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
    n_tokens: int | None = None
    """By the teacher's tokenizer; null where it was not counted when the version was frozen."""
    has_reference: bool
    first_user: str


class ConversationPage(BaseModel):
    lines: list[ConversationLine]
    next_after: int | None


class ConversationListing(ConversationPage):
    """A page with the counts of all that match; those after the first page leave them out."""

    facets: ConversationFacets | None


class ConversationOut(BaseModel):
    row: int
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class ImportChoices:
    """What the import page offers: the uploads there are, and what is chosen of them so far."""

    uploads: Sequence[Upload]
    stored: Mapping[int, int]
    """Bytes stored, by upload."""
    leaves: Mapping[int, datetime | None]
    """When an upload that gets no more bytes is removed."""
    chosen: Sequence[Upload]
    reports: Mapping[int, InspectReport]

    def off(self, wanted: str) -> str | None:
        """Why the import cannot start yet with the format wanted; None when it can."""
        if not self.chosen:
            looking = any(upload.state == "uploaded" for upload in self.uploads)
            return "the file is being looked at." if looking else "no file is stored and chosen."
        if wanted != "auto":
            return None
        found = {self.reports[u.id].format: u.filename for u in self.chosen}
        if None in found:
            return f"“{found[None]}” is in no known format. Leave it out, or choose its format."
        if len(found) > 1:
            (one, first), (other, second) = list(found.items())[:2]
            return f"“{first}” is {one}, “{second}” is {other}. Choose files of one format."
        return None

    def new_name(self, taken: Collection[str]) -> str:
        """Return what a new dataset may be called: the first chosen file, without its endings.

        A file that is still on its way names it too: what the page shows then is kept.
        """
        files = self.chosen or self.uploads
        file = files[0].filename if files else ""
        stem = file.partition(".")[0].strip()[:70]
        stem = stem if is_visible(stem) else "traffic"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    @property
    def models(self) -> dict[str, int]:
        """Return the logged models of the chosen files' first records, and how many answers."""
        found: Counter[str] = Counter()
        for upload in self.chosen:
            found.update(self.reports[upload.id].models)
        return dict(found)

    @property
    def fields(self) -> list[FieldSeen]:
        """Return where a reference may be taken from, over the chosen files."""
        found: dict[str, FieldSeen] = {}
        for upload in self.chosen:
            for seen in self.reports[upload.id].reference_candidates:
                before = found.get(seen.path)
                filled = seen.filled + (before.filled if before else 0)
                found[seen.path] = (before or seen).model_copy(update={"filled": filled})
        return sorted(found.values(), key=lambda field: not field.likely)

    @property
    def seen(self) -> int:
        """How many records of the chosen files were looked at."""
        return sum(self.reports[upload.id].records_seen for upload in self.chosen)

    @property
    def formats(self) -> tuple[str, ...]:
        return next((r.known_formats for r in self.reports.values()), ())


def previewed(report: InspectReport, record: int, reference_path: str | None) -> RecordPreview:
    """Return one previewed record, with the reference that `reference_path` would give it."""
    found = report.previews[record]
    reference = found.fields.get(reference_path) if reference_path else None
    if reference is None or found.conversation is None:
        return found
    *before, answer = found.conversation.messages
    answer = answer.model_copy(update={"reference": reference})
    changed = {"messages": (*before, answer)}
    return found.model_copy(update={"conversation": found.conversation.model_copy(update=changed)})
