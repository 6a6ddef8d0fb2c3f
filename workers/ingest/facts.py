"""What a record tells beside its messages: session, user, time, tags, and the reference."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.specs.conversation import FieldSeen
from workers.ingest.jsontext import canonical, unpack

_SESSIONS = ("session_id", "sessionId", "conversation_id", "conversationId", "thread_id", "session")
_USERS = ("user_id", "userId", "user", "end_user")
_TIMES = ("timestamp", "created_at", "start_time", "startTime", "time", "ts")
_SECRET = re.compile(r"key|token|secret|passw|auth|cookie|(^|_)ip(_|$)|email", re.IGNORECASE)
_TRUTH = re.compile(
    r"reference|ground.?truth|gold|label|expected|correct|ideal|verified|final", re.IGNORECASE
)
_MAX_TAGS, _MAX_TAG, _MAX_FIELDS = 16, 200, 200


def scalar(value: Any) -> str | None:
    """Return a text, number or truth value as text; None for anything else or blank."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value).strip() or None
    return None


def first(names: tuple[str, ...], *places: Any) -> str | None:
    """Return the first of `names` that any of the mappings holds as a scalar."""
    for place in places:
        if isinstance(place, dict):
            for name in names:
                if name in place and (value := scalar(place[name])) is not None:
                    return value
    return None


def facts_of(record: Mapping[str, Any], body: Any = None) -> dict[str, Any]:
    """Return the `metadata`, `session`, `user` and `timestamp` of a LoggedCall.

    Tags are the scalars of the record's `metadata`; names that smell of a secret are left out.
    """
    tags = unpack(record.get("metadata"))
    inner = unpack(body.get("metadata")) if isinstance(body, dict) else None
    session = first(_SESSIONS, record, tags, inner, body)
    user = first(_USERS, record, tags, body)
    when = first(_TIMES, record)
    metadata = {"session": session, "user": user, "timestamp": when}
    for place in (inner, tags):
        if isinstance(place, dict):
            for key in list(place)[:_MAX_TAGS]:
                if not _SECRET.search(key) and key not in metadata:
                    metadata[key] = scalar(place[key])
    kept = {key: value[:_MAX_TAG] for key, value in metadata.items() if value is not None}
    return {"metadata": kept, "session": session, "user": user, "timestamp": when}


def at_path(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path (or under a key spelled like it), None where it is not."""
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        value = unpack(value)
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def reference_at(record: Mapping[str, Any], path: str) -> str | None:
    """Return the ground truth at `path` as text: a text as it is, else canonical JSON."""
    value = at_path(record, path)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return value if isinstance(value, str) else canonical(value)


def scalars(value: Any, at: str = "", depth: int = 6) -> dict[str, str]:
    """Return every scalar of a record by its dotted path: what a reference may be taken from."""
    value = unpack(value) if depth < 6 else value  # noqa: PLR2004 - the record itself is a mapping
    if isinstance(value, dict) and depth:
        found: dict[str, str] = {}
        for key, item in value.items():
            found.update(scalars(item, f"{at}.{key}" if at else key, depth - 1))
        return found
    text = scalar(value)
    return {at: text[:_MAX_TAG]} if text is not None else {}


def _whole_truths(value: Mapping[str, Any], paths: Iterable[str]) -> dict[str, str]:
    """Return the objects whose name tells of truth: a reference may be a whole object too."""
    found: dict[str, str] = {}
    for path in paths:
        keys = path.split(".")
        for depth, key in enumerate(keys[:-1], 1):
            whole = ".".join(keys[:depth])
            if whole not in found and _TRUTH.search(key) and (text := reference_at(value, whole)):
                found[whole] = text[:_MAX_TAG]
    return found


def fields_seen(values: Sequence[Mapping[str, Any]]) -> tuple[FieldSeen, ...]:
    """Return the fields of the first records, those first whose name tells of truth."""
    filled: Counter[str] = Counter()
    samples: dict[str, str] = {}
    for value in values:
        texts = scalars(value)
        for path, text in {**_whole_truths(value, texts), **texts}.items():
            filled[path] += 1
            samples.setdefault(path, text)
    found = [
        FieldSeen(
            path=path,
            filled=filled[path],
            sample=text,
            likely=bool(_TRUTH.search(path.rsplit(".", 1)[-1])),
        )
        for path, text in samples.items()
    ]
    return tuple(sorted(found, key=lambda field: not field.likely)[:_MAX_FIELDS])
