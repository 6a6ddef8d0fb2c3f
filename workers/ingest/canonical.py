"""What a message says, as a hash: parts are text, ids are dropped, arguments are sorted."""

from functools import lru_cache
from zlib import crc32

from app.specs.conversation import Message
from app.specs.split import digest


def _said(role: str, text: str) -> str:
    if "\ufffd" in text:
        text = text.replace("\ufffd", "")
    return f"{role}\x1f{text.strip()}"


@lru_cache(maxsize=4096)
def _plain(role: str, text: str) -> int:
    return digest(_said(role, text))


def canon(message: Message) -> int:
    """Return the 96-bit hash of what a message says.

    Two spellings of one message agree: outer white space, damaged characters (U+FFFD), reasoning,
    names and ids do not count; role, text, calls with sorted arguments and media do.
    """
    if message.role in ("user", "system") and not message.flags:
        return _plain(message.role, message.content)
    if message.role == "assistant" and not message.tool_calls:
        return _plain(message.role, message.content)
    said = _said(message.role, message.content)
    for call in message.tool_calls:
        said += f"\x1e{call.name}\x1f{call.arguments}"
    if message.role == "tool":
        said += f"\x1d{message.tool_call_id or 0}"
    elif message.role != "assistant" and message.flags:
        said += f"\x1c{message.flags}"
    return digest(said)


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
