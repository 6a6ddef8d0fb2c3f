"""A production log goes through every hop: upload → dataset → runs → comparison, as real jobs."""

import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd, StudentMake
from app.datasets import service as datasets
from app.datasets.models import DatasetVersion
from app.datasets.schemas import ImportRequest
from app.db.session import transaction
from app.evaluations import service as evaluations
from app.evaluations.comparing import compare_chosen
from app.evaluations.schemas import Choice
from app.events.queries import series
from app.jobs.models import Job
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.runs import service as runs
from app.runs.models import Run, RunJob
from app.settings import Settings
from app.specs.checkpoint import FolderSource, PruneSpec
from app.specs.evaluation import EvaluationSpec
from app.specs.training import Objective, RenderSpec, RunSpec, Schedule, TrainingSpec
from app.storage.blobs import LocalBlobs
from app.teacher_cache.models import CacheEntry, CacheShard, CacheSpaceRow
from tests.support.traffic import REFERENCE_PATH, write_log
from tests.support.workers import carry_out, carry_out_all, carry_out_next
from tests.workers.distill.tiny import llama, tokenizer
from workers.distill.checkpoints import save_checkpoint

Factory = sessionmaker[Session]
CONVERSATIONS = 60
REFERENCED = 20
OWNER = "tester"


def upload(session: Session, project: Project, path: Path, settings: Settings) -> int:
    row = datasets.start_upload(
        session, project, filename=path.name, size=path.stat().st_size, settings=settings
    )
    shutil.copyfile(path, datasets.upload_path(settings, row.key))
    digest = datasets.hash_upload(settings, row.key)
    datasets.finish_upload(session, row.id, sha256=digest, owner=OWNER)
    return row.id


def training(alpha: float, target: str = "logged") -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "objective": Objective.model_validate(
                {"kind": "forward_kl" if alpha else "ce", "alpha": alpha, "ce_target": target}
            ),
            "schedule": Schedule(steps=6, batch_size=4, snapshot_every=3, validate_every=3),
            "render": RenderSpec.model_validate({"max_tokens": 256, "answer": target}),
        }
    )


@pytest.mark.slow
def test_a_log_becomes_a_comparison(factory: Factory, settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    write_log(log, CONVERSATIONS)
    teacher_folder = tmp_path / "teacher"
    save_checkpoint(llama(), tokenizer(), teacher_folder)

    with transaction(factory) as session:
        data = ProjectCreate(
            name="Tickets", goal="task_specialisation", deciding_metric="exact_match", tolerance=2
        )
        project = projects.create(session, data, owner_id=None)
        upload_id = upload(session, project, log, settings)
        add = CheckpointAdd(name="teacher", source=FolderSource(path=str(teacher_folder)))
        teacher = checkpoints.register(session, project, add, settings=settings, owner=OWNER)
    carry_out_all(factory, settings)

    with transaction(factory) as session:
        wanted = ImportRequest(
            dataset="traffic", upload_ids=[upload_id], reference_path=REFERENCE_PATH
        )
        version = datasets.start_import(session, project, wanted, owner=OWNER)
        make = StudentMake(name="student", teacher_id=teacher.id, prune=PruneSpec(depth=1))
        student = checkpoints.make_student(session, project, make, owner=OWNER)
    carry_out_all(factory, settings)

    with transaction(factory) as session:
        funnel = session.get_one(DatasetVersion, version.id).funnel
        assert funnel is not None
        assert (funnel["records"], funnel["calls"]) == (CONVERSATIONS + 2, CONVERSATIONS)
        assert (funnel["duplicates"], funnel["references"]) == (1, REFERENCED)
        found = datasets.get_version(session, project.id, version.id)
        datasets.start_freeze(session, found, owner=OWNER)
    carry_out_all(factory, settings)

    roles = {
        "distilled": training(0.7),
        "sequence_level": training(0.0),
        "labels_only": training(0.0, "reference"),
    }
    with transaction(factory) as session:
        for name, spec in roles.items():
            run = RunSpec(
                name=name,
                teacher_id=teacher.id,
                student_id=student.id,
                dataset_version_id=version.id,
                training=spec,
                evaluation=EvaluationSpec(max_new_tokens=8),
                group="g1",
            )
            if name == "distilled":
                spec_of_distilled = run
            started = evaluations.start_run(session, project, run, owner=OWNER)
            assert started.role == name
    carry_out_all(factory, settings)

    with transaction(factory) as session:
        comparison = compare_chosen(session, session.get_one(Project, project.id), Choice())
        shown = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
        space = session.scalars(select(CacheSpaceRow)).one()
        made_by = session.scalars(select(Run.checkpoint_id)).all()
        origins = [session.get_one(Checkpoint, made).origin for made in made_by]
        assert {origin["step"] for origin in origins} <= {3, 6}
        trained = session.scalars(
            select(RunJob.job_id).join(Run).where(RunJob.role == "train", Run.role == "distilled")
        ).all()
        curves = series(session, trained)
    assert [row["role"] for row in shown["rows"]] == ["teacher", "undistilled", *roles]
    cells = {row["role"]: row["cells"] for row in shown["rows"]}
    assert cells["teacher"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert cells["teacher"]["agreement"]["value"] == 1
    assert {"exact_match", "field_f1", "kl", "agreement", "ece", "tokens_per_second"} <= set(
        cells["distilled"]
    )
    # An untrained teacher teaches nothing worth a ranking: what counts is that all rows share a set.
    assert len({row["cells"]["kl"]["n"] for row in shown["rows"]}) == 1
    pairs = {(d["a"], d["b"]) for d in shown["differences"] if d["metric"] == "exact_match"}
    assert {("distilled", "teacher"), ("distilled", "labels_only")} <= pairs
    assert [step for step, _ in curves["train/kd_loss"]] == [1, 2, 3, 4, 5, 6]
    assert space.report is not None
    assert space.report["faithfulness"]["passed"]
    a_shard_damaged_right_before_training(factory, settings, spec_of_distilled)
    a_cache_that_is_not_what_the_teacher_says(factory, settings, spec_of_distilled)


def a_shard_damaged_right_before_training(
    factory: Factory, settings: Settings, spec: RunSpec
) -> None:
    """It trains nobody and is given up, so that trying again captures it, byte for byte."""
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        shard = session.scalars(select(CacheShard)).one()
        path = LocalBlobs(settings.blobs).path(shard.blob)
        later = spec.model_copy(update={"name": "damaged", "group": "g3"})
        run_id = evaluations.start_run(session, project, later, owner=OWNER).id
    carry_out_next(factory, settings)
    whole = path.read_bytes()
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    carry_out(factory, settings)
    with transaction(factory) as session:
        [failed] = session.scalars(select(Job).where(Job.error == "CorruptShardError")).all()
        assert shard.sha256[:12] in str(failed.error_message)
        assert session.scalars(select(CacheShard)).all() == []
        view = runs.get(session, project, session.get_one(Run, run_id).number)
        assert [job.kind for job in runs.retry(session, view, owner=OWNER)][:2] == [
            "precompute",
            "train",
        ]
    carry_out(factory, settings)
    with transaction(factory) as session:
        view = runs.get(session, project, session.get_one(Run, run_id).number)
        assert view.state == "succeeded"
        assert session.scalars(select(CacheShard.sha256)).one() == shard.sha256
    assert path.read_bytes() == whole


def a_cache_that_is_not_what_the_teacher_says(
    factory: Factory, settings: Settings, spec: RunSpec
) -> None:
    """It trains nobody and is dropped, so that trying again captures anew."""
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        blob = session.get_one(Checkpoint, spec.teacher_id).blob
        folder = LocalBlobs(settings.blobs).path(str(blob))
        saved = folder.with_name("saved")
        folder.rename(saved)
        save_checkpoint(llama(seed=7), tokenizer(), folder)
        # Of a complete cache that was checked nothing is asked again.
        space = session.scalars(select(CacheSpaceRow)).one()
        space.report = {**(space.report or {}), "faithfulness": None}
        later = spec.model_copy(update={"name": "later", "group": "g2"})
        run_id = evaluations.start_run(session, project, later, owner=OWNER).id
    carry_out(factory, settings)
    with transaction(factory) as session:
        [failed] = session.scalars(select(Job).where(Job.error == "UnfaithfulCacheError")).all()
        assert "not faithful" in str(failed.error_message)
        assert session.scalars(select(CacheEntry)).all() == []
        shutil.rmtree(folder)
        saved.rename(folder)
        view = runs.get(session, project, session.get_one(Run, run_id).number)
        runs.retry(session, view, owner=OWNER)
    carry_out(factory, settings)
    with transaction(factory) as session:
        view = runs.get(session, project, session.get_one(Run, run_id).number)
        assert view.state == "succeeded"
        assert len(session.scalars(select(CacheEntry)).all()) > 0
