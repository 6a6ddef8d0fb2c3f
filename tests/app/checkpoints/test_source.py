"""A path that holds no checkpoint is refused before a job, where the workers see the same disk."""

import socket
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.checkpoints import service
from app.checkpoints.models import Checkpoint
from app.errors import InvalidInput
from app.jobs import lease
from app.jobs.models import Job
from app.projects.models import Project
from app.settings import Settings
from app.specs.checkpoint import FolderSource
from app.specs.checkpoint_folder import source_problem
from app.specs.jobs import Queue
from app.web.deps import Services
from tests.support import seeds

HERE = socket.gethostname()


def hear(session: Session, host: str, queue: Queue = Queue.CPU) -> None:
    lease.seen(session, f"{queue}@{host}", queue, host=host, job_id=None)


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return path


def test_what_a_path_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "one.gguf").touch()
    for path, words in (
        (tmp_path / "gone", "gone is not a folder or a .gguf file. Mend the path"),
        (tmp_path / "notes.txt", "notes.txt is no checkpoint. Give a folder"),
        (folder(tmp_path / "empty"), "empty has no config.json"),
        (folder(tmp_path / "bare", "config.json"), "bare has no *.safetensors file"),
        (folder(tmp_path / "old", "config.json", "pytorch_model.bin"), "is a pickle file"),
        (folder(tmp_path / "two", "a.gguf", "b.gguf"), "two holds 2 .gguf files"),
    ):
        assert words in (source_problem(path) or ""), path
    for path in (
        tmp_path / "one.gguf",
        folder(tmp_path / "gguf", "a.gguf"),
        folder(tmp_path / "good", "config.json", "model.safetensors"),
    ):
        assert source_problem(path) is None


def test_only_a_disk_that_the_workers_share_is_judged(session: Session, settings: Settings) -> None:
    gone = FolderSource(path="/nowhere/taecher")
    service.check_source(session, gone, settings)  # no worker is heard: perhaps elsewhere
    hear(session, HERE, Queue.GPU)
    service.check_source(session, gone, settings)
    hear(session, HERE)
    with pytest.raises(InvalidInput, match="/nowhere/taecher is not a folder") as caught:
        service.check_source(session, gone, settings)
    assert set(caught.value.fields) == {"path"}
    hear(session, "elsewhere")
    service.check_source(session, gone, settings)


def test_forms_and_api_refuse_a_mistyped_path_and_make_nothing(
    signed_in: TestClient, api_client: TestClient, parts: Services, tmp_path: Path
) -> None:
    good = folder(tmp_path / "good", "config.json", "model.safetensors")
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        hear(session, HERE)
    typo = {"kind": "folder", "path": "/nowhere/taecher"}
    page = signed_in.post("/projects/routing/checkpoints/new/register", data=typo)
    assert page.status_code == 422
    assert 'id="f-path-e">/nowhere/taecher is not a folder' in page.text
    new = {"name": "Second", "tolerance": "2"}
    page = signed_in.post("/projects", data={**new, **typo})
    assert page.status_code == 422
    assert 'id="f-path-e">/nowhere/taecher is not a folder' in page.text
    student = {"student_kind": "folder", "student_path": "/nowhere/small"}
    page = signed_in.post("/projects", data={**new, "path": str(good), "kind": "folder", **student})
    assert page.status_code == 422
    assert 'id="f-student_path-e">/nowhere/small is not a folder' in page.text
    body = {"name": "t", "source": typo}
    answer = api_client.post("/api/v1/projects/routing/checkpoints", json=body)
    assert answer.status_code == 422
    assert "Mend the path" in answer.json()["fields"]["path"]
    with parts.sessions() as session:
        assert session.scalars(select(Project.id)).all() == [project.id]
        assert session.scalar(select(func.count(Checkpoint.id))) == 0
        assert session.scalar(select(func.count(Job.id))) == 0
