"""An upload that was cut off and forgotten is removed after a time, which the lists say before."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.cli.serve import SWEEPS
from app.clock import now
from app.datasets import service
from app.datasets.models import Upload
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.settings import Settings
from app.storage.uploads import Appender
from tests.app.datasets.made import Made, stored

DAY = 86_400


@pytest.fixture
def project(session: Session) -> Project:
    return projects.create(session, ProjectCreate(name="Routing"), owner_id=None)


def begun(session: Session, project: Project, settings: Settings, *, age: float) -> Upload:
    """An upload whose last byte came `age` days ago."""
    upload = service.start_upload(
        session, project, filename=f"{age}.jsonl", size=9, settings=settings
    )
    path = service.upload_path(settings, upload.key)
    appender = Appender(path, 0, 9)
    appender.write(b"half")
    appender.close()
    os.utime(path, (time.time() - age * DAY,) * 2)
    return upload


def names(session: Session) -> list[str]:
    return [upload.filename for upload in session.query(Upload).order_by(Upload.id)]


def test_only_what_was_given_up_goes(
    session: Session, project: Project, settings: Settings
) -> None:
    gone = begun(session, project, settings, age=7.1)
    begun(session, project, settings, age=6.9)
    whole = stored(session, project, settings, name="whole.jsonl")
    path = service.upload_path(settings, whole.key)
    os.utime(path, (0, 0))
    made = Upload(
        project_id=project.id,
        key="k",
        filename="answers",
        state="uploading",
        origin="generated",
        created_at=now() - timedelta(days=30),
    )
    session.add(made)
    session.flush()
    service.drop_given_up(session, settings)
    assert names(session) == ["6.9.jsonl", "whole.jsonl", "answers"]
    assert not service.upload_path(settings, gone.key).exists()
    assert path.exists()


def test_the_setting_says_how_long(session: Session, project: Project, settings: Settings) -> None:
    begun(session, project, settings, age=6.9)
    service.drop_given_up(session, settings.model_copy(update={"upload_keep_days": 30.0}))
    assert names(session) == ["6.9.jsonl"]
    service.drop_given_up(session, settings.model_copy(update={"upload_keep_days": 1.0}))
    assert names(session) == []


def test_an_upload_without_its_file_goes_too(
    session: Session, project: Project, settings: Settings
) -> None:
    upload = begun(session, project, settings, age=0)
    Path(service.upload_path(settings, upload.key)).unlink()
    service.drop_given_up(session, settings)
    assert len(names(session)) == 1, "it was begun just now"
    upload.created_at = now() - timedelta(days=8)
    session.flush()
    service.drop_given_up(session, settings)
    assert names(session) == []


def test_the_dispatcher_sweeps_them() -> None:
    assert service.drop_given_up in SWEEPS


def test_lists_and_api_say_when(signed_in: TestClient, made: Made) -> None:
    with made.session() as (session, project):
        upload = begun(session, project, made.settings, age=2)
        leaves = service.leaves_at(made.settings, upload)
    made.upload(name="whole.jsonl")
    assert leaves is not None
    assert timedelta(days=4.9) < leaves - now() < timedelta(days=5.1)
    when = f'datetime="{leaves.isoformat(timespec="seconds")}"'
    for path in ("", "/new"):
        page = signed_in.get(f"/projects/routing/datasets{path}").text
        assert page.count("if no more bytes come") == 1
        assert when in page
    whole, cut = signed_in.get("/api/v1/projects/routing/uploads").json()
    assert whole["leaves_at"] is None
    assert datetime.fromisoformat(cut["leaves_at"]) == leaves
