"""Typed values of the importer: a record read, the call it logs, a verdict that it logs none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from app.specs.conversation import Message

EXCERPT_CHARS = 200
RejectKind = Literal["skipped", "quarantined"]


@dataclass(frozen=True, slots=True)
class Record:
    """One parsed object of a file: a JSON object, or a CSV row by column name.

    `line` counts from 1: the physical line it begins on or, in one JSON array, its position.
    """

    line: int
    value: dict[str, Any]
    raw: bytes
    place: str
    """File and line, for people: `log.jsonl:12`, or `log.json[12]` in an array."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One request and its answer, whatever format logged it.

    Ids of tool calls are their position in the assistant message that made them ("0", "1" …); a
    tool message names that position. Assistant messages of `messages` with `is_target` are taught
    too (fine-tune files); the answer is taught when `flags` is empty.
    """

    messages: tuple[Message, ...]
    answer: Message
    other_answers: tuple[Message, ...] = ()
    """The further choices of a request with n > 1: branches of the same conversation."""
    tools: tuple[dict[str, Any], ...] = ()
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    flags: tuple[str, ...] = ()
    line: int = 0
    place: str = ""
    session: str | None = None
    user: str | None = None
    timestamp: str | None = None


class Unusable(Exception):
    """A record that is no call: `skipped` teaches nothing, `quarantined` is damaged."""

    def __init__(self, kind: RejectKind, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.detail = detail


def skipped(reason: str, detail: str = "") -> Unusable:
    return Unusable("skipped", reason, detail[:EXCERPT_CHARS])


def quarantined(reason: str, detail: str = "") -> Unusable:
    return Unusable("quarantined", reason, detail[:EXCERPT_CHARS])


@dataclass(frozen=True, slots=True)
class Sniff:
    """How well a format explains a sample: share of its records in 0 … 1, and why in words."""

    score: float
    reason: str


class Format(Protocol):
    """What a module of `workers.ingest.formats` offers as `FORMAT`; nothing else registers it."""

    @property
    def name(self) -> str:
        """The name people and the API use."""

    def sniff(self, sample: Sequence[Mapping[str, Any]]) -> Sniff:
        """Judge the first records of a file; never raises."""

    def parse(self, record: Record) -> LoggedCall:
        """Read one record; raise Unusable (a Reject in the making) when it is no call."""
