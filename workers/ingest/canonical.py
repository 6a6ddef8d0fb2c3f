"""What a message says, as a hash: parts are text, ids are dropped, arguments are sorted."""

import re
from hashlib import blake2b
from zlib import crc32

from app.specs.conversation import Message

DIGEST_BITS = 96
_CLOCK = re.compile(
    r"\d+|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec|january|february|march|april"
    r"|june|july|august|september|october|november|december|mon|tue|wed|thu|fri|sat|sun|monday"
    r"|tuesday|wednesday|thursday|friday|saturday|sunday|[ap]m|(?<=\d)(?:st|nd|rd|th))\b",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=DIGEST_BITS // 8).digest())


def canon(message: Message) -> int:
    """Return the 96-bit hash of what a message says.

    Two spellings of one message agree: outer white space, damaged characters (U+FFFD), reasoning,
    names and ids do not count; role, text, calls with sorted arguments and media do.
    """
    text = message.content
    if "\ufffd" in text:
        text = text.replace("\ufffd", "")
    said = f"{message.role}\x1f{text.strip()}"
    for call in message.tool_calls:
        said += f"\x1e{call.name}\x1f{call.arguments}"
    if message.role == "tool":
        said += f"\x1d{message.tool_call_id or 0}"
    elif message.role != "assistant" and message.flags:
        said += f"\x1c{message.flags}"
    return _digest(said)


def spelling(message: Message) -> int:
    """Return 0 for a plainly written message, else a number that tells its spellings apart.

    Of several spellings of one message the smallest is kept, whatever the order of lines.
    """
    text = message.content
    if (
        message.name is None
        and message.reasoning is None
        and "\ufffd" not in text
        and text == text.strip()
    ):
        return 0
    return 1 + crc32(f"{message.reasoning}\x1f{message.name}\x1f{text}".encode())


def template(text: str) -> str:
    """Return a system prompt with its numbers, dates and clock times blanked out."""
    return _SPACE.sub(" ", _CLOCK.sub("#", text)).strip()


def template_digest(before: int, text: str) -> int:
    """Return the hash of a run of system prompts as templates; `before` is that of those before."""
    return _digest(f"{before:x}\x1f{template(text)}")


def normalised(text: str) -> str:
    """Return a text for comparing roots: case, white space and damaged characters do not count."""
    return _SPACE.sub(" ", text.replace("\ufffd", "")).strip().casefold()
