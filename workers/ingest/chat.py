"""OpenAI-shaped messages, tools and tool-call pairing: what the chat formats share."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from app.specs.conversation import Message, Role, ToolCall
from workers.ingest.jsontext import canonical, kind_of, unpack, words
from workers.ingest.values import quarantined, skipped

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_MEDIA = {"image": "image", "audio": "audio", "file": "file", "document": "file", "video": "video"}
_CACHED_CHARS = 2048
TRUNCATION_MARKS = ("litellm_truncated", "<truncated due to size exceeding limit>")


def _part(part: Any, flags: set[str]) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise quarantined("content_broken", f"a content part that is {kind_of(part)}")
    kind = str(part.get("type") or "text")
    for word, flag in _MEDIA.items():
        if word in kind:
            flags.add(flag)
            return ""
    for key in ("text", "refusal", "value"):
        if isinstance(part.get(key), str):
            return str(part[key])
    flags.add("other_part")
    return ""


def text_of(content: Any, flags: set[str]) -> str:
    """Return the text of a content (text, parts or null); media parts leave a flag, no text."""
    if isinstance(content, str):
        text = content
    elif content is None:
        return ""
    elif isinstance(content, list):
        text = "".join([_part(part, flags) for part in content])
    elif isinstance(content, dict):
        text = _part(content, flags)
    else:
        raise quarantined("content_broken", f"a content that is {kind_of(content)}")
    for mark in TRUNCATION_MARKS:
        if mark in text:
            raise quarantined("truncated_by_logger", f"{mark}: export the log uncut")
    return text


def _tool_call(raw: Any, position: int, flags: set[str]) -> ToolCall:
    function = unpack(raw.get("function", raw)) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise quarantined("tool_call_broken", "a tool call without a name")
    arguments = function.get("arguments", function.get("input", ""))
    value = unpack(arguments)
    if isinstance(value, str):
        text = value.strip() or "{}"
    else:
        text = canonical(value if value is not None else {})
    if not isinstance(value, dict) and text != "{}":
        flags.add("broken_arguments")
    for mark in TRUNCATION_MARKS:
        if mark in text:
            raise quarantined("truncated_by_logger", f"{mark}: export the log uncut")
    return ToolCall(name=function["name"], arguments=text, id=str(position))


def tool_calls_of(raw: Mapping[str, Any], flags: set[str]) -> tuple[ToolCall, ...]:
    """Return the calls of an assistant message, the legacy `function_call` among them."""
    calls = unpack(raw.get("tool_calls"))
    legacy = unpack(raw.get("function_call"))
    if not calls and isinstance(legacy, dict):
        calls = [{"function": legacy}]
    if not calls:
        return ()
    if not isinstance(calls, list):
        raise quarantined("tool_call_broken", f"tool_calls is {kind_of(calls)}")
    return tuple([_tool_call(call, at, flags) for at, call in enumerate(calls)])


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


@lru_cache(maxsize=4096)
def _plain(role: Role, content: str) -> Message:
    """Return a message of nothing but text; every line of a log repeats its history."""
    return Message(role=role, content=text_of(content, set()))


def message_of(raw: Any, flags: set[str], *, role: Role | None = None) -> Message:
    """Read one message; `flags` gathers what makes its turn unfit as a target.

    Raises Unusable: message_broken, unknown_role, content_broken, tool_call_broken,
    truncated_by_logger.
    """
    if not isinstance(raw, dict):
        raise quarantined("message_broken", f"a message that is {kind_of(raw)}")
    known = role or _ROLES.get(str(raw.get("role")))
    if known is None:
        raise quarantined("unknown_role", words(raw["role"]) if "role" in raw else "no role")
    content = raw.get("content")
    bare = len(raw) == 2 and "role" in raw  # noqa: PLR2004 - role and content
    if bare and isinstance(content, str) and len(content) <= _CACHED_CHARS:
        return _plain(known, content)
    own: set[str] = set()
    text = text_of(content, own)
    if known != "assistant":
        flags |= own
        name = _text_or_none(raw.get("name"))
        return Message(role=known, content=text, name=name, flags=tuple(sorted(own)))
    calls = tool_calls_of(raw, own)
    flags |= own
    return Message(
        role=known,
        content=text or _text_or_none(raw.get("refusal")) or "",
        tool_calls=calls,
        reasoning=_text_or_none(raw.get("reasoning_content"))
        or _text_or_none(raw.get("reasoning")),
    )


def _raw_ids(raw: Any) -> list[str | None]:
    calls = unpack(raw.get("tool_calls"))
    if not isinstance(calls, list):
        return [None]
    return [_text_or_none(call.get("id")) if isinstance(call, dict) else None for call in calls]


def _answered(raw: Mapping[str, Any], asked: Mapping[int, tuple[str | None, str]]) -> int:
    """Which open call a tool message answers: by id, else by name, else the first open one."""
    identifier, name = raw.get("tool_call_id"), raw.get("name")
    for at, (call_id, _) in asked.items():
        if identifier and call_id == identifier:
            return at
    for at, (_, call_name) in asked.items():
        if name and call_name == name:
            return at
    return next(iter(asked))


def pair_tools(raw: list[Any], messages: Sequence[Message]) -> tuple[Message, ...]:
    """Point every tool message at the position of the call it answers, mending lost ids by order.

    Tool messages that open a cut-off history are kept; raises Unusable (tool_pairing_broken) for
    any other that answers no call.
    """
    if not any(message.role == "tool" for message in messages):
        return tuple(messages)
    paired: list[Message] = []
    asked: dict[int, tuple[str | None, str]] = {}
    opening = True
    for source, message in zip(raw, messages, strict=True):
        if message.role == "tool":
            if asked:
                at = _answered(source, asked)
                del asked[at]
                message = message.model_copy(update={"tool_call_id": str(at)})  # noqa: PLW2901
            elif not opening:
                raise quarantined("tool_pairing_broken", "a tool result that answers no call")
        elif message.role != "system":
            opening = False
            if message.tool_calls:
                ids = _raw_ids(source)
                asked = {
                    at: (ids[at] if at < len(ids) else None, call.name)
                    for at, call in enumerate(message.tool_calls)
                }
            else:
                asked = {}
        paired.append(message)
    return tuple(paired)


def messages_of(raw: Any, flags: set[str]) -> tuple[Message, ...]:
    """Read a list of messages; raise Unusable when there are none or no user says anything."""
    listed = unpack(raw)
    if listed is None or listed == []:
        raise skipped("messages_empty")
    if not isinstance(listed, list):
        raise quarantined("messages_broken", f"messages is {kind_of(listed)}")
    rows = [unpack(item) for item in listed]
    history_flags: set[str] = set()
    messages = [message_of(item, history_flags) for item in rows]
    flags |= history_flags - {"broken_arguments"}  # of an older turn: no fault of this answer
    if not any(m.role == "user" and m.content.strip() for m in messages):
        raise skipped("no_user_text")
    return pair_tools(rows, messages)


def tools_of(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return the tools of a request; legacy `functions` become tools."""
    tools = unpack(body.get("tools"))
    if isinstance(tools, list) and tools:
        return tuple(tool for tool in tools if isinstance(tool, dict))
    functions = unpack(body.get("functions"))
    if not isinstance(functions, list):
        return ()
    return tuple({"type": "function", "function": f} for f in functions if isinstance(f, dict))
