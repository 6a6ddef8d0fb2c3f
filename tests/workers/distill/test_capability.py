"""The capability itself: with few labels, soft targets bring a student closer to its teacher."""

from pathlib import Path
from typing import Any

import pytest

from app.specs.conversation import Conversation
from app.specs.training import Objective, Schedule, TrainingSpec
from tests.workers.distill import tiny
from workers.distill.batches import BatchSource, TeacherLookup
from workers.distill.callbacks import Silent
from workers.distill.evaluation.fidelity import fidelity
from workers.distill.trainer import train


def fit(
    model: Any,
    conversations: tuple[Conversation, ...],
    teacher: TeacherLookup | None,
    workdir: Path,
    *,
    steps: int,
) -> Any:
    objective = (
        Objective(kind="ce", alpha=0.0) if teacher is None else Objective(alpha=1.0, temperature=1)
    )
    spec = TrainingSpec(
        objective=objective,
        schedule=Schedule(steps=steps, batch_size=16, learning_rate=3e-3, snapshot_every=steps),
    )
    items = tiny.rendered(conversations)
    train(
        model,
        BatchSource(items, teacher, objective, spec.schedule, 0),
        spec,
        callbacks=Silent(),
        workdir=workdir,
        tokenizer=tiny.tokenizer(),
    )
    return model


@pytest.mark.slow
def test_soft_targets_beat_labels_on_sixteen_conversations(tmp_path: Path) -> None:
    conversations = tiny.tickets(640, seed=1)
    known, held_out = conversations[:480], conversations[480:]
    teacher = fit(tiny.llama(hidden=128, layers=4), known, None, tmp_path / "teacher", steps=150)
    few = known[:16]
    rows = tiny.LiveRows(teacher, tiny.rendered(few))
    found = {}
    for name, lookup in (("ce", None), ("kd", rows)):
        student = fit(tiny.llama(hidden=48, seed=3), few, lookup, tmp_path / name, steps=120)
        values = fidelity(
            student,
            teacher,
            tiny.rendered(held_out),
            vocabulary=len(tiny.tokenizer()),
            batch_size=32,
            callbacks=Silent(),
        )
        tokens = sum(v.tokens for v in values)
        found[name] = (
            sum(v.kl for v in values) / tokens,
            sum(v.agreements for v in values) / tokens,
        )
    assert found["kd"][0] < 0.7 * found["ce"][0], found
    assert found["kd"][1] > found["ce"][1] + 0.04, found
