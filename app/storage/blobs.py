"""The local blob store: files and folders by key, published whole by one rename."""

import os
import re
import secrets
import shutil
from pathlib import Path

from app.errors import NotFound

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class BadBlobKey(NotFound):
    title = "Not here"


class LocalBlobs:
    """Blobs under one root. A key is parts of letters, digits, `._-`, joined by `/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return where a key lies. Raises BadBlobKey for anything that could leave the root."""
        parts = key.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise BadBlobKey("There is no stored file of that name.")
        place = self.root.joinpath(*parts)
        if not place.resolve().is_relative_to(self.root.resolve()):
            raise BadBlobKey("There is no stored file of that name.")
        return place

    def put_file(self, source: Path, key: str) -> Path:
        """Move a file to its key: flushed first, then renamed, so it is whole or absent."""
        target = self._parent_made(key)
        moved = self._beside(source, target)
        _sync(moved)
        moved.replace(target)
        _sync(target.parent)
        return target

    def put_folder(self, source: Path, key: str) -> Path:
        """Move a folder to its key. A folder already there stays: keys name their content."""
        target = self._parent_made(key)
        if target.exists():
            shutil.rmtree(source)
            return target
        moved = self._beside(source, target)
        for path in sorted(moved.rglob("*")):
            _sync(path)
        _sync(moved)
        moved.rename(target)
        _sync(target.parent)
        return target

    def delete(self, key: str) -> None:
        """Remove a file or folder; nothing happens when there is none."""
        place = self.path(key)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def _parent_made(self, key: str) -> Path:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return target

    @staticmethod
    def _beside(source: Path, target: Path) -> Path:
        """Bring the source onto the target's file system under a hidden name."""
        hidden = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        shutil.move(source, hidden)
        return hidden


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
