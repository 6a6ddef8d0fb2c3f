"""Untrusted bytes to clean JSON values: depth bound, odd encodings, NUL and lone surrogates."""

import json
import re
from typing import Any

import orjson

from workers.ingest.values import EXCERPT_CHARS, quarantined

MAX_DEPTH = 64
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MULTIBYTE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")
_INNERMOST = re.compile(rb"\{\}|\[\]")
_BIG = 1 << 63


def clean(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD: Postgres and Parquet refuse them."""
    return _UNSTORABLE.sub("\ufffd", text)


def scrub(value: Any) -> Any:
    """Clean every text of a JSON value; its depth must have been checked."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [scrub(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): scrub(item) for key, item in value.items()}
    return value


def decode(data: bytes) -> str:
    """Decode text of any age: UTF-8, else Windows-1252 if nothing in it looks like UTF-8.

    A line that holds both (a cut multi-byte letter) keeps its UTF-8 and gets U+FFFD for the rest.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        if not _MULTIBYTE.search(data):
            return data.decode("cp1252", "replace")
        return data.decode("utf-8", "replace")


def excerpt(data: bytes, chars: int = EXCERPT_CHARS) -> str:
    """Return the first characters of a raw record, cleaned, for people."""
    return clean(decode(data[: 4 * chars]))[:chars]


def _level(value: object, limit: int) -> bool:
    if limit < 0:
        return True
    if isinstance(value, dict):
        return any(_level(v, limit - 1) for v in value.values() if isinstance(v, dict | list))
    if isinstance(value, list):
        return any(_level(v, limit - 1) for v in value if isinstance(v, dict | list))
    return False


def _brackets_nest(data: bytes) -> bool:
    """Whether brackets may nest deeper than allowed, counting those inside strings too."""
    brackets = data.translate(None, delete=_NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = _INNERMOST.sub(b"", brackets)
    return bool(brackets)


def _integer(digits: str) -> int | float:
    value = int(digits) if len(digits) < 20 else float(digits)  # noqa: PLR2004 - 64 bits
    return value if -_BIG <= value < _BIG else float(value)


def _lenient(data: bytes) -> Any:
    """Parse what orjson refuses but loggers write: odd bytes, lone surrogates, NaN."""
    text = decode(data)
    try:
        return scrub(json.loads(text, parse_constant=lambda _: None, parse_int=_integer))
    except json.JSONDecodeError as error:
        opened, closed = text.lstrip()[:1], text.rstrip()[-1:]
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        whole = opened + closed in ("{}", "[]")
        if opened in ("{", "[") and (at_end or not whole):
            raise quarantined("json_truncated", str(error)) from None
        raise quarantined("not_json", str(error)) from None
    except (RecursionError, ValueError):
        raise quarantined("not_json", "it cannot be read as JSON") from None


def parse_value(data: bytes) -> Any:
    """Parse one JSON value of any type; raise Unusable with the reason when it is none."""
    nests = _brackets_nest(data)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if nests and data.count(b"{") + data.count(b"[") > MAX_DEPTH and _too_deep_text(data):
            raise quarantined("too_deep", f"more than {MAX_DEPTH} levels") from None
        value = _lenient(data)
    else:
        if b"\\u0000" in data:
            value = scrub(value)
    if nests and _level(value, MAX_DEPTH - 1):
        raise quarantined("too_deep", f"more than {MAX_DEPTH} levels")
    return value


def _too_deep_text(data: bytes) -> bool:
    """Depth of text that did not parse, by brackets outside of strings."""
    depth = deepest = 0
    for match in re.finditer(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[\]{}]', data, re.DOTALL):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest > MAX_DEPTH


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one record; a JSON object packed into a JSON string is unpacked."""
    value = unpack(parse_value(data))
    if not isinstance(value, dict):
        raise quarantined("not_an_object", f"a record that is {kind_of(value)}")
    return value


def unpack(value: Any, levels: int = 2) -> Any:
    """Parse JSON inside a string, up to two levels; anything else is returned as it is."""
    if not isinstance(value, str):
        return value
    for _ in range(levels):
        if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
            return value
        data = value.encode("utf-8", "replace")
        try:
            inner = orjson.loads(data)
        except orjson.JSONDecodeError:
            return value
        if _brackets_nest(data) and _level(inner, MAX_DEPTH - 1):
            raise quarantined("too_deep", f"more than {MAX_DEPTH} levels in a string")
        value = scrub(inner)
    return value


def kind_of(value: Any) -> str:
    """Return what a value is, in the words of JSON and with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {dict: "an object", list: "an array", str: "a text"}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), "a number")


def words(value: Any) -> str:
    """Return a value as people read it: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else canonical(value)


def canonical(value: Any) -> str:
    """Return JSON text with sorted keys and no spaces: one text for one value."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
