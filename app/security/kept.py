"""Secrets that later jobs need: files of mode 0600 in the home, never in a row, spec, pipe or log.

The database holds no byte of them, so neither a dump nor a page can give one away.
"""

import os
from pathlib import Path


def keep(path: Path, secret: str) -> None:
    """Write a secret where only this account reads it; an older one is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(secret)
    fresh.rename(path)
