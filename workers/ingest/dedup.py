"""What log lines say about one produced turn: exact duplicates merge, whatever their order."""

from dataclasses import dataclass

from app.specs.conversation import Message

Facts = tuple[bool, tuple[str, ...], str, str]
"""Off as a target, its flags, model and finish reason; the smallest of several is kept."""


@dataclass(slots=True)
class Produced:
    """A turn that log lines produced. Offsets point into the spool; `line` orders first lines."""

    facts: Facts
    reference: str | None = None
    ended: bool = False
    """Whether a call ended here, not only a taught turn of a fine-tune history."""
    line: int = 0
    place: str = ""
    tools: bytes = b""
    metadata: int = -1
    session: str | None = None

    @property
    def is_target(self) -> bool:
        return not self.facts[0]

    def merge(self, other: "Produced") -> bool:
        """Take in another line's word on the same turn; True when it is a duplicate of a call.

        The cleanest facts win, a reference fills an empty one, the first line gives the metadata.
        """
        self.facts = min(self.facts, other.facts)
        if other.reference is not None:
            mine = self.reference
            self.reference = other.reference if mine is None else min(mine, other.reference)
        duplicate = self.ended and other.ended
        if other.ended and (not self.ended or other.line < self.line):
            self.line, self.place, self.metadata = other.line, other.place, other.metadata
            self.session = other.session
        if other.ended:
            self.tools = min(self.tools, other.tools) if self.ended else other.tools
            self.ended = True
        return duplicate


def facts_of(answer: Message, flags: tuple[str, ...]) -> Facts:
    """Return the facts of an answer whose call carries `flags`."""
    return (bool(flags), flags, answer.model or "", answer.finish_reason or "")
