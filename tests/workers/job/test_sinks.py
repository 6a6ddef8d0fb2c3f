"""The supervisor's end of the pipe: how long a phase still takes follows from its speed."""

import pytest

from app.jobs.lease import Claim
from app.specs.events import ProgressEvent
from workers import sinks
from workers.sinks import EventRows


def test_what_is_left_follows_from_the_speed_since_the_first_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = iter([100.0, 110.0, 130.0, 131.0])
    monkeypatch.setattr(sinks.time, "monotonic", lambda: next(moments))
    held = Claim(1, 1, "train", {}, "run:1", 2, ())
    rows = EventRows(held, lambda *_: None)

    def left(done: int, **given: float) -> float | None:
        return rows._left(ProgressEvent(done=done, total=150, unit="steps", **given))

    # A resumed training starts at step 50: its first report tells no speed.
    assert left(50) is None
    # 20 steps in 10 s, 80 to go.
    assert left(70) == pytest.approx(40)
    # 50 steps in 30 s, 50 to go.
    assert left(100) == pytest.approx(30)
    assert left(101, eta_seconds=7.0) == 7.0
