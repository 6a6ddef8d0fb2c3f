"""Micro-batches that fit: chosen by a probe, halved where memory runs out, kept in the snapshot."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.distill import tiny
from tests.workers.distill.test_trainer import ITEMS, ROWS, Recorder, run, spec
from workers.distill import memory, stepping
from workers.distill.batches import BatchSource
from workers.distill.checkpointing import snapshot_folders
from workers.distill.checkpoints import state_sha256
from workers.distill.errors import OutOfMemoryError
from workers.distill.memory import (
    HEADROOM,
    free_bytes,
    growth_of,
    halved,
    is_out_of_memory,
    largest_fit,
)
from workers.distill.stepping import Stepper

CPU = torch.device("cpu")


def fit(most: int, free: int, each: float = 60, first: float = 40) -> tuple[int, list[int]]:
    """Return what fits of 40 + 60 n bytes, and for which n was measured; 20 go beside."""
    asked: list[int] = []

    def measure(count: int) -> float:
        asked.append(count)
        return first + each * count

    size, takes = largest_fit(most, measure, beside=20, free=free)
    assert takes >= first + each * size
    assert size == 1 or first + each * size + 20 <= HEADROOM * free
    return size, asked


@pytest.mark.parametrize(
    ("most", "free", "size", "asked"),
    [
        # 80 % of 2,025 less 20 are 1,600: sixteen times one. One less, and eight are measured
        # (520), of which twice as many fit.
        (16, 2025, 16, [1]),
        (16, 2024, 16, [1, 8]),
        # Twice 520 are 1,040 and 20 beside: 1,325.
        (16, 1325, 16, [1, 8]),
        (16, 1324, 8, [1, 8]),
        (12, 1000, 12, [1, 4, 8]),
        (12, 999, 8, [1, 4, 8]),
        (16, 275, 2, [1, 2]),
        (16, 274, 1, [1]),
        (16, 120, 1, [1]),
        (1, 120, 1, [1]),
    ],
)
def test_the_largest_that_fits_by_hand(most: int, free: int, size: int, asked: list[int]) -> None:
    assert fit(most, free) == (size, asked)


def test_where_not_even_one_fits_nothing_else_is_tried() -> None:
    with pytest.raises(OutOfMemoryError, match="Turn gradient checkpointing on"):
        fit(16, 119)
    with pytest.raises(OutOfMemoryError, match="takes more than there is of memory"):
        fit(16, 10**9, each=math.inf)


def test_halving_by_hand() -> None:
    assert [halved(n, 1) for n in (16, 12, 9, 8, 3, 2)] == [8, 8, 8, 4, 2, 1]
    with pytest.raises(OutOfMemoryError, match="Step 7: not even one conversation fits"):
        halved(1, 7)


def test_the_growth_of_a_block_is_its_size() -> None:
    size = 192 << 20

    def work() -> None:
        torch.ones(size // 4).sum()

    assert growth_of(CPU, work) == pytest.approx(size, rel=0.1)
    assert growth_of(CPU, work) == pytest.approx(size, rel=0.1), "the peak of before is forgotten"


def test_free_memory_is_what_the_control_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP_1", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUP_2", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    machine = free_bytes(CPU)
    assert machine > 1 << 26
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert free_bytes(CPU) == 2_000_000
    stat = "file 1900000\ninactive_file 700000\nactive_file 1200000\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert free_bytes(CPU) == 2_700_000, "what it read and no longer needs gives way"


def test_the_older_control_group_counts_its_children_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP_1", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP_2", tmp_path / "none")
    (tmp_path / "memory.limit_in_bytes").write_text("5000000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("4500000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 400000\n")
    assert free_bytes(CPU) == 900_000


def test_the_probe_leaves_weights_gradients_and_chance_as_they_were() -> None:
    model, what = tiny.llama().train(), spec()
    stepper = Stepper(model, what)
    lengths = sorted((len(i.input_ids) for i in ITEMS), reverse=True)
    before, chance = state_sha256(model), torch.get_rng_state()
    source = BatchSource(ITEMS, ROWS, what.objective, what.schedule, 0)
    size, sentence = stepper.fitting(source.longest)
    assert size == what.schedule.batch_size
    assert "Micro-batches of 8 conversations, the whole batch: " in sentence
    long = Stepper(model, spec(batch_size=64))
    rows = 1 << math.ceil(math.log2(stepping.ENOUGH_TOKENS / max(lengths)))
    size, sentence = long.fitting(source.longest)
    assert size == rows == 16, "of 64: more would only be padding"
    assert f"Micro-batches of {rows} conversations, enough for the processor, with" in sentence
    assert state_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(p.grad is None for p in model.parameters())
    assert source.longest(2).attention_mask.sum(1).tolist() == lengths[:2]


def limited(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the probe find room for `size` conversations of 100 bytes each."""
    monkeypatch.setattr(stepping, "growth_of", lambda _, work: (work(), 100)[1])
    monkeypatch.setattr(stepping, "largest_fit", lambda *_, **__: (size, 100.0 * size))


def test_what_was_chosen_is_kept_so_that_resuming_equals_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 2)
    recorder = Recorder()
    whole, whole_model = run(tmp_path / "whole", spec(), recorder)
    assert any("Micro-batches of 2 conversations, the most that" in text for text in recorder.logs)
    run(tmp_path / "half", spec(), Recorder(stop_after=3))
    limited(monkeypatch, 8)
    other, other_model = run(tmp_path / "other", spec())
    resumed, model = run(tmp_path / "half", spec(), resume=tmp_path / "half" / "snapshots", seed=7)
    assert state_sha256(model) == state_sha256(whole_model)
    assert state_sha256(other_model) != state_sha256(whole_model), "or the size shows nowhere"
    assert (resumed.steps, other.steps) == (whole.steps, whole.steps)


class _Full(Stepper):
    """Has memory for three conversations, and for none from a step on."""

    none_from = 10**9
    rows: list[int] = []  # noqa: RUF012 - of the test

    def forward(self, batch: Any, denominator: int) -> Any:
        _Full.rows.append(len(batch.input_ids))
        if len(batch.input_ids) > 3 or len(_Full.rows) > _Full.none_from:
            raise MemoryError if len(_Full.rows) % 2 else torch.OutOfMemoryError("CUDA")
        return super().forward(batch, denominator)


def test_a_step_that_memory_does_not_hold_is_repeated_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, plain = Recorder(), Recorder()
    what = spec(validate_every=1000, micro_batch_size=2)
    _, expected = run(tmp_path / "plain", what, plain, validated=False)
    monkeypatch.setattr("workers.distill.trainer.Stepper", _Full)
    monkeypatch.setattr(_Full, "rows", [])
    full = spec(validate_every=1000, micro_batch_size=8)
    _, model = run(tmp_path / "full", full, alone, validated=False)
    # 8, then 4, then 2: from there on as if 2 had been asked for.
    assert _Full.rows[:4] == [8, 4, 2, 2]
    assert state_sha256(model) == state_sha256(expected)
    assert [text for text in alone.logs if "memory ran out" in text] == [
        "warning: Step 1: memory ran out, so it is repeated in micro-batches of 4.",
        "warning: Step 1: memory ran out, so it is repeated in micro-batches of 2.",
    ]
    for step, values in plain.points.items():
        assert alone.points[step]["train/loss"] == values["train/loss"]


def test_where_not_even_one_fits_the_mend_is_named_and_the_snapshot_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.distill.trainer.Stepper", _Full)
    monkeypatch.setattr(_Full, "rows", [])
    monkeypatch.setattr(_Full, "none_from", 13)
    what = spec(validate_every=1000, micro_batch_size=2)
    with pytest.raises(OutOfMemoryError, match=r"Step 4: not even one .* take a smaller student"):
        run(tmp_path, what, validated=False)
    assert [f.name for f in snapshot_folders(tmp_path / "snapshots")] == ["step-00000002"]
    monkeypatch.setattr(_Full, "none_from", 10**9)
    after, model = run(tmp_path, what, resume=tmp_path / "snapshots", seed=5, validated=False)
    _, whole = run(tmp_path / "whole", what, validated=False)
    assert after.steps == 6
    assert state_sha256(model) == state_sha256(whole)


def test_what_counts_as_out_of_memory() -> None:
    words = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you"
    assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value), "what this torch says"
