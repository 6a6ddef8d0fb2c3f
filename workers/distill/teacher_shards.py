"""Teacher rows as bytes: one compressed, checksummed frame a conversation, and an index.

File: magic · frames · index (one fixed record a frame) · footer. It is named by its own SHA-256.
Frame, before zstd: row count, grid size, id bytes, then columns over all rows (sizes, value range,
log r, entropy) and over all head entries in rank order (id byte planes; u8 steps down from rank to
rank, which compress better than distances). Log p at rank 0 is not stored: head and residual sum to
one, so the residual at T = 1 gives it.
"""

import hashlib
import itertools
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from workers.distill.errors import (
    CorruptShardError,
    MissingRowsError,
    RowCountError,
    TemperatureError,
)
from workers.distill.values import SparseTargets, TargetRows

MAGIC = b"STHSHRD1"
SUFFIX = ".shard"
_HEADER = struct.Struct("<IBBBB")  # rows, grid size, place of T = 1 in it, id bytes, size bytes
_FOOTER = struct.Struct("<QII8s")  # index offset, frames, CRC-32 of the index, magic
_INDEX = np.dtype(
    [("entry", "V32"), ("offset", "<u8"), ("size", "<u4"), ("rows", "<u4"), ("crc", "<u4")]
)
_LEVEL = 3
_MAX_HEAD = 65_535
_LARGEST_LOG_R = np.float16(-(2.0**-10))
"""A residual is never rounded up to 1: the head would lose all its mass."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """Where one entry lies in a shard: frame number, byte offset and size, rows."""

    entry: str
    index: int
    offset: int
    size: int
    rows: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A finished, immutable shard. `sha256` is over its bytes and is also its file name."""

    sha256: str
    path: Path
    bytes: int
    entries: tuple[ShardEntry, ...]

    @property
    def rows(self) -> int:
        return sum(e.rows for e in self.entries)


def encode_rows(rows: TargetRows, *, vocabulary: int, grid: Sequence[float]) -> bytes:
    """Return the frame of one entry, uncompressed. `grid`: temperatures of `rows.log_r`'s columns.

    Ids take 2 bytes where the vocabulary allows, else 3. Bounds after decoding: log p within
    range/510 + 0.1 % of its distance from rank 0, log r and entropy within 0.1 % (fp16).
    """
    valid = rows.ids >= 0
    sizes = valid.sum(1)
    count, width = rows.ids.shape
    if width > _MAX_HEAD or (count and int(sizes.min()) < 1):
        raise RowCountError("A teacher row needs 1 to 65,535 head entries.")
    if rows.log_r.shape[1] != len(grid):
        raise RowCountError(f"{rows.log_r.shape[1]} residuals a row do not fit the grid {grid}.")
    id_bytes = 2 if vocabulary <= 1 << 16 else 3
    distance = np.where(valid, rows.logp[:, :1] - rows.logp, 0).astype(np.float32)
    span = distance.max(1, initial=0).astype(np.float16)
    scale = np.where(span > 0, 255 / np.maximum(span.astype(np.float32), 1e-12), 0)
    steps = np.clip(np.rint(distance * scale[:, None]), 0, 255).astype(np.uint8)
    if (np.diff(distance, axis=1)[valid[:, 1:]] < 0).any():
        raise RowCountError("Teacher rows must list their head in rank order.")
    ids = rows.ids[valid]
    with np.errstate(over="ignore"):  # below fp16's range a residual is −inf: there is none
        log_r = rows.log_r.astype(np.float16)
    log_r = np.where(np.isneginf(log_r), log_r, np.minimum(log_r, _LARGEST_LOG_R))
    size_bytes = 1 if width < 1 << 8 else 2
    parts = [
        _HEADER.pack(count, len(grid), _place_of(1.0, grid), id_bytes, size_bytes),
        sizes.astype(f"<u{size_bytes}").tobytes(),
        span.astype("<f2").tobytes(),
        log_r.astype("<f2").tobytes(),
        rows.entropy.astype("<f2").tobytes(),
        *((ids >> (8 * plane)).astype(np.uint8).tobytes() for plane in range(id_bytes)),
        np.diff(steps, axis=1)[valid[:, 1:]].tobytes(),
    ]
    return b"".join(parts)


def decode_frames(frames: Sequence[bytes]) -> list[TargetRows]:
    """Return the rows of many uncompressed frames, decoded in one vectorised pass.

    All results share memory and one width K, the longest head of the lot.
    Errors: CorruptShardError where a frame's columns do not fit its header.
    """
    if not frames:
        return []
    columns = [_columns(frame) for frame in frames]
    counts = [c[0].shape[0] for c in columns]
    sizes = np.concatenate([c[0] for c in columns]).astype(np.int64)
    span = np.concatenate([c[1] for c in columns]).astype(np.float32)
    log_r = np.concatenate([c[2] for c in columns]).astype(np.float32)
    entropy = np.concatenate([c[3] for c in columns]).astype(np.float32)
    planes = np.concatenate([c[4] for c in columns], axis=1)
    steps = np.concatenate([c[5] for c in columns])
    one = np.concatenate([np.full(c[0].shape[0], c[6], dtype=np.int64) for c in columns])
    width = int(sizes.max(initial=1))
    valid = np.arange(width) < sizes[:, None]
    flat = planes[0].astype(np.int64)
    for plane in range(1, planes.shape[0]):
        flat |= planes[plane].astype(np.int64) << (8 * plane)
    ids = np.full(valid.shape, -1, dtype=np.int64)
    ids[valid] = flat
    distance = np.zeros(valid.shape, dtype=np.uint8)
    distance[:, 1:][valid[:, 1:]] = steps
    np.cumsum(distance, axis=1, dtype=np.uint8, out=distance)
    logp = np.where(valid, distance * (span / np.float32(-255))[:, None], np.float32(-np.inf))
    residual = np.take_along_axis(log_r, one[:, None], axis=1)[:, 0]
    logp += (np.log1p(-np.exp(residual)) - np.log(np.exp(logp).sum(1)))[:, None]
    borders = np.cumsum([0, *counts])
    return [
        TargetRows(ids[a:b], logp[a:b], log_r[a:b], entropy[a:b])
        for a, b in itertools.pairwise(borders)
    ]


def decode(rows: TargetRows, temperature: float, grid: Sequence[float]) -> SparseTargets:
    """Return the rows at one temperature of the grid: w = (1 − r_T) · softmax(log p / T).

    So Σ w + r_T = 1 whatever the rounding of log p. Errors: TemperatureError outside the grid.
    """
    log_r = torch.from_numpy(np.ascontiguousarray(rows.log_r[:, _place_of(temperature, grid)]))
    logp = torch.from_numpy(np.ascontiguousarray(rows.logp))
    log_w = torch.log_softmax(logp / temperature, -1)
    log_w += torch.log(-torch.expm1(log_r))[:, None]
    return SparseTargets(
        ids=torch.from_numpy(np.maximum(rows.ids, 0)),
        log_w=log_w,
        log_r=log_r,
        temperature=float(temperature),
    )


def join_rows(parts: Sequence[TargetRows]) -> TargetRows:
    """Concatenate rows of several entries, padded to the longest head."""
    width = max((p.ids.shape[1] for p in parts), default=1)

    def padded(name: str, fill: float) -> NDArray[np.generic]:
        arrays = [getattr(p, name) for p in parts]
        return np.concatenate(
            [
                np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill)
                if a.shape[1] < width
                else a
                for a in arrays
            ]
        )

    return TargetRows(
        ids=padded("ids", -1).astype(np.int64, copy=False),
        logp=padded("logp", -np.inf).astype(np.float32, copy=False),
        log_r=np.concatenate([p.log_r for p in parts]),
        entropy=np.concatenate([p.entropy for p in parts]),
    )


def write_shard(
    folder: Path,
    items: Iterable[tuple[str, int, TargetRows]],
    *,
    vocabulary: int,
    grid: Sequence[float],
) -> ShardFile:
    """Write (entry, L, rows) items as one shard, atomically, and return what and where it is.

    Errors: RowCountError where an entry of L tokens has other than L − 1 rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            sha256, entries = _write_frames(stream, items, vocabulary=vocabulary, grid=grid)
            stream.flush()
            os.fsync(stream.fileno())
        final = folder / f"{sha256}{SUFFIX}"
        path.replace(final)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return ShardFile(sha256, final, final.stat().st_size, entries)


def _write_frames(
    stream: BinaryIO,
    items: Iterable[tuple[str, int, TargetRows]],
    *,
    vocabulary: int,
    grid: Sequence[float],
) -> tuple[str, tuple[ShardEntry, ...]]:
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        stream.write(data)
        digest.update(data)

    entries: list[ShardEntry] = []
    records: list[tuple[bytes, int, int, int, int]] = []
    put(MAGIC)
    offset = len(MAGIC)
    for number, (entry, length, rows) in enumerate(items):
        _check_rows(entry, length, rows)
        frame = compressor.compress(encode_rows(rows, vocabulary=vocabulary, grid=grid))
        put(frame)
        entries.append(ShardEntry(entry, number, offset, len(frame), length - 1))
        crc = zlib.crc32(frame)
        records.append((bytes.fromhex(entry), offset, len(frame), length - 1, crc))
        offset += len(frame)
    index = np.array(records, dtype=_INDEX).tobytes()
    put(index)
    put(_FOOTER.pack(offset, len(records), zlib.crc32(index), MAGIC))
    return digest.hexdigest(), tuple(entries)


def _check_rows(entry: str, length: int, rows: TargetRows) -> None:
    if rows.ids.shape[0] != length - 1:
        raise RowCountError(
            f"Entry {entry[:12]} has {length} tokens and {rows.ids.shape[0]} teacher rows; it "
            f"needs {length - 1}. Capture it again."
        )


class ShardReader:
    """Random access to one shard. The index is checked on opening, each frame when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise _damaged(path, "its file is gone") from error
        try:
            self._index = self._read_index()
        except BaseException:
            self._file.close()
            raise
        self._numbers = {bytes(r["entry"]).hex(): i for i, r in enumerate(self._index)}
        self._decompressor = zstandard.ZstdDecompressor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def entries(self) -> tuple[ShardEntry, ...]:
        return tuple(
            ShardEntry(entry, i, int(r["offset"]), int(r["size"]), int(r["rows"]))
            for (entry, i), r in zip(self._numbers.items(), self._index, strict=True)
        )

    def read(self, entries: Sequence[str]) -> list[TargetRows]:
        """Return the rows of entries this shard holds, in the order asked for.

        Errors: MissingRowsError for an entry it does not hold, CorruptShardError.
        """
        return decode_frames([self.frame(e) for e in entries])

    def frame(self, entry: str) -> bytes:
        """Return one entry's uncompressed frame, its checksum verified."""
        number = self._numbers.get(entry)
        if number is None:
            raise MissingRowsError(f"Shard {self.path.name[:12]} holds no entry {entry[:12]}.")
        record = self._index[number]
        data = os.pread(self._file.fileno(), int(record["size"]), int(record["offset"]))
        if zlib.crc32(data) != int(record["crc"]):
            raise self._corrupt(f"entry {entry[:12]} fails its checksum")
        frame: bytes = self._decompressor.decompress(data)
        return frame

    def _read_index(self) -> NDArray[np.void]:
        size = os.fstat(self._file.fileno()).st_size
        if size < len(MAGIC) + _FOOTER.size or self._file.read(len(MAGIC)) != MAGIC:
            raise self._corrupt("it is no teacher shard")
        tail = os.pread(self._file.fileno(), _FOOTER.size, size - _FOOTER.size)
        offset, count, crc, magic = _FOOTER.unpack(tail)
        length = count * _INDEX.itemsize
        if magic != MAGIC or offset + length + _FOOTER.size != size:
            raise self._corrupt("its footer does not fit its size")
        data = os.pread(self._file.fileno(), length, offset)
        if zlib.crc32(data) != crc:
            raise self._corrupt("its index fails its checksum")
        return np.frombuffer(data, dtype=_INDEX)

    def _corrupt(self, what: str) -> CorruptShardError:
        return _damaged(self.path, what)


class ShardLookup:
    """Teacher rows by entry over many shard files: a TeacherLookup. Nothing is held decoded."""

    def __init__(self, paths: Iterable[Path], grid: Sequence[float]) -> None:
        self.grid = tuple(grid)
        self._readers = [ShardReader(p) for p in sorted(paths)]
        self._where = {e.entry: reader for reader in self._readers for e in reader.entries}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, entry: str) -> bool:
        return entry in self._where

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        """Return the rows of each entry, None where no shard holds it."""
        known = [e for e in entries if e in self._where]
        decoded = iter(decode_frames([self._where[e].frame(e) for e in known]))
        return [next(decoded) if e in self._where else None for e in entries]


def verify_shard(path: Path) -> None:
    """Raise CorruptShardError unless the file is there and its SHA-256 is its name.

    A file that cannot be opened for another reason (too many are open) is not damaged: OSError.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise _damaged(path, "its file is gone") from error
    if digest != _name(path):
        raise _damaged(path, f"its bytes give {digest[:12]}")


def _name(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _damaged(path: Path, what: str) -> CorruptShardError:
    return CorruptShardError(
        f"Teacher shard {_name(path)[:12]} is damaged: {what}. Try again: what it held is captured "
        "anew, and nothing else.",
        shard=_name(path),
    )


def _place_of(temperature: float, grid: Sequence[float]) -> int:
    for place, known in enumerate(grid):
        if abs(known - temperature) <= 1e-6 * known:
            return place
    raise TemperatureError(
        f"The teacher cache was captured at T = {', '.join(f'{t:g}' for t in grid)}, not at "
        f"{temperature:g}. Choose one of these, or capture with {temperature:g} in the grid."
    )


def _columns(frame: bytes) -> tuple[NDArray[np.generic], ...]:
    """Return a frame's columns as views: sizes, span, log r, entropy, id planes, steps, place."""
    if len(frame) < _HEADER.size:
        raise CorruptShardError("A teacher frame is shorter than its header.")
    count, grid, one, id_bytes, size_bytes = _HEADER.unpack_from(frame)
    fixed = _HEADER.size + count * (size_bytes + 4 + 2 * grid)
    total = (len(frame) - fixed + count) // (id_bytes + 1)  # rank 0 has an id and no step
    if len(frame) != fixed + total * (id_bytes + 1) - count or total < count or one >= grid:
        raise CorruptShardError("A teacher frame's columns do not fit its header.")
    at = _HEADER.size

    def take(dtype: str, items: int) -> NDArray[np.generic]:
        nonlocal at
        array = np.frombuffer(frame, dtype=dtype, count=items, offset=at)
        at += array.nbytes
        return array

    sizes = take(f"<u{size_bytes}", count)
    if int(sizes.sum(dtype=np.int64)) != total:
        raise CorruptShardError("A teacher frame's head sizes do not fit its length.")
    span, log_r = take("<f2", count), take("<f2", count * grid).reshape(count, grid)
    entropy = take("<f2", count)
    planes = take("u1", total * id_bytes).reshape(id_bytes, total)
    return sizes, span, log_r, entropy, planes, take("u1", total - count), one
