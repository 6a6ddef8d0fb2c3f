"""Files that grow by resumable uploads: the offset is the file's size, one writer by flock."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from app.errors import Conflict, NotFound, PayloadTooLarge


class UploadBusy(Conflict):
    title = "Another connection is sending this file"


class WrongOffset(Conflict):
    title = "The upload goes on elsewhere"


def create(path: Path) -> None:
    """Make the empty file, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def offset(path: Path) -> int:
    """Return how many bytes are stored."""
    if not path.is_file():
        raise NotFound("This upload is no longer stored. Send the file again.")
    return path.stat().st_size


class Appender:
    """The one writer of an upload, from `offset` on.

    Raises UploadBusy while another holds it and WrongOffset unless the file ends there.
    """

    def __init__(self, path: Path, start: int, size: int) -> None:
        offset(path)
        self._stream: BinaryIO = path.open("ab")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise UploadBusy("Another connection is sending this file. Wait for it.") from error
        self.offset = os.fstat(self._stream.fileno()).st_size
        self._size = size
        if self.offset != start:
            self._stream.close()
            raise WrongOffset(f"{self.offset:,} bytes are stored, not {start:,}. Go on from there.")

    def write(self, data: bytes) -> None:
        """Append bytes; more than the declared size is refused whole."""
        if self.offset + len(data) > self._size:
            raise PayloadTooLarge(f"More bytes came than the {self._size:,} declared.")
        self._stream.write(data)
        self.offset += len(data)

    def close(self) -> None:
        """Flush to the disk and give the file free."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
