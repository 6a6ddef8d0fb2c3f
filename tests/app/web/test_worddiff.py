from hypothesis import given
from hypothesis import strategies as st

from app.web.worddiff import MOST_WORDS, Piece, word_diff


def test_values_of_json_differ_by_word() -> None:
    left, right = word_diff('{"a": "one two", "b": 1}', '{"a": "one three", "b": 1}')
    assert [p.text for p in left if p.own] == ["two"]
    assert [p.text for p in right if p.own] == ["three"]


def test_long_texts_are_shown_whole() -> None:
    long = "a " * MOST_WORDS
    assert word_diff(long, "b") == ([Piece(long, own=False)], [Piece("b", own=False)])


@given(st.text(max_size=60), st.text(max_size=60))
def test_pieces_join_to_the_texts(one: str, other: str) -> None:
    left, right = word_diff(one, other)
    assert "".join(p.text for p in left) == one
    assert "".join(p.text for p in right) == other
    assert "".join(p.text for p in left if not p.own) == "".join(p.text for p in right if not p.own)
