"""What all tests of workers share."""

import pytest

from workers.distill import checkpointing


@pytest.fixture(autouse=True)
def _snapshots_are_recorded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of snapshots here, so none is kept until it was."""
    monkeypatch.setattr(checkpointing, "UNRECORDED_SECONDS", 0.0)
