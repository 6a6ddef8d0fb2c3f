"""Files to plain UTF-8 bytes: gzip and zstd by their first bytes, BOM and UTF-16, bombs refused."""

import codecs
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import zstandard

from workers.ingest.errors import DamagedArchive, DecompressionBomb

CHUNK = 1 << 20
HEAD = 1 << 18


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds against files made to exhaust a worker; all in bytes but `ratio`."""

    record: int = 32 << 20
    unpacked: int = 64 << 30
    ratio: int = 400
    """Unpacked by packed bytes; chat logs that repeat their history reach about 60."""
    ratio_from: int = 256 << 20
    """Below this size any ratio is harmless."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Source:
    """A file's bytes as plain UTF-8, in chunks; `head` is the first 256 KiB, for detection.

    `damage` says why a compressed file ended early; what came before it is still good.
    """

    def __init__(self, path: Path, name: str, limits: Limits) -> None:
        self._name, self._limits = name, limits
        self._file = path.open("rb")
        magic = self._file.read(4)
        self._file.seek(0)
        self._inner: _Readable = self._file
        self._packed = True
        if magic[:2] == b"\x1f\x8b":
            self._inner = gzip.GzipFile(fileobj=self._file)
        elif magic == b"\x28\xb5\x2f\xfd":
            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            self._inner = unpacker.stream_reader(self._file, read_across_frames=True)
        else:
            self._packed = False
        self.damage: str | None = None
        self._unpacked = 0
        self._recode: codecs.IncrementalDecoder | None = None
        self.head = self._open_head()
        self._pending = self.head

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def position(self) -> int:
        """Bytes of the file itself taken so far: what progress counts."""
        return self._file.tell()

    def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        return self._next()

    def _open_head(self) -> bytes:
        head = b""
        while len(head) < HEAD and (data := self._raw()):
            head += data
        for mark, encoding in (
            (codecs.BOM_UTF16_LE, "utf-16-le"),
            (codecs.BOM_UTF16_BE, "utf-16-be"),
        ):
            if head.startswith(mark):
                self._recode = codecs.getincrementaldecoder(encoding)("replace")
                return self._utf8(head[2:])
        return head.removeprefix(codecs.BOM_UTF8)

    def _next(self) -> bytes:
        while data := self._raw():
            data = self._utf8(data)
            if data:
                return data
        return b""

    def _utf8(self, data: bytes) -> bytes:
        return self._recode.decode(data).encode("utf-8", "replace") if self._recode else data

    def _raw(self) -> bytes:
        if self.damage is not None:
            return b""
        try:
            data = self._inner.read(CHUNK)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            if not self._packed:
                raise
            if not self._unpacked:
                raise DamagedArchive(
                    f"{self._name} cannot be unpacked: {error}. Compress it again and upload it."
                ) from error
            self.damage = str(error)
            return b""
        self._unpacked += len(data)
        if self._packed:
            self._refuse_bomb()
        return data

    def _refuse_bomb(self) -> None:
        ratio = self._unpacked / max(self._file.tell(), 1)
        over = self._unpacked > self._limits.unpacked
        if over or (self._unpacked > self._limits.ratio_from and ratio > self._limits.ratio):
            raise DecompressionBomb(
                f"{self._name} has unpacked to {self._unpacked:,} bytes, {ratio:.0f} times its "
                f"size, and goes on. Upload it in parts, or not compressed."
            )
