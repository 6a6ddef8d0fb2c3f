"""What a message says, as a hash: parts are text, ids are dropped, arguments are sorted."""

import re
from hashlib import blake2b

import orjson

from app.specs.conversation import Message

_CLOCK = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?)?"
    r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\b\d{1,2}:\d\d(?::\d\d)?\b"
)


def canonical_json(value: object) -> str:
    """JSON text with sorted keys and no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def link(before: bytes, message: Message) -> bytes:
    """h_i = H(h_{i−1}, canon(m_i)); a clock in a system prompt does not count."""
    content = message.content.strip()
    if message.role == "system":
        content = _CLOCK.sub("\x01", content)
    calls = [[call.name, call.arguments] for call in message.tool_calls]
    body = orjson.dumps([message.role, content, calls])
    return blake2b(before + body, digest_size=16).digest()


def chain(messages: tuple[Message, ...]) -> list[bytes]:
    """The chain hash after each message."""
    hashes: list[bytes] = []
    last = b""
    for message in messages:
        last = link(last, message)
        hashes.append(last)
    return hashes
