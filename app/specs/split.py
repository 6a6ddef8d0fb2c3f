"""Which conversations belong together, and the side of a split on which a group falls."""

import re
from collections.abc import Iterable
from hashlib import blake2b

from app.specs.conversation import Message, Split
from app.specs.fingerprint import fingerprint

DIGEST_BITS = 96
_CLOCK = re.compile(
    r"\d+(?:(?:st|nd|rd|th)\b)?|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec|january|february|march|april"
    r"|june|july|august|september|october|november|december|mon|tue|wed|thu|fri|sat|sun|monday"
    r"|tuesday|wednesday|thursday|friday|saturday|sunday|[ap]m)\b",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")


def digest(text: str) -> int:
    """Return the 96-bit hash of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=DIGEST_BITS // 8).digest())


def template(text: str) -> str:
    """Return a system prompt with its numbers, dates and clock times blanked out."""
    return _SPACE.sub(" ", _CLOCK.sub("#", text)).strip()


def template_digest(before: int, text: str) -> int:
    """Return the hash of a run of system prompts as templates; `before` is that of those before."""
    return digest(f"{before:x}\x1f{template(text)}")


def normalised(text: str) -> str:
    """Return a text for comparing roots: case, white space and damaged characters do not count."""
    return _SPACE.sub(" ", text.replace("\ufffd", "")).strip().casefold()


def root_group(root: int, user: str) -> str:
    """Return the group of a conversation: its system prompts' digest and its first user turn."""
    return fingerprint([f"{root:x}", normalised(user)])


def group_of(messages: Iterable[Message]) -> str:
    """Return the group that importing a log gives a conversation which begins like this."""
    root = 0
    for message in messages:
        if message.role == "system":
            root = template_digest(root, message.content)
        elif message.role == "user":
            return root_group(root, message.content)
    return root_group(root, "")


def side(group: str, *, validation_share: float, test_share: float) -> Split:
    """Return the split of a group by its hash alone; shares are fractions of all groups.

    A larger share only adds groups to it: test grows from 0, validation from the top.
    """
    hashed = blake2b(group.encode(), digest_size=8, person=b"split").digest()
    at = int.from_bytes(hashed) / 2**64
    if at < test_share:
        return "test"
    return "validation" if at >= 1 - validation_share else "train"
