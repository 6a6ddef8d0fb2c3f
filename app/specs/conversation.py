"""Conversations, what an import made of the bytes it was given, and rendered ids."""

from typing import Any, Literal

from pydantic import Field, model_validator

from app.specs.base import Spec
from app.specs.fingerprint import fingerprint

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "validation", "test"]
FormatName = str
"""The name of a module in `workers.ingest.formats`: a new format edits nothing else."""


class ToolCall(Spec):
    """A call the assistant made; `arguments` is canonical JSON text where it parses."""

    name: str
    arguments: str
    id: str | None = None


class Message(Spec):
    """One message. `is_target` is set on assistant turns that a log line produced."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    is_target: bool = False
    reference: str | None = None
    """Ground truth for this turn, kept apart from the logged answer in `content`."""
    finish_reason: str | None = None
    model: str | None = None
    """The model that answered, as the log names it."""
    flags: tuple[str, ...] = ()
    """Why a produced turn is off as a target: image, cut_answer, health_check, weight_0 …"""

    @property
    def characters(self) -> int:
        """How long what it says is, tool calls included: known before any tokenizer is."""
        return len(self.content) + sum(len(c.name) + len(c.arguments) for c in self.tool_calls)


class Conversation(Spec):
    """A whole conversation after folding; `id` is the fingerprint of what it says."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
    source: str = ""
    """File and line of the last call that produced it, for people."""
    group: str = ""
    """Root of the chain (system and first user turn): what splits and statistics cluster by."""
    split: Split = "train"

    @property
    def id(self) -> str:
        """The content address of the messages and tools (64 hex digits)."""
        return fingerprint(
            [[m.model_dump(mode="json", exclude_defaults=True) for m in self.messages], self.tools]
        )

    @property
    def last_target(self) -> int | None:
        """The place of the turn that is evaluated: what stands before it is the prompt."""
        places = range(len(self.messages) - 1, -1, -1)
        turns = ((i, self.messages[i]) for i in places)
        return next((i for i, m in turns if m.is_target and m.role == "assistant"), None)

    @property
    def has_reference(self) -> bool:
        return any(m.is_target and m.reference is not None for m in self.messages)

    @property
    def characters(self) -> int:
        return sum(m.characters for m in self.messages)


class Reject(Spec):
    """A record that became no call; `excerpt` is at most 200 characters, escaped by pages."""

    line: int
    reason: str
    kind: Literal["skipped", "quarantined"]
    detail: str = ""
    excerpt: str = ""
    source: str = ""
    """The file's name, for people: with several files a line alone says little."""


class ImportFunnel(Spec):
    """What became of every record. The sum must hold, or the import is a bug of ours."""

    format: FormatName
    records: int
    calls: int
    duplicates: int
    joined: int = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    quarantined: dict[str, int] = Field(default_factory=dict)
    folded: int
    conversations: int
    targets: int
    flagged: dict[str, int] = Field(default_factory=dict)
    """Calls that are off as targets, by flag; they stay calls."""
    references: int = 0
    models: dict[str, int] = Field(default_factory=dict)
    splits: dict[str, int] = Field(default_factory=dict)
    referenced: dict[str, int] | None = None
    """Conversations with a reference by split; None: imported before this was counted."""

    @property
    def branches(self) -> int:
        """Conversations beside those of the calls: each further choice of a call ends one."""
        return self.conversations - (self.calls - self.folded)

    @model_validator(mode="after")
    def _adds_up(self) -> "ImportFunnel":
        parts = self.calls + self.duplicates + self.joined
        parts += sum(self.skipped.values()) + sum(self.quarantined.values())
        if parts != self.records:
            raise ValueError(
                f"the import funnel does not add up: {parts} of {self.records} records"
            )
        return self


class RecordPreview(Spec):
    """One record as detection understood it, shown before anything is imported."""

    line: int
    raw: str
    conversation: Conversation | None = None
    reject: Reject | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    """Scalar fields by JSON path (or CSV column): what a reference column may be."""


class FieldSeen(Spec):
    """A scalar field of the first records: where a reference may be taken from."""

    path: str
    """JSON path (a.b.c) or CSV column, as an import takes it."""
    filled: int
    """In how many of the records seen it holds something."""
    sample: str
    """One of its values, at most 200 characters."""
    likely: bool = False
    """Its name says that it is ground truth (reference, label, expected …)."""


class InspectReport(Spec):
    """What an upload looks like from its first records; nothing is stored yet."""

    format: FormatName | None
    reason: str
    """Why this format, or what was seen instead, in a sentence."""
    records_seen: int
    previews: tuple[RecordPreview, ...]
    reference_candidates: tuple[FieldSeen, ...] = ()
    """The likely ones first, then in the order in which they were seen."""
    models: dict[str, int] = Field(default_factory=dict)
    calls: int = 0
    """How many of the records seen would become calls; the rest is in `rejected` by reason."""
    rejected: dict[str, int] = Field(default_factory=dict)
    known_formats: tuple[FormatName, ...] = ()
