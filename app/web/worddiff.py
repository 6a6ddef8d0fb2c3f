"""Two texts word by word: what only one of them has."""

import difflib
import re
from dataclasses import dataclass

_WORD = re.compile(r"\w+|\s+|[^\w\s]")
MOST_WORDS = 1500
"""Longer texts are shown without a diff: comparing a page of them would take seconds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text that both have, or only this one."""

    text: str
    own: bool


def word_diff(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces of both texts; joined they are the texts again.

    Words, runs of space and single marks are compared, so JSON differs by its values.
    """
    a, b = _WORD.findall(one), _WORD.findall(other)
    if max(len(a), len(b)) > MOST_WORDS:
        return [Piece(one, own=False)], [Piece(other, own=False)]
    left: list[Piece] = []
    right: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for kind, i, j, k, n in matcher.get_opcodes():
        for pieces, words in ((left, a[i:j]), (right, b[k:n])):
            if words:
                pieces.append(Piece("".join(words), own=kind != "equal"))
    return left, right
