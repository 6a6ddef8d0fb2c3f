"""The names that people give: stripped, short, and with something in them that can be seen."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

MOST = 80
INVISIBLE = "Holds nothing that can be seen: use at least one letter, digit or sign."
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and signs, says Unicode, that are drawn as nothing: Hangul fillers, the empty Braille."""


def is_visible(text: str) -> bool:
    """Return whether a text has a letter, digit or sign, not only spaces, controls and marks."""
    return any(unicodedata.category(sign)[0] in "LNPS" and sign not in _BLANKS for sign in text)


def visible(text: str) -> str:
    """Return the text. Raises ValueError for one that looks empty but is not."""
    if text and not is_visible(text):
        raise ValueError(INVISIBLE)
    return text


Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST),
    AfterValidator(visible),
]
NameOrEmpty = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=MOST), AfterValidator(visible)
]
"""Where an empty field means that a name is made, or that there is none."""
