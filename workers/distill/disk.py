"""A disk without room, in whatever words a library says so, and the sentence for a person."""

import errno
import shutil
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
_LEAST = 64 << 20
"""So much is asked for at least: logs and the database share the disk."""


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(word in str(error).lower() for word in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def bytes_below(folder: Path) -> int:
    """Return how much the files of a folder hold; what vanishes meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def full_sentence(place: Path, needed: int) -> str:
    """Return what happened and the mend; needed: bytes that what was to be written takes."""
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    missing = max(needed + _LEAST - free, _LEAST)
    return (
        f"The disk of {place} is full: free {-(-missing // 2**20):,} MiB there, then Try again; "
        "what was done is kept."
    )
