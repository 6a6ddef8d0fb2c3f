"""Splits: stable, in proportion, whole groups only."""

from hypothesis import given
from hypothesis import strategies as st

from app.specs.fingerprint import fingerprint
from app.specs.split import side
from tests.workers.ingest.conftest import Load, chat

SHARES = st.floats(0, 0.5)


@given(st.text(), SHARES, SHARES, SHARES, SHARES)
def test_a_row_never_moves_between_held_out_sides(
    group: str, validation: float, test: float, more_validation: float, more_test: float
) -> None:
    before = side(group, validation_share=validation, test_share=test)
    larger = side(
        group,
        validation_share=max(validation, more_validation),
        test_share=max(test, more_test),
    )
    if before != "train":
        assert larger == before
    assert side(group, validation_share=0, test_share=0) == "train"


def test_shares_are_met() -> None:
    sides = [side(fingerprint(n), validation_share=0.1, test_share=0.2) for n in range(20_000)]
    assert abs(sides.count("test") / 20_000 - 0.2) < 0.01
    assert abs(sides.count("validation") / 20_000 - 0.1) < 0.01


def test_more_traffic_moves_no_conversation(load: Load) -> None:
    records = [chat(f"question {n}", answer=f"answer {n}") for n in range(60)]
    first = {c.id: c.split for c in load(records[:30]).conversations}
    later = {c.id: c.split for c in load(records[::-1]).conversations}
    assert first.items() <= later.items()
    assert len(set(later.values())) == 3


def test_roots_that_differ_in_case_and_space_share_a_side(load: Load) -> None:
    result = load([chat("Where is it?", answer="a"), chat("  WHERE is  it?", answer="b")])
    assert len(result.conversations) == 2
    assert len({c.group for c in result.conversations}) == 1
