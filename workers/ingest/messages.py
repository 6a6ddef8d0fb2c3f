"""OpenAI-shaped messages and tools to our own, shared by formats."""

from typing import Any

import orjson

from app.specs.conversation import Message, ToolCall
from workers.ingest.canonical import canonical_json
from workers.ingest.reading import scrub, too_deep
from workers.ingest.values import Unusable

_ROLES = {"developer": "system", "function": "tool", "human": "user", "gpt": "assistant"}


def unpack(value: Any, levels: int = 2) -> Any:
    """Parse JSON inside a string, up to two levels."""
    for _ in range(levels):
        if not isinstance(value, str) or value[:1] not in ("{", "[", '"'):
            return value
        try:
            inner = orjson.loads(value)
        except ValueError:
            return value
        if too_deep(inner):
            raise Unusable("too_deep")
        value = scrub(inner)
    return value


def _part(part: Any, flags: set[str]) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return ""
    kind = str(part.get("type", "text"))
    if "image" in kind:
        flags.add("image")
    elif "audio" in kind or kind == "file":
        flags.add("audio" if "audio" in kind else "file")
    text = part.get("text", part.get("refusal", part.get("value", "")))
    return text if isinstance(text, str) else ""


def text_of(content: Any, flags: set[str]) -> str:
    """The text of a content: a string, a list of parts, or null."""
    if isinstance(content, list):
        return "".join(_part(part, flags) for part in content)
    if isinstance(content, dict):
        return _part(content, flags) or canonical_json(content)
    return "" if content is None else str(content)


def _call(raw: Any) -> ToolCall:
    if not isinstance(raw, dict):
        raise Unusable("tool_call_broken")
    function = raw.get("function", raw)
    if not isinstance(function, dict) or not function.get("name"):
        raise Unusable("tool_call_broken", "a tool call without a name")
    arguments = unpack(function.get("arguments", ""))
    text = arguments if isinstance(arguments, str) else canonical_json(arguments)
    identifier = raw.get("id")
    return ToolCall(
        name=str(function["name"]),
        arguments=text,
        id=str(identifier) if identifier else None,
    )


def message_of(raw: Any, flags: set[str]) -> Message:
    """One message; raise Unusable where it is none."""
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise Unusable("message_broken", "a message without a role")
    role = _ROLES.get(raw["role"], raw["role"])
    if role not in ("system", "user", "assistant", "tool"):
        raise Unusable("role_unknown", str(raw["role"])[:80])
    calls = unpack(raw.get("tool_calls")) or []
    if raw.get("function_call"):
        calls = [raw["function_call"]]
    if not isinstance(calls, list):
        raise Unusable("tool_call_broken")
    reasoning = raw.get("reasoning_content") or raw.get("reasoning")
    content = text_of(raw.get("content"), flags) or str(raw.get("refusal") or "")
    if "litellm_truncated" in content or "<truncated due to size exceeding limit>" in content:
        raise Unusable("truncated_by_logger", "the logger cut a long text; export it uncut")
    return Message.model_validate(
        {
            "role": role,
            "content": content,
            "tool_calls": tuple(_call(call) for call in calls),
            "tool_call_id": str(raw["tool_call_id"]) if raw.get("tool_call_id") else None,
            "name": str(raw["name"]) if raw.get("name") else None,
            "reasoning": reasoning if isinstance(reasoning, str) else None,
        }
    )


def messages_of(raw: Any, flags: set[str]) -> tuple[Message, ...]:
    """All messages of a request; raise Unusable when there are none."""
    listed = unpack(raw)
    if not isinstance(listed, list) or not listed:
        raise Unusable("messages_empty")
    return tuple(message_of(item, flags) for item in listed)


def tools_of(body: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools of a request; legacy functions become tools."""
    tools = unpack(body.get("tools")) or []
    legacy = unpack(body.get("functions")) or []
    found = list(tools) if isinstance(tools, list) else []
    if isinstance(legacy, list):
        found += [{"type": "function", "function": item} for item in legacy]
    return tuple(item for item in found if isinstance(item, dict))
