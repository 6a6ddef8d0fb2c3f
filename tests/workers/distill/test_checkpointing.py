"""Snapshots: one changed byte anywhere is found; the best and the last two stay."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.workers.distill import tiny
from workers.distill.checkpointing import (
    Snapshot,
    SnapshotState,
    drop_old_snapshots,
    load_snapshot,
    verify_snapshot,
    write_snapshot,
)
from workers.distill.errors import SnapshotError


@pytest.fixture
def trained() -> tuple[Any, Any]:
    model = tiny.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    optimizer.step()
    return model, optimizer


def _write(root: Path, trained: tuple[Any, Any], step: int = 3) -> Snapshot:
    return write_snapshot(root, *trained, SnapshotState(step=step, cursor=step, spec_hash="s"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_changed_byte_is_found(tmp_path: Path, trained: Any, name: str) -> None:
    snapshot = _write(tmp_path, trained)
    assert verify_snapshot(snapshot.folder, snapshot.manifest_sha256)["step"] == 3
    tiny.flip_byte(snapshot.folder / name)
    with pytest.raises(SnapshotError, match=name):
        verify_snapshot(snapshot.folder, snapshot.manifest_sha256)


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_missing_file_is_found(tmp_path: Path, trained: Any, name: str) -> None:
    snapshot = _write(tmp_path, trained)
    (snapshot.folder / name).unlink()
    with pytest.raises(SnapshotError):
        verify_snapshot(snapshot.folder)


def test_everything_comes_back(tmp_path: Path, trained: tuple[Any, Any]) -> None:
    snapshot = _write(tmp_path, trained)

    def draw() -> tuple[float, ...]:
        return random.uniform(0, 1), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002, S311 - the global generators are what is tested

    expected = draw()
    other = tiny.make_model(seed=8)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    state = load_snapshot(snapshot, other, optimizer)
    assert (state.step, state.cursor) == (3, 3)
    assert tiny.same_weights(other, trained[0])
    pairs = zip(other.parameters(), trained[0].parameters(), strict=True)
    for a, b in pairs:
        for key, value in trained[1].state[b].items():
            assert torch.equal(optimizer.state[a][key], value)
    assert draw() == expected


def test_the_last_two_and_the_best_stay(tmp_path: Path, trained: tuple[Any, Any]) -> None:
    for step in (1, 2, 3, 4, 5):
        _write(tmp_path, trained, step)
    drop_old_snapshots(tmp_path, best_step=2)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [2, 4, 5]
