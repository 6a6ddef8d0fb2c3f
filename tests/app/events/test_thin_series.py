"""Curves of many runs on one page are thinned by the database."""

from sqlalchemy.orm import Session

from app.events.append import add_points
from app.events.queries import thin_series

METRICS = ("train/loss", "train/kd_loss")


def test_curves_keep_their_ends_and_about_so_many_points(session: Session) -> None:
    for job_id, steps in ((71, 1000), (72, 3)):
        points = {s: {"train/loss": s / 2, "optim/grad_norm": 1.0} for s in range(1, steps + 1)}
        add_points(session, "run:1", job_id=job_id, fence=1, steps=points)
    found = thin_series(session, [71, 72, 73], METRICS, points=90)
    assert set(found) == {(71, "train/loss"), (72, "train/loss")}
    assert found[72, "train/loss"] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    long = found[71, "train/loss"]
    # 1,000 ÷ 90 is 11: every eleventh, and the last.
    assert [step for step, _ in long] == [*range(1, 1001, 11), 1000]
    assert long[-1] == (1000, 500.0)
