"""Containers: packing, encodings, arrays, CSV; every bad record is caught alone."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from app.specs.conversation import Reject
from workers.ingest.elements import Elements
from workers.ingest.errors import DamagedArchive, DecompressionBomb
from workers.ingest.reading import container, read_records
from workers.ingest.unpacking import Limits
from workers.ingest.values import Record

RECORDS = [{"messages": [1, 2], "n": n, "text": 'a "quoted" ] } \\ text'} for n in range(40)]
LINES = b"".join(json.dumps(r).encode() + b"\n" for r in RECORDS)


def read(tmp_path: Path, data: bytes, limits: Limits | None = None) -> list[Record | Reject]:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return list(read_records(path, "up", limits=limits))


def values(outcomes: list[Record | Reject]) -> list[object]:
    return [item.value if isinstance(item, Record) else item.reason for item in outcomes]


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES.replace(b"\n", b"\r\n"),
        LINES.rstrip(),
        b"\xef\xbb\xbf" + LINES,
        LINES.decode().encode("utf-16"),
        gzip.compress(LINES),
        gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
        zstandard.compress(LINES),
        zstandard.compress(LINES[:500]) + zstandard.compress(LINES[500:]),
        json.dumps(RECORDS).encode(),
        json.dumps(RECORDS, indent=2).encode(),
        gzip.compress(json.dumps(RECORDS, indent=1).encode()),
        b"\n\n".join(json.dumps(r, indent=2).encode() for r in RECORDS),
        b"".join(json.dumps(r).encode() for r in RECORDS),
    ],
    ids=[
        "lf",
        "crlf",
        "no_end",
        "bom",
        "utf16",
        "gz",
        "gz_members",
        "zst",
        "zst_frames",
        "array",
        "pretty_array",
        "gz_array",
        "pretty_values",
        "glued",
    ],
)
def test_every_container_gives_the_same_records(tmp_path: Path, data: bytes) -> None:
    assert values(read(tmp_path, data)) == RECORDS


def test_places_name_file_and_line(tmp_path: Path) -> None:
    lines = read(tmp_path, LINES)
    assert [(r.line, r.place) for r in lines[:2] if isinstance(r, Record)] == [
        (1, "up:1"),
        (2, "up:2"),
    ]
    array = read(tmp_path, json.dumps(RECORDS).encode())
    assert isinstance(array[4], Record)
    assert array[4].place == "up[5]"


def test_bad_lines_are_caught_alone(tmp_path: Path) -> None:
    good = b'{"a": 1}'
    bad = [b"", b"{not json", b"plain words", b"null", b"[1]", b'"text"', b'{"a": "cut', b"  \t"]
    bad += [b'{"a": 1}}', b"[" * 70 + b"]" * 70, b'{"a":' * 3000 + b"1" + b"}" * 3000]
    found = values(read(tmp_path, b"\n".join([good, *bad, good]) + b"\n"))
    assert found == [
        {"a": 1},
        "blank_line",
        "json_truncated",
        "not_json",
        "not_an_object",
        "not_an_object",
        "not_an_object",
        "json_truncated",
        "blank_line",
        "not_json",
        "too_deep",
        "too_deep",
        {"a": 1},
    ]


def test_depth_counts_structure_not_brackets_in_text(tmp_path: Path) -> None:
    shallow = {"text": "[{" * 200}
    deep: object = 1
    for _ in range(62):
        deep = [deep]
    allowed = {"a": [deep]}
    lines = [json.dumps(r).encode() for r in (shallow, allowed, {"a": [[deep]]})]
    found = values(read(tmp_path, b"\n".join(lines)))
    assert found == [shallow, allowed, "too_deep"]


def test_text_that_cannot_be_stored_is_replaced(tmp_path: Path) -> None:
    lines = [
        b'{"a": "x\\u0000y"}',
        b'{"a": "x\\ud800y"}',
        b'{"a\\udfff": NaN}',
        b'{"a": "caf\xe9"}',
        '{"a": "\u00e9'.encode() + b'\xe2\x82"}',
        b'{"a": 123456789012345678901234567890}',
    ]
    assert values(read(tmp_path, b"\n".join(lines))) == [
        {"a": "x\ufffdy"},
        {"a": "x\ufffdy"},
        {"a\ufffd": None},
        {"a": "café"},
        {"a": "é\ufffd"},
        {"a": 1.2345678901234568e29},
    ]


@pytest.mark.parametrize("packed", ["lines", "array", "csv"])
def test_a_record_beyond_the_bound_is_passed_over(tmp_path: Path, packed: str) -> None:
    limits = Limits(record=1 << 20)
    long = "\\\\" * (1 << 21)
    if packed == "csv":
        data = b"prompt,completion\na,b\n" + b"x" * (3 << 20) + b",y\nc,d\n"
    else:
        rows = [b'{"n": 1}', b'{"long": "' + long.encode() + b'"}', b'{"n": 2}']
        data = b"\n".join(rows) if packed == "lines" else b"[" + b",".join(rows) + b"]"
    found = read(tmp_path, data, limits)
    assert [isinstance(item, Record) for item in found] == [True, False, True]
    assert isinstance(found[1], Reject)
    assert found[1].reason == "too_long"
    assert 0 < len(found[1].excerpt) <= 200


def test_array_elements_that_are_no_objects_are_caught_alone(tmp_path: Path) -> None:
    data = b'[{"a":1}, null, {"b": [}, {"c":2}, "x", 3, {"d": "e"}, junk]'
    assert values(read(tmp_path, data))[:2] == [{"a": 1}, "not_an_object"]
    cut = b'[{"a":1},{"b":2},{"c":'
    assert values(read(tmp_path, cut)) == [{"a": 1}, {"b": 2}, "json_truncated"]


class _Pieces:
    """A source whose chunks end anywhere."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()))),
    st.integers(1, 40),
    st.booleans(),
)
def test_elements_do_not_depend_on_where_chunks_end(
    rows: list[dict[str, object]], size: int, indent: bool
) -> None:
    data = json.dumps(rows, indent=1 if indent else None).encode()
    pieces = _Pieces([data[at : at + size] for at in range(0, len(data), size)])
    found = list(Elements(pieces, 1 << 20, array=True))  # type: ignore[arg-type]  # a double
    assert [json.loads(element) for element, _ in found] == rows


def test_archives_that_are_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(LINES * 2000)
    found = read(tmp_path, packed[: len(packed) // 2])
    assert isinstance(found[-1], Reject)
    assert found[-1].reason == "archive_damaged"
    assert sum(isinstance(item, Record) for item in found) > 100
    with pytest.raises(DamagedArchive, match="Compress it again"):
        read(tmp_path, b"\x1f\x8b" + b"nonsense" * 10)
    with pytest.raises(DamagedArchive):
        read(tmp_path, b"\x28\xb5\x2f\xfd" + b"nonsense" * 10)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_decompression_bombs_are_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b" " * (16 << 20))
    limits = Limits(ratio=100, ratio_from=4 << 20)
    with pytest.raises(DecompressionBomb, match="times its size"):
        read(tmp_path, bomb, limits)
    with pytest.raises(DecompressionBomb):
        read(tmp_path, pack(LINES * 20), Limits(unpacked=len(LINES) * 10))


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b'{"a":1}\n{"b":2}\n', "lines"),
        (b'INFO started, port 80\n{"a":1}\n{"b":2}\n', "lines"),
        (b'null\n{"a":1}\n', "lines"),
        (b'  [\n {"a":1}]', "array"),
        (b"[]", "array"),
        (b'[]\n{"a":1}\n', "lines"),
        (b'[{"a":1},\n{"a":1}]\n', "array"),
        (b'[{"a":1}]\n\n', "array"),
        (b'[2026-01-01] INFO, started\n{"a":1}\n{"a":1}', "lines"),
        (b"prompt,completion\na,b\n", ","),
        (b"prompt;completion\na,a;b\n", ";"),
        (b"prompt\tcompletion\na\tb\n", "\t"),
        (b'{\n "a": 1\n}\n', "values"),
        (b"hello world\n", "lines"),
    ],
)
def test_containers_are_told_apart(head: bytes, kind: str) -> None:
    assert container(head) == kind
