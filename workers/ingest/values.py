"""Typed values of the importer: raw records, logged calls and rejects before they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.specs.conversation import Message


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of an upload; `value` is None when `reason` says why it does not parse."""

    line: int
    value: dict[str, Any] | None
    raw: str
    reason: str = ""
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One request and its answer. Request turns with `is_target` are taught as well."""

    request: tuple[Message, ...]
    answer: Message
    tools: tuple[dict[str, Any], ...] = ()
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    flags: tuple[str, ...] = ()
    line: int = 0
    source: str = ""
    session: str | None = None
    user: str | None = None
    timestamp: str | None = None


class Unusable(Exception):  # noqa: N818 - a verdict on one record, not a failure of the import
    """A record that is no call: `reason` is counted, `detail` is shown."""

    def __init__(self, reason: str, detail: str = "", *, skipped: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.skipped = skipped


class Format(Protocol):
    """What a module of `workers.ingest.formats` offers."""

    NAME: str

    def sniff(self, sample: list[dict[str, Any]]) -> tuple[float, str]: ...

    def parse(self, record: dict[str, Any], line: int) -> LoggedCall: ...
