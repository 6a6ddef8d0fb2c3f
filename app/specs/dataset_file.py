"""One conversation as one row of a dataset file, and back: what writer and readers agree on."""

import json
from collections.abc import Mapping
from typing import Any

from app.specs.conversation import Conversation, Message

COLUMNS = (
    "id",
    "group",
    "split",
    "source",
    "metadata",
    "tools",
    "messages",
    "n_messages",
    "n_targets",
    "n_turns",
    "n_chars",
    "has_reference",
    "first_user",
)
"""Texts, but for counts (`n_turns`: of user messages) and the truth value `has_reference`."""


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def to_row(conversation: Conversation) -> dict[str, Any]:
    """Return the row of a conversation; metadata, tools and messages are canonical JSON text."""
    messages = conversation.messages
    return {
        "id": conversation.id,
        "group": conversation.group,
        "split": conversation.split,
        "source": conversation.source,
        "metadata": _text(conversation.metadata),
        "tools": _text(conversation.tools),
        "messages": _text([m.model_dump(mode="json", exclude_defaults=True) for m in messages]),
        "n_messages": len(messages),
        "n_targets": sum(m.is_target for m in messages),
        "n_turns": sum(m.role == "user" for m in messages),
        "n_chars": conversation.characters,
        "has_reference": conversation.has_reference,
        "first_user": next((m.content for m in messages if m.role == "user"), ""),
    }


def from_row(row: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a row; columns beyond those it is made of are not needed."""
    return Conversation(
        messages=tuple(Message.model_validate(item) for item in json.loads(row["messages"])),
        tools=tuple(json.loads(row["tools"])),
        metadata=json.loads(row["metadata"]),
        source=row["source"],
        group=row["group"],
        split=row["split"],
    )
