"""Which weights are kept and when a training ends: by any metric, in its own direction."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.metrics.registry import METRICS
from app.specs.evaluation import EvaluationSpec
from app.specs.training import Objective, RunSpec, Schedule, TrainingSpec
from tests.workers.distill import tiny
from tests.workers.distill.test_trainer import HELD_OUT, ITEMS, ROWS, Recorder, run, spec
from tests.workers.tasks.test_teaching import Heard
from workers.distill import selection
from workers.distill.batches import BatchSource, Collator
from workers.distill.checkpointing import MODEL, snapshot_folder
from workers.distill.checkpoints import load_model, load_weights, state_sha256
from workers.distill.evaluation.scores import exact_match
from workers.distill.generate import generate
from workers.distill.selection import Answers, Selection, Validation, agreements
from workers.distill.trainer import Trainer
from workers.distill.values import SparseTargets, StudentBatch
from workers.tasks.validating import selection_of, validation_of

RIGHT = "validation/exact_match"


def told(monkeypatch: pytest.MonkeyPatch, values: list[float], metric: str) -> None:
    """Let the validations find these values, one after another."""
    left = iter(values)

    def validate(_: Trainer) -> tuple[dict[str, float], int | None]:
        return {"validation/loss": 1.0, metric: next(left)}, 64

    monkeypatch.setattr(Trainer, "validate", validate)


def judged(**values: Any) -> Validation:
    return Validation([HELD_OUT], Selection(**values))


def test_the_best_is_the_highest_of_what_is_better_higher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, [0.2, 0.9, 0.5], RIGHT)
    recorder = Recorder()
    by = judged(metric=RIGHT, label="exact match", higher=True, percent=True)
    result, model = run(tmp_path, spec(validate_every=2), recorder, judging=by)
    assert (result.best_step, result.best_value, result.best_count) == (4, 0.9, 64)
    kept = tiny.llama(seed=3)
    load_weights(kept, snapshot_folder(tmp_path / "snapshots", 4) / MODEL)
    assert state_sha256(model) == state_sha256(kept)
    assert result.folder is not None
    assert state_sha256(load_model(result.folder)) == state_sha256(kept)
    sentence = "The checkpoint is step 4: highest exact match, 90.0 % of 64 conversations."
    assert f"info: {sentence}" in recorder.logs


def test_the_best_is_the_lowest_of_what_is_better_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, [0.5, 0.2, 0.9], "validation/kl")
    by = judged(metric="validation/kl", label="validation KL")
    assert run(tmp_path, spec(validate_every=2), judging=by)[0].best_step == 4


@pytest.mark.parametrize(
    ("values", "more", "ended", "best"),
    [
        # Two validations in a row without improvement: the third and the fourth.
        ([1.0, 0.9, 0.95, 0.92, 0.5], {"patience": 2}, 8, 4),
        # One in between improves, so that waiting begins anew; then the steps are over.
        ([1.0, 1.1, 0.9, 1.0, 0.8], {"patience": 2}, 10, 10),
        # Improvements of .01 and .005 do not count, yet the best of them is what is kept.
        ([1.0, 0.99, 0.985, 0.1, 0.1], {"patience": 2, "min_delta": 0.05}, 6, 6),
        # .06 in two steps does: it is measured from the last that counted.
        ([1.0, 0.97, 0.94, 0.93, 0.92], {"patience": 2, "min_delta": 0.05}, 10, 10),
        ([1.0, 2.0, 2.0, 2.0, 2.0], {"patience": None}, 10, 2),
        ([float("nan"), 1.0, float("nan"), 2.0, 3.0], {"patience": 3}, 10, 4),
    ],
)
def test_patience_counts_validations_by_hand(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    more: dict[str, Any],
    ended: int,
    best: int,
) -> None:
    told(monkeypatch, values, "validation/kl")
    recorder = Recorder()
    by = judged(metric="validation/kl", label="validation KL", **more)
    result, _ = run(tmp_path, spec(steps=10, validate_every=2), recorder, judging=by)
    assert (result.steps, result.best_step, max(recorder.points)) == (ended, best, ended)
    assert result.folder is not None, "it is done, not stopped"
    assert (result.ending, result.stopped_early) == (
        "steps" if ended == 10 else "patience",
        False,
    )
    why = f"info: Ended after step {ended} of 10: the validation KL did not improve over 2"
    assert any(text.startswith(why) for text in recorder.logs) == (ended < 10)


def test_alike_values_are_told_apart_by_the_loss_and_patience_waits_for_the_first_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = iter([(0, 3), (0, 2.5), (0, 2.8), (0.4, 2), (0.4, 1.8), (0.4, 1.9), (0.9, 1)])

    def validate(_: Trainer) -> tuple[dict[str, float], int | None]:
        value, loss = next(pairs)
        return {"validation/loss": loss, RIGHT: value}, 64

    monkeypatch.setattr(Trainer, "validate", validate)
    by = judged(metric=RIGHT, label="exact match", higher=True, patience=2)
    result, _ = run(tmp_path, spec(steps=14, validate_every=2), judging=by)
    # .4 first came with the fourth validation, and the two after it were not better.
    assert (result.ending, result.steps) == ("patience", 12)
    assert (result.best_step, result.best_value) == (10, 0.4)


ANSWERED = tiny.tickets(12, seed=4)


def answers(count: int = 12) -> Answers:
    """Greedy answers of the student; right is what another student of the same kind says."""
    what = RunSpec(
        name="x",
        teacher_id=1,
        student_id=2,
        dataset_version_id=3,
        training=TrainingSpec(
            objective=Objective(alpha=0.6),
            schedule=Schedule(select_by="exact_match", selection_conversations=count),
        ),
        evaluation=EvaluationSpec(max_new_tokens=3),
    )
    found = validation_of(what, ANSWERED, tiny.tokenizer(), Collator(ROWS_OF, KD), Heard()).answers
    assert found is not None
    return found


KD = Objective(alpha=0.6)
ROWS_OF = tiny.LiveRows(tiny.llama(hidden=48, seed=9), tiny.rendered(ANSWERED))


def test_the_answers_score_is_that_of_the_answers_dealt_to_all_ranks() -> None:
    model, asked = tiny.llama(seed=2), answers()
    assert len(asked.prompts) == 12
    assert len(answers(5).prompts) == 5
    said = generate(
        model,
        tiny.tokenizer(),
        asked.prompts,
        max_new_tokens=3,
        batch_size=16,
        callbacks=Recorder(),
    )
    # Every other truth is what the model says: so many are right, plus those that are anyway.
    truths = [a.text if i % 2 else "no" for i, a in enumerate(said)]
    made = Answers(RIGHT, tiny.tokenizer(), asked.prompts, truths, max_new_tokens=3)
    expected = sum(exact_match(a.text, t) for a, t in zip(said, truths, strict=True))
    assert made.sums(model, Recorder()) == (expected, 12)
    assert expected == 6
    parts = [made.sums(model, Recorder(), (rank, 2)) for rank in (0, 1)]
    assert [sum(column) for column in zip(*parts, strict=True)] == [6, 12]
    assert parts == [(0, 6), (6, 6)]


class Impatient(Recorder):
    """Asks to stop while the answers of a validation are made."""

    asked = 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked > 2  # the first is that of step 1, the next are the answers'


def test_a_stop_within_the_answers_is_made_up_for_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the same bits as without the stop, the best step and the patience included."""
    monkeypatch.setitem(selection._SCORES, RIGHT, lambda *_: 0.25)

    def judging() -> Validation:
        by = Selection(metric=RIGHT, label="exact match", higher=True, patience=2)
        return Validation([HELD_OUT], by, answers())

    whole_points, first, second = Recorder(), Impatient(), Recorder()
    what = spec(steps=8, validate_every=2)
    whole, whole_model = run(tmp_path / "whole", what, whole_points, judging=judging())
    assert (whole.ending, whole.steps) == ("patience", 6)
    half, _ = run(tmp_path / "half", what, first, judging=judging())
    assert (half.ending, half.steps) == ("stopped", 2)
    assert RIGHT not in first.points[2]
    left = tmp_path / "half" / "snapshots"
    resumed, model = run(tmp_path / "half", what, second, judging=judging(), resume=left, seed=7)
    assert state_sha256(model) == state_sha256(whole_model)
    assert second.points[2][RIGHT] == whole_points.points[2][RIGHT] == 0.25
    for name in ("steps", "ending", "best_step", "best_value", "best_count", "tokens"):
        assert getattr(resumed, name) == getattr(whole, name), name
    # What ended by patience and was lost before its result is not trained any further.
    again, model = run(tmp_path / "half", what, judging=judging(), resume=left, seed=7)
    assert (again.ending, again.steps) == ("patience", 6)
    assert state_sha256(model) == state_sha256(whole_model)


def test_agreement_by_hand() -> None:
    """Four positions: the teacher's top token, and the label where the teacher has no row."""
    states = torch.eye(4, 3)
    weight = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0.0, 1.0, 3.0], [9.0, 9.0, 9.0]])
    # The tops among the first three entries are 0, 1, 2 and 0 (all alike).
    teacher = SparseTargets(
        ids=torch.tensor([[0, 1], [2, 1], [0, 0], [0, 0]]),
        log_w=torch.tensor([[-0.1, -3.0], [-0.1, -3.0], [-torch.inf] * 2, [-torch.inf] * 2]),
        log_r=torch.full((4,), -torch.inf),
        temperature=1.0,
    )
    empty = torch.zeros(0)
    batch = StudentBatch(empty, empty, torch.arange(4), torch.tensor([7, 7, 2, 5]), empty, teacher)
    assert agreements(states, weight, batch, 3) == 2
    assert agreements(states, weight, batch, None) == 0
    plain = StudentBatch(empty, empty, torch.arange(4), torch.tensor([0, 1, 1, 0]), empty, None)
    assert agreements(states, weight, plain, 3) == 3


def test_token_agreement_is_measured_where_it_decides(tmp_path: Path) -> None:
    recorder = Recorder()
    assert HELD_OUT.teacher is not None
    ids = HELD_OUT.teacher.ids.clone()
    ids[::3, 0] = 400  # another top token than any student's
    batch = replace(HELD_OUT, teacher=replace(HELD_OUT.teacher, ids=ids))
    how = Selection(metric="validation/agreement", label="token agreement", higher=True)
    by = Validation([batch], how)
    result, model = run(tmp_path, spec(validate_every=6), recorder, judging=by)
    with torch.no_grad():
        hidden = model.base_model(HELD_OUT.input_ids, attention_mask=HELD_OUT.attention_mask)
    rows = hidden.last_hidden_state.flatten(0, 1)[HELD_OUT.positions]
    top = (rows @ model.lm_head.weight.t()).argmax(-1)
    expected = (top == ids[:, 0]).double().mean().item()
    assert result.best_value == recorder.points[6]["validation/agreement"] == expected
    assert 0 < expected < 1


def test_what_cannot_be_measured_gives_way_to_the_loss_and_says_so(tmp_path: Path) -> None:
    recorder = Recorder()
    by = judged(metric=RIGHT, label="validation exact match", higher=True, patience=1)
    result, _ = run(tmp_path, spec(validate_every=3), recorder, judging=by)
    found = [v["validation/loss"] for v in recorder.points.values() if "validation/loss" in v]
    assert result.best_value == min(found)
    assert (result.selection.metric, result.selection.patience) == ("validation/loss", 1)
    [text] = [text for text in recorder.logs if "cannot be measured" in text]
    assert text.startswith("warning: The validation exact match cannot be measured on the valid")
    assert text.endswith(": the best is chosen by the validation loss.")


@pytest.mark.parametrize("name", ["loss", "kl", "agreement", "exact_match", "field_f1"])
def test_direction_and_unit_are_the_registrys(name: str) -> None:
    found = selection_of(Schedule.model_validate({"select_by": name, "min_delta": 0.5}))
    metric = METRICS[f"validation/{name}"]
    assert found.higher == (metric.direction == "higher") == (name not in ("loss", "kl"))
    # Points where it is shown in per cent.
    assert found.min_delta == (0.005 if found.higher else 0.5)
    assert found.better(2.0, 1.0) == found.higher
    assert not found.better(float("nan"), None)
    assert found.label[0].islower()


def test_validation_of_a_run_has_answers_only_where_they_decide() -> None:
    training = TrainingSpec(objective=KD, schedule=Schedule(select_by="agreement", batch_size=5))
    what = RunSpec(name="x", teacher_id=1, student_id=2, dataset_version_id=3, training=training)
    found = validation_of(what, ANSWERED, tiny.tokenizer(), Collator(ROWS_OF, KD), Heard())
    assert found.answers is None
    assert [len(b.input_ids) for b in found.batches] == [5, 5, 2]
    assert found.selection.metric == "validation/agreement"
    assert np.isfinite(BatchSource(ITEMS, ROWS, KD, training.schedule, 0).epochs)
