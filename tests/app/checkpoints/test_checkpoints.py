"""Checkpoints through the services and the task adapters: register, token, prune, failure."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.checkpoints import queries, service
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd, StudentMake
from app.errors import Conflict, InvalidInput, NotFound
from app.jobs import service as jobs
from app.jobs.lease import Claim
from app.jobs.models import Job
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate, ProjectEdit
from app.settings import Settings
from app.specs.checkpoint import FolderSource, HubSource, PruneSpec
from app.specs.jobs import JobKind, JobState
from app.storage.blobs import LocalBlobs
from tests.workers.distill import tiny
from workers.distill.checkpoints import save_checkpoint
from workers.distill.errors import CheckpointError, HubUnavailableError
from workers.job.task import BodyContext
from workers.sinks import PipeCallbacks
from workers.tasks import checkpoints as tasks


@pytest.fixture
def project(session: Session) -> Project:
    return projects.create(session, ProjectCreate(name="Routing"), owner_id=None)


def claim(session: Session, row: Checkpoint) -> Claim:
    job = session.get(Job, row.job_id)
    assert job is not None
    return Claim(job.id, 7, job.kind, job.spec, job.stream, 1, ())


def work(session: Session, row: Checkpoint, settings: Settings, tmp_path: Path) -> None:
    """Carry out a checkpoint's job as the supervisor does, with a pipe that goes nowhere."""
    held = claim(session, row)
    task = tasks.TASKS[JobKind(held.kind)]
    inputs = task.load(session, held.spec, settings)
    workdir = tmp_path / f"work-{held.job_id}"
    workdir.mkdir()
    context = BodyContext(workdir, settings.blobs, (), PipeCallbacks(io.BytesIO()))
    task.apply(session, held, task.run(inputs, context), settings)


def teacher_of(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> Checkpoint:
    source = tmp_path / "source"
    save_checkpoint(tiny.llama(layers=4), tiny.tokenizer(), source)
    data = CheckpointAdd(name="big", source=FolderSource(path=str(source)))
    row = service.register(session, project, data, settings=settings, owner="admin")
    assert row.state == "registering"
    work(session, row, settings, tmp_path)
    return row


def test_a_folder_becomes_a_card_and_a_student_is_cut(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    teacher = teacher_of(session, project, settings, tmp_path)
    assert teacher.state == "ready"
    assert teacher.card is not None
    assert (teacher.card["depth"], teacher.card["width"]) == (4, 32)
    assert (LocalBlobs(settings.blobs).path(str(teacher.blob)) / "config.json").is_file()
    data = StudentMake(name="small", teacher_id=teacher.id, prune=PruneSpec(depth=2))
    student = service.make_student(session, project, data, owner="admin")
    assert service.compression_between(teacher, student) is None
    work(session, student, settings, tmp_path)
    assert student.card is not None
    assert student.card["depth"] == 2
    assert student.tokenizer_fingerprint == teacher.tokenizer_fingerprint
    found = service.compression_between(teacher, student)
    assert found is not None
    assert found.compute == pytest.approx(2.0, abs=0.02)
    assert 1 < found.total < found.compute
    assert [c.name for c in queries.of_project(session, project.id)] == ["big", "small"]


def test_impossible_students_are_refused(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    teacher = teacher_of(session, project, settings, tmp_path)
    for prune, field in ((PruneSpec(depth=5), "depth"), (PruneSpec(width=32), "depth")):
        data = StudentMake(name="small", teacher_id=teacher.id, prune=prune)
        with pytest.raises(InvalidInput) as caught:
            service.make_student(session, project, data, owner="admin")
        assert field in caught.value.fields
    again = CheckpointAdd(name="big", source=FolderSource(path="/nowhere"))
    with pytest.raises(InvalidInput, match="already has"):
        service.register(session, project, again, settings=settings, owner="admin")


def test_a_missing_folder_fails_with_the_cores_sentence(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    data = CheckpointAdd(name="gone", source=FolderSource(path=str(tmp_path / "none")))
    row = service.register(session, project, data, settings=settings, owner="admin")
    with pytest.raises(CheckpointError, match="is not a folder") as caught:
        work(session, row, settings, tmp_path)
    job = session.get(Job, row.job_id)
    assert job is not None
    job.state = JobState.STARTING
    session.flush()
    jobs.end(session, job, JobState.FAILED, message=str(caught.value))
    assert (row.state, row.error) == ("failed", str(caught.value))
    student = StudentMake(name="s", teacher_id=row.id, prune=PruneSpec(depth=1))
    with pytest.raises(Conflict):
        service.make_student(session, project, student, owner="admin")


def test_a_hub_token_is_in_no_row_and_gone_after_the_job(
    session: Session,
    project: Project,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []

    def fetch(_repo: str, _revision: str, token: str | None, *_rest: object, **_more: bool) -> None:
        given.append(token)
        raise HubUnavailableError("offline")

    monkeypatch.setattr(tasks, "download_hub", fetch)
    data = CheckpointAdd(name="hub", source=HubSource(repo_id="a/b"), token="hf_canary")
    row = service.register(session, project, data, settings=settings, owner="admin")
    job = session.get(Job, row.job_id)
    assert job is not None
    assert "hf_canary" not in str((job.spec, job.title, row.origin, data))
    path = service.token_file(settings, row.id)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(HubUnavailableError):
        work(session, row, settings, tmp_path)
    assert not path.exists()
    assert given == ["hf_canary"]


def test_the_commit_of_a_download_is_kept(
    session: Session,
    project: Project,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(
        _repo: str, _revision: str, _token: None, target: Path, *_rest: object, **_more: bool
    ) -> str:
        save_checkpoint(tiny.llama(layers=2), tiny.tokenizer(), target)
        return "c0ffee"

    monkeypatch.setattr(tasks, "download_hub", fetch)
    data = CheckpointAdd(name="hub", source=HubSource(repo_id="a/b", revision="v1"))
    row = service.register(session, project, data, settings=settings, owner="admin")
    work(session, row, settings, tmp_path)
    session.expire_all()
    assert row.state == "ready"
    assert row.origin == {"kind": "hub", "repo_id": "a/b", "revision": "v1", "commit": "c0ffee"}


def test_a_checkpoint_of_another_project_is_not_here(
    session: Session, project: Project, settings: Settings, tmp_path: Path
) -> None:
    teacher = teacher_of(session, project, settings, tmp_path)
    other = projects.create(session, ProjectCreate(name="Other"), owner_id=None)
    with pytest.raises(NotFound):
        service.get(session, other.id, teacher.id)
    projects.edit(session, project, ProjectEdit(teacher_id=teacher.id))
    assert project.teacher_id == teacher.id


def test_a_cancel_in_the_queue_ends_the_checkpoint_and_its_token(
    session: Session, project: Project, settings: Settings
) -> None:
    paths = []
    for name in ("cancelled", "waiting"):
        data = CheckpointAdd(name=name, source=HubSource(repo_id="a/b"), token="hf_canary")
        row = service.register(session, project, data, settings=settings, owner="admin")
        paths.append(service.token_file(settings, row.id))
        if name == "cancelled":
            assert row.job_id is not None
            jobs.request_cancel(session, row.job_id, "discard")
            assert (row.state, row.error) == ("failed", "It was cancelled.")
    service.drop_stale_tokens(session, settings)
    assert all(path.exists() for path in paths), "younger than a minute: perhaps not committed"
    for path in paths:
        os.utime(path, (0, 0))
    service.drop_stale_tokens(session, settings)
    assert [path.exists() for path in paths] == [False, True]
