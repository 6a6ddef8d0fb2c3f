"""Each view of a teacher trains through real jobs: shared and sampled rows, wide rows, live."""

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.datasets.models import DatasetVersion
from app.db.session import transaction
from app.jobs.models import Job, Worker
from app.projects.models import Project
from app.runs import filling, queries, service
from app.settings import Settings
from app.specs.jobs import JobKind
from app.specs.training import RunSpec
from app.storage.blobs import LocalBlobs
from app.teacher_cache.models import CacheEntry
from tests.support import made_rows
from tests.support.workers import carry_out_here
from tests.workers.distill import tiny
from workers.distill.checkpoints import read_card, save_checkpoint
from workers.tasks import precompute

Factory = sessionmaker[Session]
Values = dict[str, object]
VIEWS: dict[str, tuple[Values, Values]] = {
    "sampled": ({}, {"name": "sampled"}),
    "audit": ({"temperature": 2}, {"name": "audit"}),
    "live": ({"temperature": 1.5, "teacher": "live"}, {}),
}


def start(session: Session, settings: Settings) -> None:
    """Start a run for each view, of a teacher and student that can really be trained."""
    project = made_rows.project(session)
    made = {}
    for name, model in (("teacher", tiny.llama(hidden=48, seed=9)), ("student", tiny.llama())):
        row = made_rows.checkpoint(session, project, name)
        folder = LocalBlobs(settings.blobs).path(str(row.blob))
        save_checkpoint(model, tiny.tokenizer(), folder)
        row.card = read_card(folder).model_dump(mode="json")
        made[name] = row.id
    made_rows.version(session, project, settings)
    for name, view in VIEWS.items():
        ask(session, name, *view, teacher=made["teacher"], student=made["student"])


def ask(
    session: Session, name: str, objective: Values, capture: Values, *, teacher: int, student: int
) -> None:
    spec = RunSpec.model_validate(
        {
            "name": name,
            "teacher_id": teacher,
            "student_id": student,
            "dataset_version_id": session.scalars(select(DatasetVersion.id)).one(),
            "capture": capture,
            "training": {
                "objective": objective,
                "schedule": {"steps": 3, "batch_size": 4, "warmup_steps": 1},
                "render": {"max_tokens": 256},
            },
        }
    )
    service.start(session, session.scalars(select(Project)).one(), spec, owner="ada")


@pytest.mark.slow
def test_every_view_trains_and_two_workers_share_a_cache(
    factory: Factory, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "WORTH_SHARING", 2)
    with transaction(factory) as session:
        session.add_all(Worker(name=f"gpu-{n}", queue="gpu", host="elsewhere") for n in range(2))
        session.flush()
        start(session, settings)
        for job in session.scalars(select(Job).where(Job.kind == JobKind.PRECOMPUTE)):
            job.spec = {**job.spec, "shard_rows": 64}
    carry_out_here(factory, settings)
    with transaction(factory) as session:
        project = session.scalars(select(Project.id)).one()
        for number, name in enumerate(VIEWS, start=1):
            run = queries.by_number(session, project, number)
            assert run is not None
            assert run.state == "succeeded", (name, run.failure and run.failure.error_message)
            losses = queries.series_of(session, run)["train/kd_loss"]
            assert [step for step, _ in losses] == [1, 2, 3]
            assert all(value > 0 for _, value in losses)
            phase = run.phase("precompute")
            assert (phase is None) == (name == "live")
            if phase is None:
                continue
            found = [job.result or {} for job in phase.jobs]
            *parts, whole = [result["report"] for result in found]
            assert len(parts) == 2
            assert all(part["new_rows"] > 0 for part in parts)
            assert sum(part["new_rows"] for part in parts) == whole["rows"]
            assert (whole["new_rows"], whole["missing_rows"]) == (0, 0)
            assert whole["faithfulness"]["passed"]
            held = session.scalars(
                select(CacheEntry.entry).where(CacheEntry.space == found[0]["address"])
            ).all()
            assert len(held) == whole["entries"]
        ask(session, "hotter", {"temperature": 4}, {"name": "audit"}, teacher=1, student=2)

    def loaded(_: object) -> None:
        pytest.fail("the teacher was loaded though nothing is missing")

    monkeypatch.setattr(precompute, "load_model", loaded)
    carry_out_here(factory, settings)
    with transaction(factory) as session:
        run = queries.by_number(session, session.scalars(select(Project.id)).one(), 4)
        assert run is not None
        assert run.state == "succeeded"
        phase = run.phase("precompute")
        assert phase is not None
        report = (phase.job.result or {})["report"]
        assert (report["new_rows"], report["missing_rows"]) == (0, 0)
        assert report["rows"] > 0
