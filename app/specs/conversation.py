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
    def has_reference(self) -> bool:
        return any(m.is_target and m.reference is not None for m in self.messages)


class Reject(Spec):
    """A record that became no call; `excerpt` is at most 200 characters, escaped by pages."""

    line: int
    reason: str
    kind: Literal["skipped", "quarantined"]
    detail: str = ""
    excerpt: str = ""


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


class InspectReport(Spec):
    """What an upload looks like from its first records; nothing is stored yet."""

    format: FormatName | None
    reason: str
    """Why this format, or what was seen instead, in a sentence."""
    records_seen: int
    previews: tuple[RecordPreview, ...]
    reference_candidates: tuple[str, ...] = ()
    models: dict[str, int] = Field(default_factory=dict)
