"""A run whose worker was lost for good is tried again: it goes on, and nobody sees a seam."""

import time

import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import transaction
from app.jobs.leftovers import sweep
from app.jobs.models import JobAttempt
from app.projects.models import Project
from app.runs import queries, service
from app.runs.queries import RunView
from app.settings import Settings
from app.specs.jobs import JobState
from app.specs.training import RunSpec, TrainingSpec
from app.storage.blobs import LocalBlobs
from tests.support import made_rows
from tests.support.workers import carry_out, working
from tests.workers.distill import tiny
from workers.distill.checkpoints import read_card, save_checkpoint

Factory = sessionmaker[Session]
PATIENCE = 240
STEPS, EVERY = 200, 20


def view(session: Session, number: int) -> RunView:
    found = queries.by_number(session, session.scalars(select(Project.id)).one(), number)
    assert found is not None
    return found


def start_two(session: Session, settings: Settings) -> None:
    """Start two runs of one spec, without a teacher, on a student that can really be trained."""
    project = made_rows.project(session)
    student = made_rows.checkpoint(session, project, "student")
    folder = LocalBlobs(settings.blobs).path(str(student.blob))
    save_checkpoint(tiny.llama(), tiny.tokenizer(), folder)
    student.card = read_card(folder).model_dump(mode="json")
    version = made_rows.version(session, project, settings)
    training = TrainingSpec.model_validate(
        {
            "objective": {"kind": "ce", "alpha": 0},
            "schedule": {"steps": STEPS, "batch_size": 4, "snapshot_every": EVERY},
            "render": {"max_tokens": 256},
        }
    )
    for name in ("undisturbed", "failing"):
        spec = RunSpec(
            name=name,
            teacher_id=None,
            student_id=student.id,
            dataset_version_id=version.id,
            training=training,
        )
        service.start(session, project, spec, owner="ada")


def kill_the_training_after(factory: Factory, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with transaction(factory) as session:
            job = view(session, 2).phases[0].job
            done = (job.progress or {}).get("done", 0) if job.state == JobState.RUNNING else 0
        if done >= step:
            for child in psutil.Process().children():
                if child.cmdline()[-2:] == ["workers.tasks", "train"]:
                    child.kill()
            return
        time.sleep(0.05)
    pytest.fail(f"it never came to step {step}")


@pytest.mark.slow
def test_a_run_that_is_tried_again_goes_on_from_its_newest_snapshot(
    factory: Factory, settings: Settings
) -> None:
    impatient = settings.model_copy(update={"max_attempts": 1})
    with transaction(factory) as session:
        start_two(session, settings)
    with working(factory, impatient):
        kill_the_training_after(factory, 2 * EVERY)
        deadline = time.monotonic() + PATIENCE
        state = ""
        while state != "failed" and time.monotonic() < deadline:
            with transaction(factory) as session:
                state = view(session, 2).state
            time.sleep(0.05)
    assert state == "failed"
    with transaction(factory) as session:
        sweep(session, settings)
        lost = view(session, 2).phases[0].job
        assert [path.name for path in settings.work.iterdir()] == [str(lost.fence)]
        made = service.retry(session, view(session, 2), owner="ada")
        assert [job.parent_id for job in made] == [lost.id]
    carry_out(factory, settings)
    with transaction(factory) as session:
        first, second = view(session, 1), view(session, 2)
        assert (first.state, second.state) == ("succeeded", "succeeded")
        again = session.scalars(
            select(JobAttempt).where(JobAttempt.job_id == second.phases[0].job.id)
        ).one()
        assert (again.resumed_from_step or 0) >= 2 * EVERY
        curves = [queries.series_of(session, run)["train/loss"] for run in (first, second)]
        assert [step for step, _ in curves[1]] == list(range(1, STEPS + 1))
        assert curves[0] == curves[1], "a seam"
        log = [line.text for line in queries.log_of(session, second, limit=100)]
        assert f"Resuming after step {again.resumed_from_step} from" in " ".join(log)
        sweep(session, settings)
    assert list(settings.work.iterdir()) == []
