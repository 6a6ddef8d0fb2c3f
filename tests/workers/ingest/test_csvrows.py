"""CSV rows: quoted newlines, wrong column counts, quotes that never close."""

from app.specs.conversation import Reject
from workers.ingest.csvrows import csv_records
from workers.ingest.values import Record


def rows(text: str) -> list[tuple[int, object]]:
    lines = iter([(line.encode(), False) for line in text.split("\n")])
    found = csv_records(lines, "up.csv", delimiter=",", limit=1 << 20)
    return [
        (item.line, item.value if isinstance(item, Record) else item.reason)
        for item in found
        if not (isinstance(item, Reject) and item.reason == "blank_line")
    ]


def test_quoted_cells_over_lines_keep_their_line_numbers() -> None:
    text = 'a,b\r\n"one\r\ntwo","say ""hi"""\r\n3,4\r\n'
    assert rows(text) == [(2, {"a": "one\ntwo", "b": 'say "hi"'}), (4, {"a": "3", "b": "4"})]


def test_wrong_column_counts_are_one_reject_each() -> None:
    assert rows('a,b\n1\n1,2,3\n"x\ny",2,3\n5,6') == [
        (2, "csv_wrong_columns"),
        (3, "csv_wrong_columns"),
        (4, "csv_wrong_columns"),
        (6, {"a": "5", "b": "6"}),
    ]


def test_a_quote_that_never_closes_costs_its_own_line() -> None:
    assert rows('a,b\n1,2\n"3,4\n5,6\n7,8') == [
        (2, {"a": "1", "b": "2"}),
        (3, "csv_quote_unclosed"),
        (4, {"a": "5", "b": "6"}),
        (5, {"a": "7", "b": "8"}),
    ]


def test_column_names_are_stripped_and_made_unique() -> None:
    assert rows(" a ,a,\n1,2,3") == [(2, {"a": "1", "a_2": "2", "column_3": "3"})]


def test_blank_rows_are_skipped_and_counted() -> None:
    lines = iter([(b"a,b", False), (b"", False), (b" , ", False), (b"1,2", False)])
    found = list(csv_records(lines, "u", delimiter=",", limit=100))
    reasons = [item.reason for item in found if isinstance(item, Reject)]
    assert reasons == ["blank_line", "blank_line"]
