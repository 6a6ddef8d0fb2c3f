"""The loop: splitting and resuming change nothing; bad numbers stop it by name."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.specs.teacher import CaptureProfile
from app.specs.training import Objective, Schedule, Trainable, TrainingSpec
from tests.workers.distill import tiny
from workers.distill import checkpointing
from workers.distill.batches import BatchSource, Collator
from workers.distill.callbacks import Silent
from workers.distill.checkpointing import (
    MODEL,
    load_snapshot,
    prune_snapshots,
    recorded_snapshots,
    snapshot_folder,
    snapshot_folders,
    verify_snapshot,
)
from workers.distill.checkpoints import load_model, load_weights, state_sha256
from workers.distill.errors import NonFiniteLossError, SnapshotError
from workers.distill.optimizing import learning_rate, select_trainable
from workers.distill.selection import Validation
from workers.distill.stepping import Stepper
from workers.distill.teachers import LiveTeacher, LocalTeacher
from workers.distill.trainer import TrainResult, train
from workers.distill.values import TargetRows

ITEMS = tiny.rendered(tiny.tickets(24))
ROWS = tiny.LiveRows(tiny.llama(hidden=48, seed=9), ITEMS)

HELD_OUT = (
    BatchSource(ITEMS, ROWS, Objective(alpha=0.6), Schedule(batch_size=8), 5).step(0).micro[0]
)


class Recorder(Silent):
    """Keeps the metrics and log; asks to stop after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.logs: list[str] = []
        self.resumed_from: list[int] = []
        self.stop_after = stop_after

    def resumed(self, step: int) -> None:
        self.resumed_from.append(step)

    def metrics(self, step: int, values: Any) -> None:
        self.points[step] = dict(values)

    def log(self, text: str, level: str = "info") -> None:
        self.logs.append(f"{level}: {text}")

    def should_stop(self) -> bool:
        return self.stop_after is not None and max(self.points, default=0) >= self.stop_after


def spec(**schedule: Any) -> TrainingSpec:
    values = {"steps": 6, "batch_size": 8, "snapshot_every": 2, "warmup_steps": 2} | schedule
    return TrainingSpec(objective=Objective(alpha=0.6), schedule=Schedule(**values))


def run(
    workdir: Path,
    what: TrainingSpec,
    callbacks: Recorder | None = None,
    *,
    resume: Path | list[Path] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    validated: bool = True,
    judging: Validation | None = None,
) -> tuple[TrainResult, Any]:
    """Train a tiny model; judging: how it is judged, by default on a batch by the loss."""
    model = tiny.llama(seed=seed)
    batches = BatchSource(ITEMS, ROWS, what.objective, what.schedule, what.seed)
    validation = judging or Validation([HELD_OUT] if validated else [])
    result = train(
        model,
        batches,
        what,
        callbacks=callbacks or Recorder(),
        workdir=workdir,
        tokenizer=tiny.tokenizer(),
        resume_from=resume,
        validation=validation,
        clock=clock,
    )
    return result, model


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole_points, first, second = Recorder(), Recorder(stop_after=3), Recorder()
    whole, whole_model = run(tmp_path / "whole", spec(), whole_points)
    half, _ = run(tmp_path / "half", spec(), first)
    assert (half.steps, half.stopped_early, half.folder) == (3, True, None)
    # A model of other weights: everything must come from the snapshot.
    resumed, model = run(
        tmp_path / "half", spec(), second, resume=tmp_path / "half" / "snapshots", seed=7
    )
    assert state_sha256(model) == state_sha256(whole_model)
    assert (resumed.steps, resumed.tokens, resumed.best_value) == (
        6,
        whole.tokens,
        whole.best_value,
    )
    joined = first.points | second.points
    for step, values in whole_points.points.items():
        for name in ("train/loss", "train/kd_loss", "train/ce_loss", "optim/grad_norm"):
            assert joined[step][name] == values[name]
    assert not whole.stopped_early
    assert whole.folder is not None
    assert state_sha256(load_model(whole.folder)) == state_sha256(whole_model)


def test_what_lies_between_the_steps_is_measured_over_all_attempts(tmp_path: Path) -> None:
    half, _ = run(tmp_path, spec(), Recorder(stop_after=3), clock=partial(next, count(0.0)))
    whole, _ = run(tmp_path, spec(), resume=tmp_path / "snapshots", clock=partial(next, count(0.0)))
    # A step is one tick; a turn of the loop reads the clock at its start, its end, and after all.
    assert (half.seconds, half.lasted) == (3, 9)
    assert (whole.seconds, whole.lasted) == (6, 18)


WORSENING = {"learning_rate": 0.3, "warmup_steps": 0, "validate_every": 1}
"""So high a rate that the first steps are the best."""


@pytest.mark.parametrize("damaged", [False, True])
def test_the_best_step_of_an_earlier_attempt_is_what_a_resumed_training_leaves(
    tmp_path: Path, *, damaged: bool
) -> None:
    whole, _ = run(tmp_path / "whole", spec(**WORSENING))
    assert whole.best_step is not None
    assert whole.best_step < 4, "or this shows nothing"
    first, recorder = Recorder(stop_after=5), Recorder()
    run(tmp_path / "first", spec(**WORSENING), first)
    left = tmp_path / "first" / "snapshots"
    if damaged:
        (snapshot_folder(left, whole.best_step) / MODEL).write_bytes(b"")
    resumed, _ = run(tmp_path / "second", spec(**WORSENING), recorder, resume=left)
    assert resumed.folder is not None
    assert whole.folder is not None
    made, expected = (state_sha256(load_model(r.folder)) for r in (resumed, whole))
    if damaged:
        assert (resumed.best_step, made == expected) == (6, False)
        assert any("gone or damaged" in text for text in recorder.logs)
    else:
        assert (resumed.best_step, resumed.best_value) == (whole.best_step, whole.best_value)
        assert made == expected


def test_how_a_step_is_split_changes_nothing(tmp_path: Path) -> None:
    one, eight = Recorder(), Recorder()
    _, whole = run(tmp_path / "1", spec(steps=3), one)
    _, split = run(tmp_path / "8", spec(steps=3, micro_batch_size=1), eight)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-3, atol=2e-5)
    for step in (1, 2, 3):
        assert eight.points[step]["train/loss"] == pytest.approx(
            one.points[step]["train/loss"], rel=1e-5
        )


def test_a_flipped_byte_falls_back_to_the_snapshot_before(tmp_path: Path) -> None:
    run(tmp_path, spec(validate_every=6), Recorder(stop_after=4))
    newest, before = snapshot_folders(tmp_path / "snapshots")
    target = newest / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(bytes(data))
    with pytest.raises(SnapshotError, match=r"step-00000004: model\.safetensors is not what"):
        verify_snapshot(newest)
    model, recorder = tiny.llama(seed=3), Recorder()
    optimizer = torch.optim.AdamW(select_trainable(model, Trainable()))
    with pytest.raises(SnapshotError, match="another training spec"):
        load_snapshot([before], model, optimizer, spec_hash="0", callbacks=recorder)
    after, _ = run(
        tmp_path, spec(validate_every=6), recorder, resume=tmp_path / "snapshots", seed=3
    )
    assert after.steps == 6
    assert sorted(recorder.points) == [3, 4, 5, 6]
    assert any("Falling back" in text and text.startswith("warning") for text in recorder.logs)


def test_a_manifest_that_is_not_the_recorded_one_falls_back(tmp_path: Path) -> None:
    """A folder that is whole in itself, but not what was announced: it must not be trusted."""
    run(tmp_path, spec(validate_every=6), Recorder(stop_after=4))
    newest, before = snapshot_folders(tmp_path / "snapshots")
    recorded = [(4, newest, verify_snapshot(before)), (2, before, verify_snapshot(before))]
    recorder = Recorder()
    candidates = recorded_snapshots([*recorded, (1, tmp_path / "gone", "0")], recorder)
    assert candidates == [before]
    changed, gone = recorder.logs
    assert changed.startswith(
        "warning: Snapshot step-00000004: its manifest is not the one recorded"
    )
    assert gone.startswith("warning: Snapshot gone: its manifest is gone. Falling back")
    after, _ = run(tmp_path, spec(validate_every=6), recorder, resume=candidates, seed=3)
    assert (after.steps, recorder.resumed_from) == (6, [2])
    assert recorded_snapshots([], recorder) is None
    with pytest.raises(SnapshotError, match=r"resume from\. Start the run again"):
        run(tmp_path, spec(), recorder, resume=recorded_snapshots(recorded[:1], recorder))


def test_the_last_two_snapshots_and_the_best_are_kept(tmp_path: Path) -> None:
    recorder = Recorder()
    what = spec(learning_rate=1e-2, validate_every=1, snapshot_every=1, warmup_steps=0).model_copy(
        update={"objective": Objective(kind="ce", alpha=0.0)}
    )
    right = BatchSource(ITEMS, None, what.objective, what.schedule, 5).step(0).micro[0]
    # A label that training does not teach: the better it learns, the worse it gets on it.
    wrong = replace(right, labels=torch.full_like(right.labels, 300))
    model = tiny.llama()
    result = train(
        model,
        BatchSource(ITEMS, None, what.objective, what.schedule, 0),
        what,
        callbacks=recorder,
        workdir=tmp_path,
        tokenizer=tiny.tokenizer(),
        validation=Validation([wrong]),
    )
    assert result.best_step == 1
    kept = {int(p.name[5:]) for p in snapshot_folders(tmp_path / "snapshots")}
    assert kept == {1, 5, 6}
    losses = {s: v["validation/loss"] for s, v in recorder.points.items()}
    assert result.best_value == min(losses.values()) == losses[result.best_step]
    best = tiny.llama(seed=4)
    load_weights(best, snapshot_folder(tmp_path / "snapshots", result.best_step) / MODEL)
    assert state_sha256(best) == state_sha256(model)


def test_a_nan_stops_with_the_step_and_a_mend(tmp_path: Path) -> None:
    what = spec()
    model = tiny.llama()
    with torch.no_grad():
        model.base_model.norm.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"Step 1: .* Lower the learning rate"):
        train(
            model,
            BatchSource(ITEMS, ROWS, what.objective, what.schedule, 0),
            what,
            callbacks=Recorder(),
            workdir=tmp_path,
            tokenizer=tiny.tokenizer(),
        )
    assert not (tmp_path / "checkpoint").exists()


def test_weights_that_the_last_update_broke_are_not_kept(tmp_path: Path) -> None:
    """The only step's loss and gradient are finite; its decay is beyond float32."""
    what = spec(steps=1, warmup_steps=0)
    schedule = what.schedule.model_copy(update={"weight_decay": 1e300})
    recorder = Recorder()
    words = r"Step 1: its update left .* Lower the learning rate \(now 0\.0005\).*weight decay"
    with pytest.raises(NonFiniteLossError, match=words):
        run(
            tmp_path,
            what.model_copy(update={"schedule": schedule}),
            recorder,
            validated=False,
        )
    assert torch.isfinite(torch.tensor(recorder.points[1]["train/loss"]))
    assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(ValidationError, match="weight_decay"):
        Schedule(weight_decay=10.1)


def test_only_the_chosen_weights_move() -> None:
    model = tiny.llama(layers=3)
    select_trainable(model, Trainable(top_layers=1))
    moving = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moving == {
        n for n, _ in model.named_parameters() if n.startswith(("model.layers.2.", "model.norm."))
    }
    select_trainable(model, Trainable(freeze_embeddings=True))
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert still == {"model.embed_tokens.weight"}
    untied = tiny.llama(tied=False)
    select_trainable(untied, Trainable(top_layers=1))
    assert untied.lm_head.weight.requires_grad
    assert not untied.model.embed_tokens.weight.requires_grad


def test_learning_rate_by_hand() -> None:
    schedule = Schedule(steps=12, warmup_steps=2, learning_rate=1.0, min_lr_ratio=0.2)
    assert [learning_rate(schedule, s) for s in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(schedule, 7) == pytest.approx(0.6)
    assert learning_rate(schedule, 12) == pytest.approx(0.2)


class Dense:
    """A lookup of rows that hold a teacher's whole distribution, unrounded."""

    grid = (1.0, 2.0)

    def __init__(self, model: Any) -> None:
        self._teacher = LocalTeacher(model, len(tiny.tokenizer()))

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        ids = {item.entry: item.input_ids for item in ITEMS}
        profile = CaptureProfile(name="dense", temperatures=self.grid)
        return list(self._teacher.capture([ids[e] for e in entries], profile))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("packing", [False, True])
def test_a_live_teacher_trains_as_its_whole_rows_do(
    tmp_path: Path, temperature: float, kind: Any, *, packing: bool
) -> None:
    teacher = tiny.llama(hidden=48, seed=9)
    weights = {}
    for where in ("live", "cache"):
        objective = Objective(kind=kind, alpha=0.6, temperature=temperature, teacher=where)
        what = spec(steps=3, micro_batch_size=2, packing=packing)
        what = what.model_copy(update={"objective": objective})
        lookup = None if where == "live" else Dense(teacher)
        seen = Recorder()
        model = tiny.llama(seed=0)
        train(
            model,
            BatchSource(ITEMS, lookup, objective, what.schedule, what.seed),
            what,
            callbacks=seen,
            workdir=tmp_path / where,
            tokenizer=tiny.tokenizer(),
            vocabulary=len(tiny.tokenizer()),
            live=LiveTeacher(teacher, len(tiny.tokenizer()), temperature)
            if where == "live"
            else None,
        )
        weights[where] = (seen.points, torch.cat([p.flatten() for p in model.parameters()]))
    for step, values in weights["live"][0].items():
        for name in ("train/loss", "train/kd_loss", "train/ce_loss"):
            assert values[name] == pytest.approx(weights["cache"][0][step][name], rel=1e-4)
    torch.testing.assert_close(weights["live"][1], weights["cache"][1], rtol=1e-3, atol=1e-5)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_agreement_is_with_the_live_teacher() -> None:
    """Its own weights agree with it everywhere, others as often as their top tokens are equal."""
    teacher = tiny.llama(hidden=48, seed=9, tied=False)
    other = tiny.llama(seed=3, tied=False)
    what = TrainingSpec(objective=Objective(teacher="live"))
    batch = Collator(None, what.objective)(ITEMS[:4])
    tops = []
    for model in (teacher, other):
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        tops.append(logits.flatten(0, 1)[batch.positions].argmax(-1))
    expected = float((tops[0] == tops[1]).float().mean())
    assert expected < 1
    twin = tiny.llama(hidden=48, seed=9, tied=False)
    for model, share in ((twin, 1.0), (other, expected)):
        live = LiveTeacher(teacher, len(tiny.tokenizer()), 1.0)
        stepper = Stepper(model, what, live=live)
        alone = stepper.measure([batch], agreement=False)
        asked: list[Any] = []
        both = [
            m.model.register_forward_pre_hook(lambda m, _, to=asked: to.append(m))
            for m in (model, teacher)
        ]
        found = stepper.measure([batch], agreement=True)
        for hook in both:
            hook.remove()
        assert found.pop("validation/agreement") == pytest.approx(share)
        assert asked == [model.model, teacher.model][::-1], (
            "teacher and student look at a batch once"
        )
        assert found == alone


def test_a_snapshot_stays_until_a_later_one_can_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed has told of a snapshot some steps ago: that one must be there."""
    monkeypatch.setattr(checkpointing, "UNRECORDED_SECONDS", 60.0)
    run(tmp_path, spec(steps=12, snapshot_every=1))
    folders = snapshot_folders(tmp_path / "snapshots")
    assert len(folders) == 12
    for folder in folders[4:]:
        os.utime(folder, (0, 0))
    gone = prune_snapshots(tmp_path / "snapshots", best_step=2)
    assert [f.name for f in gone] == [f.name for f in folders[4:] if not f.name.endswith("02")]
