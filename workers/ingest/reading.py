"""Bytes to records: packed or plain, JSON lines, one JSON array, or CSV, a bad line caught alone."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from workers.ingest.errors import BrokenCompression, UnpackedTooLarge
from workers.ingest.values import RawRecord

MAX_LINE = 32 * 1024 * 1024
MAX_UNPACKED = 64 * 1024**3
MAX_RATIO = 1000
MAX_DEPTH = 64
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _Bounded(io.RawIOBase):
    """Counts unpacked bytes and refuses a decompression bomb."""

    def __init__(self, inner: Any, packed: int, name: str) -> None:
        self._inner, self._name, self._seen = inner, name, 0
        self._limit = min(MAX_UNPACKED, max(packed * MAX_RATIO, 1 << 26))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise BrokenCompression(
                f"{self._name} cannot be unpacked ({error}). Pack it again and upload it."
            ) from error
        self._seen += len(data)
        if self._seen > self._limit:
            raise UnpackedTooLarge(
                f"{self._name} unpacks to more than {self._limit} bytes. Upload it in parts."
            )
        buffer[: len(data)] = data
        return len(data)


def open_bytes(path: Path, name: str) -> IO[bytes]:
    """Open `path` for reading, unpacking gzip and zstd by their first bytes."""
    plain = path.open("rb")
    magic = plain.read(4)
    plain.seek(0)
    inner: Any = plain
    if magic[:2] == b"\x1f\x8b":
        inner = gzip.GzipFile(fileobj=plain)
    elif magic == b"\x28\xb5\x2f\xfd":
        inner = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            plain, read_across_frames=True
        )
    else:
        return plain
    return io.BufferedReader(_Bounded(inner, path.stat().st_size, name), 1 << 20)


def clean(text: str) -> str:
    """Replace NUL and lone surrogates, which neither tokenizers nor databases take."""
    return _SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))


def too_deep(value: object, limit: int = MAX_DEPTH) -> bool:
    """Whether `value` nests deeper than `limit`."""
    level: list[object] = [value]
    for _ in range(limit + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return True


def scrub(value: Any) -> Any:
    """Clean every string inside a JSON value whose depth was checked."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [scrub(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): scrub(item) for key, item in value.items()}
    return value


def _loads(text: str) -> Any:
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return json.loads(text)  # lone surrogates and NaN, which orjson refuses


def parse_json(data: bytes, line: int) -> RawRecord:
    """Parse one record; the reason says what is wrong with it when it is no object."""
    if len(data) > MAX_LINE:
        return RawRecord(line, None, data[:200].decode("utf-8", "replace"), "line_too_long")
    text = data.decode("utf-8", "replace").strip().strip("\ufeff")
    raw = clean(text[:2000])
    if not text:
        return RawRecord(line, None, "", "blank", skipped=True)
    try:
        value = _loads(text)
    except RecursionError:
        return RawRecord(line, None, raw, "too_deep")
    except ValueError:
        return RawRecord(line, None, raw, "json_truncated" if text[0] in "{[" else "not_json")
    if not isinstance(value, dict):
        return RawRecord(line, None, raw, "not_an_object")
    if too_deep(value):
        return RawRecord(line, None, raw, "too_deep")
    return RawRecord(line, scrub(value), raw)


def _json_lines(stream: IO[bytes]) -> Iterator[RawRecord]:
    number = 0
    while data := stream.readline(MAX_LINE + 1):
        number += 1
        rest = data
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE + 1)
        yield parse_json(data, number)


def _json_array(stream: IO[bytes]) -> Iterator[RawRecord]:
    """Cut one array into its elements by counting brackets outside of strings."""
    depth, line, start_line = 0, 1, 1
    in_string = False
    element = bytearray()
    token = re.compile(rb'["\\\[\]{},\n]|[^"\\\[\]{},\n]+', re.DOTALL)
    escaped = False
    while chunk := stream.read(1 << 16):
        for match in token.finditer(chunk):
            piece = match.group()
            line += piece == b"\n"
            if in_string:
                if escaped:
                    escaped = False
                elif piece == b"\\":
                    escaped = True
                elif piece == b'"':
                    in_string = False
            elif piece == b'"':
                in_string = True
            elif piece in (b"[", b"{"):
                depth += 1
                if depth == 1:
                    continue
            elif piece in (b"]", b"}"):
                depth -= 1
            if not in_string and ((depth == 1 and piece == b",") or depth == 0):
                if element.strip():
                    yield parse_json(bytes(element), start_line)
                element.clear()
                start_line = line
            elif element or piece.strip():
                if not element:
                    start_line = line
                if len(element) <= MAX_LINE:
                    element += piece
    if element.strip():
        yield parse_json(bytes(element), start_line)


def _csv(stream: IO[bytes]) -> Iterator[RawRecord]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    csv.field_size_limit(MAX_LINE)
    rows = csv.reader(part.replace("\x00", "\ufffd") for part in text)
    header = [clean(cell).strip() for cell in next(rows, [])]
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield RawRecord(line, None, str(error), "csv_broken")
            continue
        if cells is None:
            return
        raw = ",".join(cells)[:2000]
        if not any(cell.strip() for cell in cells):
            yield RawRecord(line, None, "", "blank", skipped=True)
        elif len(cells) != len(header):
            yield RawRecord(line, None, raw, "wrong_column_count")
        else:
            yield RawRecord(line, dict(zip(header, map(clean, cells), strict=True)), raw)


def read_records(path: Path, name: str) -> Iterator[RawRecord]:
    """Yield the records of one file in order, with the line each begins on."""
    with open_bytes(path, name) as opened:
        stream = opened if isinstance(opened, io.BufferedReader) else io.BufferedReader(opened)  # type: ignore[type-var]  # any binary stream
        head = stream.peek(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip()
        packed = name.removesuffix(".gz").removesuffix(".zst").lower()
        if packed.endswith((".csv", ".tsv")):
            yield from _csv(stream)
        elif head[:1] == b"[" and not re.match(rb"\[[^\n]*\]\s*\n", head):
            yield from _json_array(stream)
        else:
            yield from _json_lines(stream)
