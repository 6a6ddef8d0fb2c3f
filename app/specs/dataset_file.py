"""One conversation as one row of a dataset file, and back."""

import json
from collections.abc import Mapping
from typing import Any

from app.specs.conversation import Conversation

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
    "has_reference",
    "first_user",
)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def to_row(conversation: Conversation) -> dict[str, Any]:
    """Give the row of `conversation`; nested values are canonical JSON text."""
    messages = conversation.messages
    return {
        "id": conversation.id,
        "group": conversation.group,
        "split": conversation.split,
        "source": conversation.source,
        "metadata": _text(conversation.metadata),
        "tools": _text(list(conversation.tools)),
        "messages": _text([m.model_dump(mode="json", exclude_defaults=True) for m in messages]),
        "n_messages": len(messages),
        "n_targets": sum(m.is_target for m in messages),
        "has_reference": conversation.has_reference,
        "first_user": next((m.content for m in messages if m.role == "user"), ""),
    }


def from_row(row: Mapping[str, Any]) -> Conversation:
    """Rebuild the conversation of a row that `to_row` made."""
    return Conversation.model_validate(
        {
            "messages": json.loads(row["messages"]),
            "tools": json.loads(row["tools"]),
            "metadata": json.loads(row["metadata"]),
            "source": row["source"],
            "group": row["group"],
            "split": row["split"],
        }
    )
