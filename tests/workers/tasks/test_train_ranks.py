"""A training's own child process with two ranks: a stop reaches both, and what was done is kept."""

import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.specs.conversation import Conversation
from app.specs.dataset_file import to_row
from app.specs.events import LogEvent, MetricEvent, ResultEvent, SnapshotEvent
from app.specs.jobs import TrainJob
from app.specs.training import RunSpec
from tests.workers.distill import tiny
from workers.distill.checkpoints import load_model, save_checkpoint
from workers.job.child import EXIT_STOPPED
from workers.job.process import Child
from workers.job.supervisor import ROOT
from workers.tasks.train import TrainInputs

PATIENCE_SECONDS = 120


def conversations() -> list[Conversation]:
    made = tiny.tickets(40)
    return [
        c.model_copy(update={"split": "validation" if at % 5 == 0 else "train"})
        for at, c in enumerate(made)
    ]


def inputs_of(folder: Path) -> TrainInputs:
    student, file = folder / "student", folder / "conversations.parquet"
    save_checkpoint(tiny.llama(), tiny.tokenizer(), student)
    pq.write_table(pa.Table.from_pylist([to_row(c) for c in conversations()]), file)
    training = {
        "objective": {"kind": "ce", "alpha": 0},
        "schedule": {
            "steps": 100_000,
            "batch_size": 8,
            "ranks": 2,
            "validate_every": 1000,
            "packing": True,
        },
        "gradient_checkpointing": True,
    }
    run = RunSpec.model_validate(
        {"name": "x", "teacher_id": None, "student_id": 1, "dataset_version_id": 1}
        | {"training": training}
    )
    return TrainInputs(
        job=TrainJob(run_id=1, run=run),
        student=str(student),
        conversations=str(file),
        shards=(),
        space=None,
        pair=None,
        licence=None,
        cards=2,
    )


def members(group: int) -> list[int]:
    """Return the processes of a group that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(folder.name))
    return found


def test_two_ranks_train_until_both_are_asked_to_stop(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    workdir.mkdir()
    request = {
        "inputs": inputs_of(tmp_path).model_dump(mode="json"),
        "workdir": str(workdir),
        "blobs": str(tmp_path),
        "snapshots": [],
    }
    child = Child([sys.executable, "-m", "workers.tasks", "train"], request, root=ROOT)
    events: list[Any] = []
    until = time.monotonic() + PATIENCE_SECONDS
    asked = False
    try:
        while (event := child.events.get(timeout=max(1, until - time.monotonic()))) is not None:
            events.append(event)
            if isinstance(event, MetricEvent) and event.step >= 3 and not asked:
                asked = True
                assert len(members(child.process.pid)) >= 2
                child.ask_to_stop()
        assert child.process.wait(10) == EXIT_STOPPED, "\n".join(child.stderr)
        deadline = time.monotonic() + 10
        while members(child.process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert members(child.process.pid) == []
    finally:
        child.close()
    [result] = [e for e in events if isinstance(e, ResultEvent)]
    steps = result.payload["steps"]
    assert 3 <= steps < 1000
    assert [e.step for e in events if isinstance(e, SnapshotEvent)][-1] == steps
    load_model(Path(result.payload["folder"]))
    assert any("Micro-batches of 4" in e.text for e in events if isinstance(e, LogEvent))
    losses = [e.values["train/loss"] for e in events if isinstance(e, MetricEvent)]
    assert len(losses) == steps, "one rank alone tells"
